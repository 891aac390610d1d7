"""pretrain: sequences of one or many domains -> a recommender. transfer: the same, to one target domain."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalex import processes
from catalex.artifacts import Stage, outputs_of, write_json
from catalex.pipelines.content import IDENTIFIERS, inputs_for, load_domains, training_block
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.validate import check_transfer
from catalex.pipelines.workspace import Workspace, resolve_device, running, workspace
from catalex.recommenders import make_recommender, recommender_kind
from catalex.recommenders.base import Recommender, RecommenderDomain
from catalex.tokenizers.identifiers import IdentifierTable
from catalex.types import JSON

FACTS = "facts.json"
RECOMMENDER = "recommender"


def pretrain_stage(recipe: Recipe) -> None:
    """Train the recommender on the pre-training domains, once for each seed."""
    if recipe.pretrain is None:
        return
    place = workspace(recipe)
    for seed in recipe.seeds:
        block = training_block(recipe, recipe.pretrain.training)
        stage = training_stage(
            place, "pretrain", place.pretrained(seed), recipe.pretrain.domains, block, seed
        )
        title = f"pretrain on {', '.join(recipe.pretrain.domains)}, seed {seed}"
        with running(stage, title, together=True) as needed:
            if needed:
                fit_block(stage, place, block, "recommender", recipe.pretrain.domains, seed, recipe.device)


def transfer_stage(recipe: Recipe) -> None:
    """Train a recommender for each target domain, from pre-trained or random weights, once for each seed."""
    if recipe.transfer is None:
        return
    check_transfer(recipe)
    place = workspace(recipe)
    for domain in recipe.transfer.domains:
        block = training_block(recipe, recipe.transfer.training_of(domain))
        for start in recipe.transfer.starts:
            for seed in recipe.seeds:
                earlier = place.pretrained(seed) if start == "pretrained" else None
                stage = training_stage(
                    place, "transfer", place.transferred(domain, start, seed), [domain], block, seed, earlier
                )
                title = f"transfer to {domain} from {start} weights, seed {seed}"
                with running(stage, title, together=True) as needed:
                    if needed:
                        fit_block(stage, place, block, "recommender", [domain], seed, recipe.device, earlier)


def training_stage(
    place: Workspace,
    verb: str,
    folder: Path,
    domains: Sequence[str],
    block: JSON,
    seed: int,
    earlier: Path | None = None,
) -> Stage:
    """The stage that trains one recommender; its inputs are all that decides the weights."""
    read = inputs_for(place, domains, recommender_kind(block).needs)
    if earlier is not None and read["identifiers"] is not None:
        place.check_trained(earlier, read["identifiers"])
    inputs = {
        **read,
        "recommender": block,
        "seed": seed,
        "start": outputs_of(earlier, "pretrain") if earlier is not None else None,
    }
    return Stage(folder, verb, inputs)


def fit_block(
    stage: Stage,
    place: Workspace,
    block: Mapping[str, Any],
    where: str,
    domains: Sequence[str],
    seed: int,
    device: str,
    earlier: Path | None = None,
) -> None:
    """Make the recommender of a recipe block, give it earlier weights if there are any, and fit it.

    Args:
        stage: Begun; finished here.
        place: The workspace.
        block: Name and options of the recommender.
        where: Where the block stands, for messages.
        domains: What it learns from.
        seed: Of the training.
        device: "auto", "cpu" or "cuda".
        earlier: Stage of the pre-training.
    """
    needs = recommender_kind(block).needs
    table = IdentifierTable.load(place.tokenized / IDENTIFIERS) if "identifiers" in needs else None
    recommender = make_recommender(block, where, table.space if table is not None else None)
    if earlier is not None:
        recommender.start_from(earlier / RECOMMENDER)
    fit_and_save(stage, recommender, load_domains(place, domains, needs, table), seed, device)


def fit_and_save(
    stage: Stage, recommender: Recommender, domains: Sequence[RecommenderDomain], seed: int, device: str
) -> None:
    """Fit, save, and finish the stage. Times go to a file of their own, because they are not reproducible.

    Several processes fit together; the main one saves.
    """
    facts = dict(recommender.fit(domains, seed=seed, device=resolve_device(device), partial=stage.partial))
    if not processes.is_main():
        return
    write_json(stage.folder / "training_time.json", {"seconds": facts.pop("seconds", None)})
    # all of its files become outputs: nothing of an earlier or killed save may stay among them
    shutil.rmtree(stage.folder / RECOMMENDER, ignore_errors=True)
    recommender.save(stage.folder / RECOMMENDER)
    write_json(stage.folder / FACTS, facts)
    saved = [str(p.relative_to(stage.folder)) for p in (stage.folder / RECOMMENDER).rglob("*") if p.is_file()]
    stage.finish([FACTS, *saved])

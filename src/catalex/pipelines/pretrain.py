"""pretrain: code sequences of one or many domains -> a recommender. transfer: the same, to one target."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from catalex import processes
from catalex.artifacts import Stage, outputs_of, write_json
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.validate import check_transfer
from catalex.pipelines.workspace import Workspace, resolve_device, running, workspace
from catalex.recommenders import make_recommender
from catalex.recommenders.base import Recommender, RecommenderDomain
from catalex.recommenders.generative import Generative
from catalex.tokenizers.identifiers import IdentifierTable
from catalex.types import JSON

IDENTIFIERS = "identifiers.parquet"
FACTS = "facts.json"
RECOMMENDER = "recommender"


def pretrain_stage(recipe: Recipe) -> None:
    """Train the recommender on the pre-training domains, once for each seed."""
    if recipe.pretrain is None:
        return
    place = workspace(recipe)
    for seed in recipe.seeds:
        block = recipe.component(recipe.recommender, recipe.pretrain.training)
        stage = training_stage(
            place, "pretrain", place.pretrained(seed), recipe.pretrain.domains, block, seed
        )
        title = f"pretrain on {', '.join(recipe.pretrain.domains)}, seed {seed}"
        with running(stage, title, together=True) as needed:
            if needed:
                identifiers = IdentifierTable.load(place.tokenized / IDENTIFIERS)
                recommender = make_recommender(block, "recommender", identifiers.space)
                fit_and_save(
                    stage,
                    recommender,
                    load_domains(place, recipe.pretrain.domains, identifiers),
                    seed,
                    recipe.device,
                )


def transfer_stage(recipe: Recipe) -> None:
    """Train a recommender for each target domain, from pre-trained or random weights, once for each seed."""
    if recipe.transfer is None:
        return
    check_transfer(recipe)
    place = workspace(recipe)
    for domain in recipe.transfer.domains:
        block = recipe.component(recipe.recommender, recipe.transfer.training_of(domain))
        for start in recipe.transfer.starts:
            for seed in recipe.seeds:
                earlier = place.pretrained(seed) if start == "pretrained" else None
                stage = training_stage(
                    place, "transfer", place.transferred(domain, start, seed), [domain], block, seed, earlier
                )
                title = f"transfer to {domain} from {start} weights, seed {seed}"
                with running(stage, title, together=True) as needed:
                    if needed:
                        identifiers = IdentifierTable.load(place.tokenized / IDENTIFIERS)
                        recommender = make_recommender(block, "recommender", identifiers.space)
                        if earlier is not None:
                            assert isinstance(recommender, Generative)
                            recommender.start_from(earlier / RECOMMENDER)
                        fit_and_save(
                            stage,
                            recommender,
                            load_domains(place, [domain], identifiers),
                            seed,
                            recipe.device,
                        )


def training_stage(
    place: Workspace,
    verb: str,
    folder: Path,
    domains: Sequence[str],
    block: JSON,
    seed: int,
    earlier: Path | None = None,
    *,
    needs_identifiers: bool = True,
) -> Stage:
    """The stage that trains one recommender; its inputs are all that decides the weights."""
    for name in domains if needs_identifiers else ():
        place.check_tokenized(name)
    tokenized = outputs_of(place.tokenized, "tokenize")[IDENTIFIERS] if needs_identifiers else None
    if earlier is not None and tokenized is not None:
        place.check_trained(earlier, tokenized)
    inputs = {
        "domains": {name: outputs_of(place.prepared(name), "prepare") for name in domains},
        "identifiers": tokenized,
        "recommender": block,
        "seed": seed,
        "start": outputs_of(earlier, "pretrain") if earlier is not None else None,
    }
    return Stage(folder, verb, inputs)


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


def load_domains(
    place: Workspace, names: Sequence[str], identifiers: IdentifierTable | None
) -> list[RecommenderDomain]:
    """What recommenders learn from, with identifiers where there are any."""
    found = []
    for name in names:
        domain = place.domain(name)
        codes = identifiers.of(name) if identifiers is not None else None
        if codes is not None and len(codes) != len(domain):
            place.check_tokenized(name)
        found.append(
            RecommenderDomain(
                name,
                len(domain),
                domain.sequences.training,
                domain.sequences.validation,
                domain.split_id,
                codes,
            )
        )
    return found

"""bundle: the trained parts of a run -> one folder per target domain that `catalex recommend` answers from."""

from __future__ import annotations

from pathlib import Path

from catalex.artifacts import Stage, outputs_of
from catalex.bundle import MANIFEST, write_bundle
from catalex.pipelines.pretrain import IDENTIFIERS, RECOMMENDER, load_domains
from catalex.pipelines.recipe import Recipe, dump_recipe
from catalex.pipelines.workspace import Workspace, running, workspace
from catalex.recommenders import load_recommender
from catalex.tokenizers.identifiers import IdentifierTable


def bundle_stage(recipe: Recipe) -> list[Path]:
    """Write a bundle for every evaluated domain with a trained recommender; returns their folders."""
    place = workspace(recipe)
    folders = []
    for name in recipe.evaluate_domains:
        source = trained_folder(recipe, place, name)
        if source is None:
            continue
        domain = place.domain(name)
        inputs = {
            "recommender": outputs_of(source, "pretrain"),
            "tokenizer": outputs_of(place.tokenized, "tokenize"),
            "domain": outputs_of(place.prepared(name), "prepare"),
        }
        folder = place.root / "bundle" / name
        stage = Stage(place.root / "bundle" / f"{name}.stage", "bundle", {**inputs, "format": 1})
        done = stage.done and (folder / MANIFEST).is_file()
        if not done:
            with running(stage, f"bundle {name}"):
                identifiers = IdentifierTable.load(place.tokenized / IDENTIFIERS)
                recommender = load_recommender(source / RECOMMENDER)
                recommender.bind(load_domains(place, [name], identifiers)[0])
                write_bundle(
                    folder,
                    domain=name,
                    split_id=domain.split_id,
                    prepared=place.prepared(name),
                    identifiers=identifiers,
                    tokenizer=place.tokenized / "tokenizer",
                    recommender=recommender,
                    recipe=dump_recipe(recipe),
                )
                stage.finish([])
        folders.append(folder)
    return folders


def trained_folder(recipe: Recipe, place: Workspace, domain: str) -> Path | None:
    """The stage whose recommender serves a domain: transferred if there is one, else pre-trained; first seed."""
    seed = recipe.seeds[0]
    if recipe.transfer and domain in recipe.transfer.domains:
        return place.transferred(domain, recipe.transfer.starts[0], seed)
    return place.pretrained(seed) if domain in recipe.pretrain_domains else None

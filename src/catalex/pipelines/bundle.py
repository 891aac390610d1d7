"""bundle: the trained parts of a run -> one folder a target domain, which `catalex recommend` reads."""

from __future__ import annotations

from pathlib import Path

from catalex.artifacts import Stage, outputs_of
from catalex.bundle import MANIFEST, write_bundle
from catalex.pipelines.content import IDENTIFIERS, load_domains
from catalex.pipelines.pretrain import RECOMMENDER
from catalex.pipelines.recipe import Recipe, dump_recipe
from catalex.pipelines.tokenize import tokenizer_folder
from catalex.pipelines.workspace import Workspace, running, workspace
from catalex.progress import say
from catalex.recommenders import load_recommender, recommender_kind
from catalex.tokenizers.identifiers import IdentifierTable


def bundle_stage(recipe: Recipe) -> list[Path]:
    """Write a bundle for every evaluated domain with a trained recommender; returns their folders."""
    place, kind = workspace(recipe), recommender_kind(recipe.recommender)
    if "identifiers" not in kind.needs:
        if recipe.pretrain is not None or recipe.transfer is not None:
            say("bundle: bundles hold recommenders over identifiers; this one is left in its stage")
        return []
    folders = []
    for name in recipe.evaluate_domains:
        source = trained_folder(recipe, place, name)
        if source is None:
            continue
        domain = place.domain(name)
        place.check_tokenized(name)
        place.check_trained(source, outputs_of(place.tokenized, "tokenize")[IDENTIFIERS])
        inputs = {
            "recommender": outputs_of(source, place.verb_of(source)),
            "tokenizer": outputs_of(place.tokenized, "tokenize"),
            "domain": outputs_of(place.prepared(name), "prepare"),
        }
        folder = place.root / "bundle" / name
        stage = Stage(place.root / "bundle" / f"{name}.stage", "bundle", {**inputs, "format": 1})
        with running(stage, f"bundle {name}") as needed:
            if needed:
                identifiers = IdentifierTable.load(place.tokenized / IDENTIFIERS)
                recommender = load_recommender(source / RECOMMENDER)
                recommender.bind(load_domains(place, [name], kind.needs, identifiers)[0])
                write_bundle(
                    folder,
                    domain=name,
                    split_id=domain.split_id,
                    prepared=place.prepared(name),
                    identifiers=identifiers,
                    tokenizer=tokenizer_folder(recipe, place, name),
                    recommender=recommender,
                    recipe=dump_recipe(recipe),
                )
                stage.finish([f"../{name}/{MANIFEST}"])  # it holds the hashes of all other files
        folders.append(folder)
    return folders


def trained_folder(recipe: Recipe, place: Workspace, domain: str) -> Path | None:
    """Stage of the recommender that serves a domain: transferred if there is one, else pre-trained."""
    seed = recipe.seeds[0]
    if recipe.transfer and domain in recipe.transfer.domains:
        return place.transferred(domain, recipe.transfer.starts[0], seed)
    return place.pretrained(seed) if domain in recipe.pretrain_domains else None

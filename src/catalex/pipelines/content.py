"""What a recommender reads of a domain beside its sequences, loaded by what it says it needs.

`inputs_for` names the same things by their hashes, so that a stage runs again when one of them has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from catalex.artifacts import outputs_of
from catalex.data import columns as c
from catalex.data.domain import Domain
from catalex.data.histories import Histories
from catalex.pipelines.embed import load_image_vectors, load_vectors
from catalex.pipelines.recipe import Recipe
from catalex.pipelines.workspace import Workspace
from catalex.recommenders import recommender_kind
from catalex.recommenders.base import RecommenderDomain
from catalex.tokenizers.identifiers import IdentifierTable
from catalex.types import JSON

IDENTIFIERS = "identifiers.parquet"

COMMON = 2
"""Items that an attribute has at least: what one item alone has says nothing of others."""


def baseline_block(recipe: Recipe, label: str) -> dict[str, Any]:
    """The recommender block of a baseline: its label is its name in the table, unless its block names
    another, so that one system can be listed with several settings."""
    return {"name": label, **recipe.baselines.get(label, {})}


def training_block(recipe: Recipe, training: Mapping[str, Any]) -> dict[str, Any]:
    """The recommender block with a stage's training overrides laid over it: over its block ``training``, or
    over itself where a recommender keeps the options of its training there."""
    block = dict(recipe.recommender)
    if "training" not in recommender_kind(block).Options.model_fields:
        return {**block, **training}
    if training:
        block["training"] = {**block.get("training", {}), **training}
    return block


def needs_of(recipe: Recipe) -> frozenset[str]:
    """What the systems of a recipe need of the domains, all together.

    A recipe that trains and judges nothing is there for its identifiers.
    """
    blocks: list[Mapping[str, Any]] = [baseline_block(recipe, name) for name in recipe.evaluate.baselines]
    if recipe.pretrain is not None or recipe.transfer is not None:
        blocks.append(recipe.recommender)
    elif not recipe.evaluate_domains:
        return frozenset({"identifiers"})
    return frozenset().union(*(recommender_kind(block).needs for block in blocks))


def load_domains(
    place: Workspace,
    names: Sequence[str],
    needs: Collection[str],
    identifiers: IdentifierTable | None = None,
) -> list[RecommenderDomain]:
    """Sequences of domains and, of their items, what a recommender needs.

    Args:
        place: The workspace.
        names: Domains.
        needs: Values of `recommenders.base.NEEDS`.
        identifiers: The table, where it is at hand.

    Raises:
        CatalexError: When a stage that makes something needed has not been run, or belongs to an earlier
            preparation.
    """
    if "identifiers" in needs and identifiers is None:
        identifiers = IdentifierTable.load(place.tokenized / IDENTIFIERS)
    found = []
    for name in names:
        domain = place.domain(name)
        codes = identifiers.of(name) if "identifiers" in needs and identifiers is not None else None
        if codes is not None and len(codes) != len(domain):
            place.check_tokenized(name)
        if "vectors" in needs:
            place.check_embedded(name)
        found.append(
            RecommenderDomain(
                name,
                len(domain),
                domain.sequences.training,
                domain.sequences.validation,
                domain.split_id,
                identifiers=codes,
                vectors=load_vectors(place, name) if "vectors" in needs else None,
                image_vectors=load_image_vectors(place, domain) if "image_vectors" in needs else None,
                attributes=item_attributes(domain) if "attributes" in needs else None,
            )
        )
    return found


def inputs_for(place: Workspace, names: Sequence[str], needs: Collection[str]) -> dict[str, JSON]:
    """Hashes of what `load_domains` loads; nothing is named that is not needed.

    Raises:
        CatalexError: As `load_domains`.
    """
    for name in names:
        if "identifiers" in needs:
            place.check_tokenized(name)
        if "vectors" in needs:
            place.check_embedded(name)
    inputs: dict[str, JSON] = {
        "domains": {name: outputs_of(place.prepared(name), "prepare") for name in names},
        "identifiers": outputs_of(place.tokenized, "tokenize")[IDENTIFIERS]
        if "identifiers" in needs
        else None,
    }
    if "vectors" in needs:
        inputs["vectors"] = {name: outputs_of(place.embedded(name), "embed") for name in names}
    if "image_vectors" in needs:
        inputs["image_vectors"] = {
            name: outputs_of(place.image_embedded(name), "embed")
            for name in names
            if place.image_embedded(name).is_dir()
        }
    return inputs


def item_attributes(domain: Domain) -> Histories:
    """Attribute ids of each of the N items: its categories and its brand (S3-Rec, arXiv 2008.07873, section
    5.1), as far as at least `COMMON` items have them, numbered in the order of their names."""
    rows = domain.items.select([c.CATEGORIES, c.BRAND]).to_pylist()
    named = [
        {
            *(f"category {name}" for name in row[c.CATEGORIES] or ()),
            *([f"brand {b}"] if (b := row[c.BRAND]) else []),
        }
        for row in rows
    ]
    counts = Counter(name for names in named for name in names)
    numbers = {
        name: number for number, name in enumerate(sorted(n for n, k in counts.items() if k >= COMMON))
    }
    owned = [sorted(numbers[name] for name in names if name in numbers) for names in named]
    found = Histories.from_lists(owned)
    return Histories(found.offsets, found.items.astype(np.int64))

"""Recommenders: one file a system, one table. A new system is a new file and a new line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalex.artifacts import read_json
from catalex.errors import lookup, user_error
from catalex.recommenders.base import Recommender
from catalex.recommenders.generative import Generative, GenerativeOptions
from catalex.recommenders.popularity import Popularity
from catalex.recommenders.sasrec import SASRec
from catalex.recommenders.transitions import Transitions
from catalex.tokenizers.base import CodeSpace

RECOMMENDERS: dict[str, type[Recommender]] = {
    "t5": Generative,
    "sasrec": SASRec,
    "transitions": Transitions,
    "popularity": Popularity,
}
"""Every recommender by the name that recipes use."""


def make_recommender(settings: Mapping[str, Any], place: str, space: CodeSpace | None = None) -> Recommender:
    """Build the untrained recommender that a recipe block describes.

    Args:
        settings: ``name`` and the options of that recommender.
        place: Where the block stands, for error messages.
        space: Code space of the identifiers; generative recommenders need it.

    Raises:
        CatalexError: On an unknown name or option.
    """
    options = dict(settings)
    kind = lookup(RECOMMENDERS, str(options.pop("name", "t5")), "recommender")
    parsed = kind.Options.parse(options, place)
    if kind is Generative:
        assert isinstance(parsed, GenerativeOptions)
        if space is None:
            raise user_error(
                "a generative recommender needs identifiers",
                place=place,
                remedy="run 'catalex tokenize' first",
            )
        return Generative(parsed, space)
    build: Any = kind
    recommender: Recommender = build(parsed)
    return recommender


def load_recommender(folder: Path) -> Recommender:
    """Read a saved recommender; its ``config.json`` says which one it is."""
    name = str(read_json(folder / "config.json").get("name"))
    return lookup(RECOMMENDERS, name, "recommender").load(folder)

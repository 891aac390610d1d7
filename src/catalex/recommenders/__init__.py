"""Recommenders: one file a system, one table. A new system is a new file and a new line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from catalex.artifacts import read_json
from catalex.errors import lookup, user_error
from catalex.recommenders.base import Recommender
from catalex.recommenders.bert4rec import BERT4Rec
from catalex.recommenders.bsarec import BSARec
from catalex.recommenders.fdsa import FDSA
from catalex.recommenders.fmlp import FMLP
from catalex.recommenders.generative import Generative
from catalex.recommenders.gru4rec import GRU4Rec
from catalex.recommenders.hstu import HSTU
from catalex.recommenders.missrec import MISSRec
from catalex.recommenders.popularity import Popularity
from catalex.recommenders.recgpt import RecGPT
from catalex.recommenders.s3rec import S3Rec
from catalex.recommenders.sasrec import SASRec
from catalex.recommenders.transitions import Transitions
from catalex.recommenders.unisrec import UniSRec
from catalex.recommenders.vqrec import VQRec
from catalex.tokenizers.base import CodeSpace

RECOMMENDERS: dict[str, type[Recommender]] = {
    "t5": Generative,
    "recgpt": RecGPT,
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "bsarec": BSARec,
    "fmlp": FMLP,
    "gru4rec": GRU4Rec,
    "hstu": HSTU,
    "fdsa": FDSA,
    "missrec": MISSRec,
    "s3rec": S3Rec,
    "unisrec": UniSRec,
    "vqrec": VQRec,
    "transitions": Transitions,
    "popularity": Popularity,
}
"""Every recommender by the name that recipes use."""

DEFAULT = "t5"
"""Which one a block without a name means."""


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
    kind = recommender_kind(settings)
    options.pop("name", None)
    if "training" not in kind.Options.model_fields:  # they are one with the others, but recipes override them
        options |= options.pop("training", None) or {}
    parsed = kind.Options.parse(options, place)
    build: Callable[..., Recommender] = kind
    if "identifiers" not in kind.needs:
        return build(parsed)
    if space is None:
        raise user_error(
            "a generative recommender needs identifiers",
            place=place,
            value=settings.get("name"),
            remedy="run 'catalex tokenize' first",
        )
    return build(parsed, space)


def recommender_kind(settings: Mapping[str, Any]) -> type[Recommender]:
    """The class that a recipe block names; it says what it needs and whether it transfers.

    Raises:
        CatalexError: When there is none of that name.
    """
    return lookup(RECOMMENDERS, recommender_name(settings), "recommender")


def recommender_name(settings: Mapping[str, Any]) -> str:
    """The name in a recipe block."""
    return str(settings.get("name", DEFAULT))


def load_recommender(folder: Path) -> Recommender:
    """Read a saved recommender; its ``config.json`` says which one it is."""
    name = str(read_json(folder / "config.json").get("name"))
    return lookup(RECOMMENDERS, name, "recommender").load(folder)

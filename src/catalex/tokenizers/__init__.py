"""Item tokenizers: content vectors to codes and back. One file a method, one table.

A new tokenizer is a new file with a subclass of `Tokenizer` and one line in `TOKENIZERS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalex.artifacts import hash_array, hash_json
from catalex.errors import lookup, user_error
from catalex.tokenizers.adapt import AdaptedTokenizer
from catalex.tokenizers.base import (
    CodeSpace,
    CollaborativeNeed,
    CollaborativeOptions,
    ContentTokenizer,
    LatentTokenizer,
    ResidualPart,
    Tokenizer,
    TokenizerDomain,
)
from catalex.tokenizers.folder import read_config
from catalex.tokenizers.lamia import Lamia
from catalex.tokenizers.letter import Letter
from catalex.tokenizers.opq import OPQ
from catalex.tokenizers.recgpt_fsq import RecGPTFSQ
from catalex.tokenizers.rqkmeans import RQKMeans
from catalex.tokenizers.rqvae import RQVAE
from catalex.tokenizers.tiger_m import TigerM
from catalex.tokenizers.unitok import UniTok
from catalex.tokenizers.utgrec import UTGRec

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "lamia": Lamia,
    "letter": Letter,
    "opq": OPQ,
    "recgpt-fsq": RecGPTFSQ,
    "rqkmeans": RQKMeans,
    "rqvae": RQVAE,
    "tiger_m": TigerM,
    "unitok": UniTok,
    "utgrec": UTGRec,
}
"""Every tokenizer by its name in recipes."""


def make_tokenizer(
    settings: Mapping[str, Any], place: str = "tokenizer", domains: Sequence[str] | None = None
) -> Tokenizer:
    """An untrained tokenizer from ``{"name": ..., **options}``, read from a recipe at `place`.

    Args:
        settings: Name and options.
        place: Where they stand, for messages.
        domains: Names of the domains that it will learn from, where they are known already; the code space
            of some tokenizers depends on them.

    Raises:
        CatalexError: For an unknown name or option, or a value out of range.
    """
    options = dict(settings)
    if "name" not in options:
        raise user_error(
            "key 'name' is missing", place=place, allowed=sorted(TOKENIZERS), remedy="name a tokenizer"
        )
    kind = lookup(TOKENIZERS, str(options.pop("name")), "tokenizer")
    construct: Any = kind
    tokenizer: Tokenizer = construct(kind.Options.parse(options, place))
    if domains is not None:
        tokenizer.expect(domains)
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The trained tokenizer of a folder; its ``config.json`` says which method.

    Raises:
        CatalexError: When a file is missing, damaged or of another version.
    """
    table: dict[str, type[Tokenizer]] = {**TOKENIZERS, AdaptedTokenizer.name: AdaptedTokenizer}
    return lookup(table, str(read_config(folder)["name"]), "tokenizer").load(folder)


def fit_hash(settings: Mapping[str, Any], domains: Sequence[TokenizerDomain], seed: int) -> str:
    """Names a training by all that decides its result: settings, seed, and vectors and histories of the
    domains."""
    seen = [
        [d.name, d.split_id, hash_array(d.vectors, d.training.offsets, d.training.items)]
        + ([hash_array(d.collaborative)] if d.collaborative is not None else [])
        for d in domains
    ]
    return hash_json({"settings": dict(settings), "seed": seed, "domains": seen})


__all__ = [
    "TOKENIZERS",
    "CodeSpace",
    "CollaborativeNeed",
    "CollaborativeOptions",
    "ContentTokenizer",
    "LatentTokenizer",
    "ResidualPart",
    "Tokenizer",
    "TokenizerDomain",
    "fit_hash",
    "load_tokenizer",
    "make_tokenizer",
]

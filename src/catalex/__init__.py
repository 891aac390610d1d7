"""catalex: catalog to lexicon. Tokenize once, recommend anywhere.

The public face is small: read a recipe and run it, open a bundle and recommend, or take the parts
(`TOKENIZERS`, `RECOMMENDERS`, `ENCODERS`, `Domain`) and build your own story. Parts are imported on first
use, so that ``import catalex`` is quick and a training machine needs no data-preparation libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Bundle": "catalex.bundle",
    "CatalexError": "catalex.errors",
    "Domain": "catalex.data.domain",
    "ENCODERS": "catalex.features",
    "Histories": "catalex.data.histories",
    "IdentifierTable": "catalex.tokenizers.identifiers",
    "RECOMMENDERS": "catalex.recommenders",
    "Ranking": "catalex.recommenders.base",
    "Recommender": "catalex.recommenders.base",
    "TOKENIZERS": "catalex.tokenizers",
    "Tokenizer": "catalex.tokenizers.base",
    "read_recipe": "catalex.pipelines.recipe",
    "run_recipe": "catalex.pipelines.run",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'catalex' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

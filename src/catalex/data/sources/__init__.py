"""Data sources: one file and one class a dataset, and the table that names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalex.data.sources.amazon2014 import Amazon2014
from catalex.data.sources.amazon2023 import Amazon2023
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.canonical import Canonical
from catalex.data.sources.movielens import MovieLens
from catalex.data.sources.recbole import RecBole
from catalex.data.sources.tables import Tables
from catalex.errors import lookup

SOURCES: dict[str, type[Source]] = {
    "tables": Tables,
    "amazon2023": Amazon2023,
    "amazon2014": Amazon2014,
    "movielens": MovieLens,
    "recbole": RecBole,
    "canonical": Canonical,
}
"""Every data source by the name that recipes use. A new one is one file and one line here."""


def make_source(name: str, options: Mapping[str, Any], place: str) -> Source:
    """The source `name` with `options`, which were read at `place` of a recipe.

    Raises:
        CatalexError: When there is no such source or an option is wrong.
    """
    kind: Any = lookup(SOURCES, name, "data source")
    source: Source = kind(kind.Options.parse(options, place), place)
    return source


__all__ = ["SOURCES", "RawDomain", "Source", "make_source"]

"""The text of an item: which columns, in which order, joined into one line that a text encoder reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from catalex.data import columns as c
from catalex.data.domain import Domain
from catalex.options import Options

EXTRA_PREFIX = f"{c.EXTRA}."


class TextOptions(Options):
    """Which columns make up an item's text."""

    columns: tuple[str, ...] = (c.TITLE, c.BRAND, c.CATEGORIES, c.DESCRIPTION)
    """Columns in reading order; what stands first survives when the encoder cuts long texts.

    ``extra.<key>`` takes a field of the `extra` column. The default is the usual order of product text in
    semantic-identifier papers: TIGER (Rajput et al. 2023, section 4) uses title, price, brand and category;
    the description is appended here because it is cut first."""

    fallback: tuple[str, ...] = (c.KEYWORDS,)
    """Columns appended for items without a title, whose text would otherwise be a bare category path.

    Keywords are often written by another model, so they stay out of the text where a real title exists."""

    max_characters: int = Field(default=2000, ge=1)
    """Longest text. 128 tokens are about 600 characters of English, so nothing that is read is lost, and a
    megabyte in one cell costs nothing."""

    @field_validator("columns", "fallback")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in c.TEXT_COLUMNS and not (
                name.startswith(EXTRA_PREFIX) and len(name) > len(EXTRA_PREFIX)
            ):
                raise PydanticCustomError(
                    "text_column",
                    "unknown text column '{name}', choose from {choices} or extra.<key>",
                    {"name": name, "choices": ", ".join(c.TEXT_COLUMNS)},
                )
        return names


def item_text(row: Mapping[str, Any], options: TextOptions) -> str:
    """One line of text for the item in `row` (a mapping by the names of `columns.ITEMS_SCHEMA`).

    Present columns are joined by ". ", list values by ", ". An item with nothing to say gives "".

    >>> item_text({"title": "Red kite", "brand": None, "categories": ["Toys", "Kites"]}, TextOptions())
    'Red kite. Toys, Kites'
    >>> item_text({"brand": "Ghost", "categories": ["Tools"], "keywords": "gun punch"}, TextOptions())
    'Ghost. Tools. gun punch'
    """
    names = options.columns
    if not _readable(row.get(c.TITLE), options.max_characters):
        names += tuple(name for name in options.fallback if name not in names)
    parts = (_readable(_value(row, name), options.max_characters) for name in names)
    return ". ".join(part.rstrip(" .") or part for part in parts if part)[: options.max_characters].rstrip()


def domain_texts(domain: Domain, options: TextOptions) -> list[str]:
    """The text of each of the N items, in item order. Count the empty ones with ``texts.count("")``."""
    wanted = [name for name in (*c.TEXT_COLUMNS, c.EXTRA) if name in domain.items.column_names]
    return [
        item_text(row, options)
        for batch in domain.items.select(wanted).to_batches(max_chunksize=4096)
        for row in batch.to_pylist()
    ]


def clean(text: str) -> str:
    """`text` with white space collapsed and lone surrogates dropped, which no tokenizer accepts."""
    return " ".join(text.encode("utf-8", "ignore").decode("utf-8").split())


def _value(row: Mapping[str, Any], name: str) -> Any:
    """A column's value, or a field of the JSON object in `extra`."""
    if not name.startswith(EXTRA_PREFIX):
        return row.get(name)
    extra = row.get(c.EXTRA)
    fields = json.loads(extra) if isinstance(extra, str) and extra else extra
    return fields.get(name.removeprefix(EXTRA_PREFIX)) if isinstance(fields, Mapping) else None


def _readable(value: Any, limit: int) -> str:
    """A value as clean text. Only the first ``4 * limit`` characters are read; more would be cut anyway."""
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(part for part in (_readable(one, limit) for one in value) if part)
    return clean(str(value)[: 4 * limit])

"""Identifiers that others published: read from a file, checked against a catalogue, made unique.

They stand where a trained tokenizer's identifiers would, under the same recommender and the same item-level
evaluation. Such a file is Parquet with one row an item:

========== ==================== ==========================================================================
column     type                 meaning
========== ==================== ==========================================================================
item_id    integer or string    item ids of the prepared domain; strings are source ids
codes      list of string/int   the L codes of the item, for example ``["<a_12>", "<b_7>"]``
method     string, optional     who made the row, where one file holds the identifiers of several methods
========== ==================== ==========================================================================

What a file lacks are the code vectors: nothing can be encoded, decoded or reassigned to the nearest free
code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalex.artifacts import hash_array, hash_json, read_parquet
from catalex.errors import lookup, user_error
from catalex.options import Options
from catalex.quantize.usage import collisions, prefix_groups
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.conflicts import DIGITS
from catalex.types import Codes, Ints

ITEM_ID, CODES, METHOD = "item_id", "codes", "method"

NUMBER = re.compile(r"\D*([0-9]{1,9})\D*")
"""A code with exactly one number in it."""

LARGEST = 2**16
"""Numbers below this are codes as they stand; larger ones would mean a token table that is mostly empty."""

METHODS = {
    "digit": "append a number that tells items with equal identifiers apart (TIGER)",
    "none": "take the identifiers as they are; refused unless they are unique",
}
"""Conflict handling that needs no code vectors."""


class PublishedOptions(Options):
    """Where the identifiers of one domain are."""

    file: Path
    """Parquet file."""
    method: str | None = None
    """Rows to take, where the file has a column ``method``; may be left out if they all have the same."""


@dataclass(frozen=True)
class Published:
    """Published codes as integers.

    Attributes:
        codes: For each domain ``(N, L)``, row i for item i, as published.
        space: Their levels; a code means the same in all domains if it was written the same.
        methods: For each domain the method; the file's name where the file does not tell.
    """

    codes: Mapping[str, Codes]
    space: CodeSpace
    methods: Mapping[str, str]

    def version(self, domain: str, conflicts: str) -> str:
        """Names the identifiers of a domain, as `identifiers.identifier_version` does where a tokenizer made
        them."""
        return hash_json({"codes": hash_array(self.codes[domain]), "method": conflicts})[:16]


@dataclass(frozen=True)
class Rows:
    """The M rows of one method in a file: their item ids and their L codes as text."""

    method: str
    ids: Sequence[int | str]
    codes: list[list[str]]
    place: str


def read_published(
    options: Mapping[str, PublishedOptions], sources: Mapping[str, Sequence[str | None]]
) -> Published:
    """Read the identifiers of each domain and turn them into integers, level by level.

    A code becomes the number that is written in it ("<a_12>" is 12) if that works for all codes of a level,
    else the rank of its text among the distinct texts of the level.

    Args:
        options: A file for each domain.
        sources: For each domain the source ids of its N items, in the order of the item ids.

    Raises:
        CatalexError: When a file cannot be used (see `read_rows`), an item of the catalogue has no row or
            several, a row belongs to no item, or the domains differ in the number of codes.
    """
    read = {name: read_rows(chosen) for name, chosen in options.items()}
    columns = {
        name: list(zip(*(rows.codes[row] for row in _rows_of_items(rows, sources[name])), strict=True))
        for name, rows in read.items()
    }
    first = next(iter(columns))
    for name, levels in columns.items():
        if len(levels) != len(columns[first]):
            raise user_error(
                f"identifiers of {name!r} and {first!r} differ in the number of codes",
                place=read[name].place,
                value=len(levels),
                allowed=f"{len(columns[first])}",
                remedy="use a recipe for each domain",
            )
    tables = [
        number_codes({text for level in levels for text in level})
        for levels in zip(*columns.values(), strict=True)
    ]
    codes = {
        name: np.array(
            [[table[text] for text in level] for table, level in zip(tables, levels, strict=True)], np.int32
        ).T.copy()
        for name, levels in columns.items()
    }
    sizes = tuple(max(table.values()) + 1 for table in tables)
    space = CodeSpace(sizes, tuple(range(len(sizes))))
    return Published(codes, space, {name: rows.method for name, rows in read.items()})


def read_rows(options: PublishedOptions) -> Rows:
    """The rows of the chosen method, before they are compared with a catalogue.

    Raises:
        CatalexError: When the file is missing, damaged or lacks a column, the method is not in it, ids or
            codes are of another type, or an item has no codes or another number of codes than the first.
    """
    table = read_parquet(options.file)
    for name in (ITEM_ID, CODES):
        if name not in table.column_names:
            raise user_error(
                f"column {name!r} is missing",
                place=options.file,
                allowed=table.column_names,
                remedy="write it as the documentation of published identifiers says",
            )
    method, chosen = _of_method(table, options)
    place = f"{options.file}, method {method!r}"
    ids: list[Any] = table[ITEM_ID].take(chosen).to_pylist()
    codes: list[Any] = table[CODES].take(chosen).to_pylist()
    if not ids:
        raise user_error("there are no rows", place=place, remedy="check the file")
    for kind in (int, str):
        if isinstance(ids[0], kind) and all(isinstance(item, kind) for item in ids):
            break
    else:
        raise user_error(
            "column 'item_id' holds something else than integers or strings",
            place=place,
            value=next((item for item in ids if not isinstance(item, int | str)), ids[0]),
            remedy="write item ids of the prepared domain, or source ids as strings",
        )
    for item, row in zip(ids, codes, strict=True):
        if not isinstance(row, list) or not row or not all(map(_is_code, row)):
            raise user_error(
                f"item {item!r} has no full identifier",
                place=place,
                value=row,
                allowed="a list of strings or non-negative integers",
                remedy="give every item all of its codes",
            )
        if len(row) != len(codes[0]):
            raise user_error(
                f"item {item!r} has another number of codes than the first item",
                place=place,
                value=len(row),
                allowed=f"{len(codes[0])}",
                remedy="give every item all of its codes",
            )
    return Rows(method, ids, [[str(code) for code in row] for row in codes], place)


def number_codes(texts: Collection[str]) -> dict[str, int]:
    """A number for each distinct code of one level: the one written in it, else its rank; see
    `read_published`.

    >>> number_codes({"<b_3>", "<b_200>"})["<b_200>"]
    200
    >>> number_codes({"red", "blue"})
    {'blue': 0, 'red': 1}
    """
    found = [NUMBER.fullmatch(text) for text in sorted(texts)]
    numbers = [int(match[1]) for match in found if match is not None]
    if len(numbers) == len(found) == len(set(numbers)) and max(numbers) < LARGEST:
        return dict(zip(sorted(texts), numbers, strict=True))
    return {text: rank for rank, text in enumerate(sorted(texts))}


def make_unique(published: Published, method: str) -> tuple[dict[str, Codes], CodeSpace]:
    """Identifiers of each domain that no two items share, and their code space.

    With "digit" a last level is appended that numbers the items of each group in the order of their ids. It
    has `DIGITS` codes, or as many as the largest group needs: published identifiers may collide more than a
    tokenizer's own are allowed to.

    Raises:
        CatalexError: With "none", when two items of a domain share an identifier.
    """
    lookup(METHODS, method, "conflict method of published identifiers")
    if method == "none":
        for name, codes in published.codes.items():
            found = collisions(codes)
            if found.distinct < found.items:
                raise user_error(
                    f"{found.items:,} items have {found.distinct:,} distinct identifiers, but only unique "
                    "ones can be decoded into items",
                    place=f"tokenize.published.{name}",
                    value=f"conflicts: {method}",
                    allowed="digit",
                    remedy="set tokenize.conflicts: digit",
                )
        return dict(published.codes), published.space
    digits = {name: _within_groups(codes) for name, codes in published.codes.items()}
    size = max(DIGITS, *(int(digit.max()) + 1 for digit in digits.values()))
    unique = {
        name: np.concatenate([codes, digits[name][:, None].astype(np.int32)], axis=1)
        for name, codes in published.codes.items()
    }
    space = published.space
    return unique, CodeSpace((*space.sizes, size), (*space.groups, max(space.groups) + 1))


def _within_groups(codes: Codes) -> Ints:
    """``(N,)`` number of each item among those with the same codes ``(N, L)``, by item id from 0."""
    groups = prefix_groups(codes, codes.shape[1])
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    found = np.empty(len(codes), np.int64)
    found[order] = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    return found


def _is_code(code: object) -> bool:
    return code >= 0 if isinstance(code, int) else isinstance(code, str)


def _of_method(table: pa.Table, options: PublishedOptions) -> tuple[str, Ints]:
    """Name of the chosen method, and the rows that are its own."""
    if METHOD not in table.column_names:
        if options.method is not None:
            raise user_error(
                "the file has no column 'method' to choose rows by",
                place=options.file,
                value=options.method,
                remedy="leave out 'method'",
            )
        return options.file.stem, np.arange(table.num_rows)
    makers = [str(method) for method in table[METHOD].to_pylist()]
    present = sorted(set(makers))
    method = options.method
    if method is None and len(present) == 1:
        method = present[0]
    if method is None or method not in present:
        raise user_error(
            "the file holds identifiers of several methods"
            if method is None
            else f"the file holds no identifiers of method {method!r}",
            place=options.file,
            allowed=present or None,
            remedy="choose one of them with 'method'",
        )
    return method, np.array([row for row, maker in enumerate(makers) if maker == method], np.int64)


def _rows_of_items(rows: Rows, sources: Sequence[str | None]) -> list[int]:
    """The row of each of the N items of the catalogue."""
    count = len(sources)
    written = isinstance(rows.ids[0], str)
    number = {source: item for item, source in enumerate(sources)}
    if written and (len(number) < count or None in number):
        raise user_error(
            "the file names items by source ids, but in this catalogue they are missing or not unique",
            place=rows.place,
            remedy="write the item ids of the prepared domain",
        )
    found: dict[int, int] = {}
    for row, name in enumerate(rows.ids):
        item = number.get(name, -1) if isinstance(name, str) else name
        if not 0 <= item < count:
            raise user_error(
                f"the catalogue has no item with this {'source' if written else 'item'} id",
                place=rows.place,
                value=name,
                allowed=f"the {count} source ids of the catalogue" if written else f"0 to {count - 1}",
                remedy="give identifiers of the very items that 'catalex prepare' kept",
            )
        if item in found:
            raise user_error(
                f"item {name!r} has more than one row", place=rows.place, remedy="give every item one row"
            )
        found[item] = row
    if len(found) < count:
        item = next(item for item in range(count) if item not in found)
        raise user_error(
            f"item {(sources[item] if written else item)!r} has no row",
            place=rows.place,
            value=f"{len(found)} of {count} items",
            remedy="give identifiers of the very items that 'catalex prepare' kept",
        )
    return [found[item] for item in range(count)]

"""Ranked lists that were made elsewhere, judged as our own: the same cases, metrics and checks.

A file has one of two layouts, as Parquet or CSV, in the numbers of the prepared domain:

- wide: ``user_id`` and ``items``, the recommended items best first (a list in Parquet; in CSV separated by
  spaces);
- long: ``user_id``, ``item_id`` and ``rank``, one row a recommended item, 1 the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from catalex.artifacts import read_parquet
from catalex.data.histories import Cases, Histories
from catalex.errors import user_error
from catalex.evaluation.protocol import DEPTH
from catalex.evaluation.results import Result
from catalex.types import Ints

ABSENT = -1


def judge_lists(
    path: Path,
    cases: Cases,
    *,
    items: int,
    system: str,
    domain: str,
    split_id: str,
    ks: Sequence[int] = (5, 10),
    exclude_history: bool = False,
) -> Result:
    """The result of a file of ranked lists on the cases of a domain.

    A target that is not in its list was not found: the list should be as long as the longest K.

    Args:
        path: ``.parquet`` or ``.csv``.
        cases: Test cases; the file has a list for each of their users, and for nobody else.
        items: N, items of the catalogue.
        system: Name of the system in tables.
        domain: Name of the domain.
        split_id: Of the domain; that the lists were made without its test items is the maker's word.
        ks: List lengths to report.
        exclude_history: Leave what a user already has out of the lists, as `evaluate` does.

    Raises:
        CatalexError: When the file cannot be read, users are missing or unknown, or a list is shorter than
            the longest K, names an item twice or an item that does not exist.
    """
    users, lists = read_lists(path)
    _check_users(path, users, cases.users)
    order = np.searchsorted(users, cases.users)
    top = lists[order]
    _check_items(path, top, cases.users, items, max(*ks, 5, 10))
    if exclude_history:
        top = _without(top, cases.known, items)
    hits = top == cases.targets[:, None]
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int64)
    kept = top[:, : max(DEPTH, *ks)]
    return Result(system, domain, split_id, 0, tuple(sorted(ks)), cases.users, cases.targets, ranks, kept)


def _without(top: Ints, known: Histories, items: int) -> Ints:
    """``(B, k)`` lists without the items of `known`; the later ones move up."""
    rows = np.repeat(np.arange(len(known)), known.lengths)
    own = np.arange(len(top))[:, None] * items + top
    gone = (top == ABSENT) | np.isin(own, rows * items + known.items)
    order = np.argsort(gone, axis=1, kind="stable")
    return np.take_along_axis(np.where(gone, ABSENT, top), order, axis=1)


def read_lists(path: Path) -> tuple[Ints, Ints]:
    """Users ``(B,)`` ascending, and their items ``(B, k)`` best first, -1 behind the end of a short list.

    Raises:
        CatalexError: When the file cannot be read or has neither layout, or a user stands twice.
    """
    table = _read(path)
    names = set(table.column_names)
    if {"user_id", "items"} <= names:
        users, rows = _whole(table, "user_id", path), _wide(table, path)
    elif {"user_id", "item_id", "rank"} <= names:
        users, rows = _long(table, path)
    else:
        raise user_error(
            "the file has neither layout of ranked lists",
            place=path,
            value=table.column_names,
            allowed="user_id and items, or user_id, item_id and rank",
            remedy="rename its columns",
        )
    order = np.argsort(users, kind="stable")
    users = users[order]
    twice = np.flatnonzero(users[1:] == users[:-1])
    if len(twice):
        raise user_error("a user has two lists", place=path, value=int(users[twice[0]]), remedy="keep one")
    lengths = np.array([len(row) for row in rows], np.int64)
    padded = np.full((len(rows), int(lengths.max(initial=0))), ABSENT, np.int64)
    inside = np.arange(padded.shape[1]) < lengths[:, None]
    padded[inside] = np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)
    return users, padded[order]


def _read(path: Path) -> pa.Table:
    if path.suffix != ".csv":
        return read_parquet(path)
    try:
        return pa.csv.read_csv(path)
    except FileNotFoundError:
        raise user_error("the file does not exist", place=path, remedy="check the path") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise user_error(f"the file is not readable CSV ({reason})", place=path) from None


def _whole(table: pa.Table, column: str, path: Path) -> Ints:
    """A column of whole numbers without gaps."""
    found = table[column]
    if not pa.types.is_integer(found.type) or found.null_count:
        raise user_error(
            f"column {column!r} does not hold whole numbers only",
            place=path,
            value=str(found.type),
            remedy="use the user and item numbers of the prepared domain, not its source ids",
        )
    values: Ints = found.to_numpy().astype(np.int64)
    return values


def _wide(table: pa.Table, path: Path) -> list[Ints]:
    column: Any = table["items"]
    if pa.types.is_string(column.type) or pa.types.is_integer(column.type):
        texts = [str(text or "").split() for text in column.to_pylist()]
        bad = next((word for words in texts for word in words if not word.lstrip("-").isdigit()), None)
        if bad is not None:
            raise user_error(
                "an item is not a number", place=path, value=bad, remedy="separate item numbers by spaces"
            )
        return [np.array(words, np.int64) for words in texts]
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)) or not pa.types.is_integer(
        column.type.value_type
    ):
        raise user_error(
            "column 'items' does not hold lists of item numbers", place=path, value=str(column.type)
        )
    return [np.array(row or (), np.int64) for row in column.to_pylist()]


def _long(table: pa.Table, path: Path) -> tuple[Ints, list[Ints]]:
    users, items, ranks = (_whole(table, name, path) for name in ("user_id", "item_id", "rank"))
    order = np.lexsort((ranks, users))
    users, items, ranks = users[order], items[order], ranks[order]
    same = (users[1:] == users[:-1]) & (ranks[1:] == ranks[:-1])
    if same.any():
        raise user_error(
            "a user has two items of one rank",
            place=path,
            value=(int(users[1:][same][0]), int(ranks[1:][same][0])),
            remedy="number each list 1, 2, 3, ..",
        )
    found, starts = np.unique(users, return_index=True)
    return found, np.split(items, starts[1:])


def _check_users(path: Path, users: Ints, wanted: Ints) -> None:
    missing, unknown = np.setdiff1d(wanted, users), np.setdiff1d(users, wanted)
    if len(missing):
        raise user_error(
            f"{len(missing):,} of {len(wanted):,} test users have no list",
            place=path,
            value=int(missing[0]),
            remedy="rank for every test user: leaving out the hard ones would flatter the system",
        )
    if len(unknown):
        raise user_error(
            f"{len(unknown):,} users of the file are no test users",
            place=path,
            value=int(unknown[0]),
            remedy="check that the file belongs to this domain and split",
        )


def _check_items(path: Path, top: Ints, users: Ints, items: int, needed: int) -> None:
    filled = top != ABSENT
    wrong = filled & ((top < 0) | (top >= items))
    short = filled.sum(axis=1) < min(needed, items)
    repeated = np.sort(np.where(filled, top, -1 - np.arange(top.shape[1])), axis=1)
    twice = (repeated[:, 1:] == repeated[:, :-1]).any(axis=1)
    problems = (
        (wrong.any(axis=1), "names an item that does not exist", f"item numbers 0 to {items - 1}"),
        (short, "is shorter than the longest K", f"at least {min(needed, items)} items"),
        (twice, "names an item twice", "each item at most once"),
    )
    for rows, what, allowed in problems:
        if rows.any():
            raise user_error(
                f"the list of {int(rows.sum()):,} users {what}",
                place=path,
                value=f"user {users[rows][0]}",
                allowed=allowed,
            )

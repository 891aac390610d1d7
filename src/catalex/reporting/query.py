"""The small language of the tables in documents: which ledger lines, as which rows and columns.

A query is the name of a ledger followed by ``key=value`` words (quotes as in a shell)::

    results domain=beauty,toys rows=system,tokenizer columns=recall@10,ndcg@10 by=domain sort=-ndcg@10
    benchmarks name=decode* columns=name,value,unit,ratio

A word whose key is a field of the ledger keeps the lines with one of the values; ``*`` and ``?`` stand for
any characters, ``-`` for an empty field, and ``key!=value`` leaves lines out. The other words are `CONTROLS`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

from catalex.errors import nearest, user_error
from catalex.reporting.ledger import BenchmarkLine, LedgerLine, ResultLine

Line = TypeVar("Line", bound=LedgerLine)

CONTROLS = {
    "rows": "fields that name a row, by commas",
    "columns": "fields shown as columns, by commas",
    "by": "field whose every value gets a table of its own",
    "across": "field whose every value gets columns of its own",
    "sort": "field that orders the rows; -field for the largest first",
    "digits": "digits after the point of shares and other fractions",
}
"""Words that shape the table, and what they mean."""

EMPTY = "-"
"""How an empty field is written in queries and shown in tables."""


@dataclass(frozen=True)
class Kind(Generic[Line]):
    """What a query may ask of one ledger.

    Attributes:
        name: First word of its queries, and stem of its file.
        line: Model of its lines.
        identity: Fields that tell measurements apart; of equal ones the newest is shown.
        rows, columns: What is shown when the query does not say.
        unasked: Fields that are empty in every line shown, unless the query names them: what is measured in
            another way comes into no table by itself.
    """

    name: str
    line: type[Line]
    identity: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    unasked: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, str]:
        """Attribute of a line by its name in the file (``recall@5`` -> ``recall_at_5``)."""
        return self.line.keys()


RESULTS: Kind[ResultLine] = Kind(
    "results",
    ResultLine,
    identity=(
        "domain",
        "split",
        "system",
        "tokenizer",
        "encoder",
        "pretrained_on",
        "excluded",
        "note",
        "seed",
    ),
    rows=("system", "tokenizer"),
    columns=("recall@5", "recall@10", "ndcg@5", "ndcg@10"),
    unasked=("excluded",),
)
BENCHMARKS: Kind[BenchmarkLine] = Kind(
    "benchmarks",
    BenchmarkLine,
    identity=("name", "unit", "baseline", "machine"),
    rows=("name", "baseline", "machine"),
    columns=("value", "unit", "baseline_value", "ratio"),
)
KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in (RESULTS, BENCHMARKS)}
"""The ledgers by the first word of a query."""


@dataclass(frozen=True)
class Filter:
    """Keeps lines whose field matches one of the patterns, or none of them when `negated`."""

    key: str
    patterns: tuple[str, ...]
    negated: bool

    def keeps(self, value: object) -> bool:
        """Whether a line with this value of the field stays."""
        text = shown(value)
        return any(_matches(text, pattern) for pattern in self.patterns) != self.negated


@dataclass(frozen=True)
class Query:
    """A parsed query; `fields` below are names as in the file."""

    kind: Kind[Any]
    filters: tuple[Filter, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    by: str | None = None
    across: str | None = None
    sort: str | None = None
    descending: bool = False
    digits: int = 4
    listed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values that a filter lists, which also give the order of rows, tables and columns."""

    def value(self, line: LedgerLine, key: str) -> Any:
        """The field `key` of a line."""
        return getattr(line, self.kind.fields[key])

    def select(self, lines: Sequence[LedgerLine]) -> list[LedgerLine]:
        """The lines that pass every filter, in their order."""
        return [line for line in lines if all(f.keeps(self.value(line, f.key)) for f in self.filters)]

    def rank(self, key: str, value: object) -> tuple[int, str]:
        """Sort key of a value: its place in the filter that lists it, then its text."""
        text = shown(value)
        patterns = self.listed.get(key, ())
        places = [i for i, pattern in enumerate(patterns) if _matches(text, pattern)]
        return (places[0] if places else len(patterns), text)


def _matches(text: str, pattern: str) -> bool:
    """Whether a pattern with ``*`` and ``?`` matches; brackets stand for themselves."""
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def shown(value: object) -> str:
    """A field as text; empty ones as `EMPTY`."""
    return EMPTY if value is None or value == "" else str(value)


def parse(text: str, place: str) -> Query:
    """Read a query that stands at `place`.

    Raises:
        CatalexError: For an unknown ledger, key or column (with the nearest name), or a word that is not
            ``key=value``.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise user_error(f"the table query has an open quote ({error})", place=place, value=text) from None
    if not words:
        raise user_error(
            "the table query is empty", place=place, remedy="begin it with the ledger, 'results' say"
        )
    kind: Kind[Any] = KINDS[_known(words[0], KINDS, "ledger", place)]
    filters: list[Filter] = []
    controls: dict[str, str] = {}
    for word in words[1:]:
        key, mark, value = word.partition("=")
        if not mark or not value:
            raise user_error("a word of the table query is not key=value", place=place, value=word)
        name = _known(key.removesuffix("!"), [*CONTROLS, *kind.fields], "key", place)
        if name in controls:
            raise user_error(f"the table query gives {name!r} twice", place=place, value=word)
        if name in CONTROLS:
            controls[name] = value
        else:
            filters.append(Filter(name, tuple(value.split(",")), key.endswith("!")))
    return _compose(kind, filters, controls, place)


def _compose(kind: Kind[Any], filters: list[Filter], controls: Mapping[str, str], place: str) -> Query:
    def fields(control: str, default: tuple[str, ...]) -> tuple[str, ...]:
        names = controls[control].split(",") if control in controls else default
        return tuple(_known(name, kind.fields, "column", place) for name in names)

    apart = {name: fields(name, ())[0] if name in controls else None for name in ("by", "across")}
    rows = tuple(name for name in fields("rows", kind.rows) if name not in apart.values())
    columns = tuple(name for name in fields("columns", kind.columns) if name not in (*rows, *apart.values()))
    if not rows or not columns:
        raise user_error(
            "the table query leaves no rows or no columns", place=place, remedy="name other fields"
        )
    sort = controls.get("sort", "")
    if sort:
        _known(sort.removeprefix("-"), [*rows, *columns], "column to sort by", place)
    digits = controls.get("digits", "4")
    if not digits.isdecimal() or len(digits) > 1:
        raise user_error("digits is not a number of digits", place=place, value=digits, allowed="0 to 9")
    named = {*rows, *columns, *apart.values(), *(f.key for f in filters)}
    filters = [*filters, *(Filter(key, (EMPTY,), False) for key in kind.unasked if key not in named)]
    return Query(
        kind, tuple(filters), rows, columns, apart["by"], apart["across"],
        sort.removeprefix("-") or None, sort.startswith("-"), int(digits),
        {f.key: f.patterns for f in filters if not f.negated},
    )  # fmt: skip


def _known(name: str, choices: Mapping[str, Any] | Sequence[str], noun: str, place: str) -> str:
    if name in choices:
        return name
    close = nearest(name, choices)
    raise user_error(
        f"unknown {noun} {name!r} in the table query",
        place=place,
        allowed=list(choices),
        remedy=f"write {close!r}" if close else f"use one of the listed {noun}s",
    )

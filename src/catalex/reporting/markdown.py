"""Tables of documents, rendered from the ledgers between their markers, and checked against them.

A document holds ``<!-- table: QUERY -->``, then the table, then ``<!-- /table -->``, each marker on a line of
its own. Rendering replaces what stands between. Markers inside fenced code are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from catalex.artifacts import write_text
from catalex.errors import user_error
from catalex.progress import say
from catalex.reporting.ledger import LedgerLine, newest, read
from catalex.reporting.query import EMPTY, KINDS, Query, parse, shown
from catalex.reporting.tables import MISSING, escape, markdown_table, number, spread

_OPEN = re.compile(r"<!--\s*table:\s*(.*?)\s*-->")
_CLOSE = re.compile(r"<!--\s*/table\s*-->")
_FENCE = re.compile(r"\s*(```|~~~)")

NOTHING_YET = "*Nothing measured yet for this table.*"
SEEDS_LEGEND = "± is the standard deviation over seeds; their number stands in brackets."
BEST_LEGEND = "Bold: the best of a column."

Ledgers = Mapping[str, Sequence[LedgerLine]]
"""Lines of each ledger by the first word of its queries."""


def read_ledgers(folder: Path) -> dict[str, list[Any]]:
    """The ledgers of a folder (``results.jsonl``, ``benchmarks.jsonl``); one not there yet is empty."""
    found = {}
    for name, kind in KINDS.items():
        path = folder / f"{name}.jsonl"
        found[name] = read(path, kind.line) if path.is_file() else []
    return found


def render_file(path: Path, ledgers: Ledgers) -> bool:
    """Bring the tables of one document up to date; returns whether it changed."""
    before = _read(path)
    after = render_document(before, ledgers, str(path))
    if after != before:
        write_text(path, after)
    return after != before


def difference(path: Path, ledgers: Ledgers) -> str | None:
    """Where a document differs first from its ledger, as one sentence; None when it agrees."""
    before = _read(path)
    after = render_document(before, ledgers, str(path))
    if before == after:
        return None
    old, new = before.splitlines(), after.splitlines()
    same = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
    )
    found, wanted = (lines[same] if same < len(lines) else "(end of file)" for lines in (old, new))
    return f"{path}, line {same + 1}: differs from its ledger: found {found!r}, the ledger gives {wanted!r}"


def render_document(text: str, ledgers: Ledgers, place: str) -> str:
    """`text` with every marked table made anew.

    Raises:
        CatalexError: When a marker lacks its partner or a query is wrong; the message names the line.
    """
    output: list[str] = []
    query, opened, fence = None, 0, None
    for number_of_line, line in enumerate(text.split("\n"), start=1):
        here = f"{place}, line {number_of_line}"
        mark = _FENCE.match(line)
        if query is None and mark and fence in (None, mark[1]):
            fence = mark[1] if fence is None else None
        begins = _OPEN.fullmatch(line.strip()) if fence is None else None
        ends = _CLOSE.fullmatch(line.strip()) if fence is None else None
        if (begins and query is not None) or (ends and query is None):
            raise user_error(
                "a table marker lacks its partner", place=here, remedy="close each with <!-- /table -->"
            )
        if begins:
            query, opened = parse(begins[1], here), number_of_line
            output.append(line)
        elif ends and query is not None:
            output += ["", *render_query(query, ledgers, f"{place}, line {opened}"), "", line]
            query = None
        elif query is None:
            output.append(line)
    if query is not None:
        raise user_error(
            "the table is not closed", place=f"{place}, line {opened}", remedy="add <!-- /table -->"
        )
    return "\n".join(output)


def render_query(query: Query, ledgers: Ledgers, place: str) -> list[str]:
    """Lines of Markdown for one query: a table, or one for each value of `by`."""
    attributes = [query.kind.fields[key] for key in query.kind.identity]
    lines = query.select(newest(ledgers.get(query.kind.name, ()), attributes))
    if not lines:
        if ledgers.get(query.kind.name):
            say(f"{place}: no line of the ledger matches the table query")
        return [NOTHING_YET]
    blocks: list[str] = []
    for value in _values(query, lines, query.by):
        chosen = [line for line in lines if query.by is None or shown(query.value(line, query.by)) == value]
        table = _table(query, chosen, place)
        blocks += ["", f"**{escape(value)}**", "", *table] if query.by else table
    if not blocks[0]:
        blocks = blocks[1:]
    legend = [BEST_LEGEND] if any("**" in line and line.startswith("|") for line in blocks) else []
    if any("±" in line for line in blocks):
        legend.append(SEEDS_LEGEND)
    return [*blocks, "", " ".join(legend)] if legend else blocks


def _table(query: Query, lines: Sequence[LedgerLine], place: str) -> list[str]:
    groups = _values(query, lines, query.across)
    cells: dict[tuple[str, ...], dict[str, list[LedgerLine]]] = {}
    for line in lines:
        name = tuple(shown(query.value(line, key)) for key in query.rows)
        group = shown(query.value(line, query.across)) if query.across else ""
        cells.setdefault(name, {}).setdefault(group, []).append(line)
    for row in cells.values():
        for group_lines in row.values():
            _refuse_mixture(query, group_lines, place)
    names = _ordered(query, cells)
    grid = [
        [_cell(query, cells[name].get(g, []), column) for g in groups for column in query.columns]
        for name in names
    ]
    metrics = ["@" in column for _ in groups for column in query.columns]
    body = [
        [*(escape(part) if part != EMPTY else MISSING for part in name), *row]
        for name, row in zip(names, _embolden(grid, metrics), strict=True)
    ]
    header = [*query.rows, *(f"{escape(g)} {column}".strip() for g in groups for column in query.columns)]
    return markdown_table(header, body, text_columns=len(query.rows))


def _refuse_mixture(query: Query, lines: Sequence[LedgerLine], place: str) -> None:
    """A cell may average over seeds and nothing else; in all else that tells lines apart they must agree."""
    for key in query.kind.identity:
        values = sorted({shown(query.value(line, key)) for line in lines})
        if key != "seed" and len(values) > 1:
            raise user_error(
                f"a cell of the table would mix measurements that differ in {key!r}",
                place=place,
                value=", ".join(values),
                remedy=f"add {key!r} to rows, or choose one with {key}=...",
            )


def _cell(query: Query, lines: Sequence[LedgerLine], column: str) -> str:
    values = [query.value(line, column) for line in lines]
    present = [value for value in values if value is not None and value != ""]
    if not present:
        return MISSING
    if all(isinstance(value, float) for value in present):
        return spread(present, query.digits)
    if column == "date":
        return str(max(present))[:10]
    return ", ".join(dict.fromkeys(number(v) if isinstance(v, int) else escape(str(v)) for v in present))


def _embolden(grid: list[list[str]], metrics: Sequence[bool]) -> list[list[str]]:
    """Mark the largest mean of every metric column, as shown; ties are all marked, a lone row is not."""
    for i in (i for i, is_metric in enumerate(metrics) if is_metric):
        means = [float(row[i].split()[0]) if row[i] != MISSING else -1.0 for row in grid]
        if sum(mean >= 0 for mean in means) > 1:
            for row, mean in zip(grid, means, strict=True):
                row[i] = f"**{row[i]}**" if mean == max(means) else row[i]
    return grid


def _values(query: Query, lines: Iterable[LedgerLine], key: str | None) -> list[str]:
    if key is None:
        return [""]
    return sorted({shown(query.value(line, key)) for line in lines}, key=lambda value: query.rank(key, value))


def _ordered(
    query: Query, cells: Mapping[tuple[str, ...], Mapping[str, list[LedgerLine]]]
) -> list[tuple[str, ...]]:
    """Row names in the order of the filters that list them, or by the column to sort by."""
    names = sorted(
        cells, key=lambda name: [query.rank(k, part) for k, part in zip(query.rows, name, strict=True)]
    )
    if query.sort is None:
        return names

    def value(name: tuple[str, ...]) -> tuple[float, str]:
        if query.sort in query.rows:
            return 0.0, name[query.rows.index(query.sort)]
        found = [query.value(line, str(query.sort)) for lines in cells[name].values() for line in lines]
        numbers = [float(v) for v in found if isinstance(v, int | float)]
        if numbers:
            return sum(numbers) / len(numbers), ""
        return float("-inf"), " ".join(shown(v) for v in found)

    return sorted(names, key=value, reverse=query.descending)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise user_error("the document does not exist", place=path, remedy="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise user_error(
            f"the document cannot be read ({error})", place=path, remedy="check the path"
        ) from None

"""The report of a run as one self-contained page, as Markdown, and as the JSON both are made from."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalex.artifacts import write_json, write_text
from catalex.errors import user_error
from catalex.progress import say
from catalex.reporting.blocks import (
    Block,
    Cards,
    Code,
    Figure,
    Heading,
    Paragraph,
    Points,
    Recommendation,
    Section,
    Table,
)
from catalex.reporting.sections import SECTIONS
from catalex.reporting.tables import escape, markdown_table

HTML_FILE, JSON_FILE, MARKDOWN_FILE = "report.html", "report.json", "report.md"
TEMPLATES = Path(__file__).parent / "templates"
REMEDY = "install the extra with: pip install 'catalex[report]'"


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.md`` and ``report.html`` into `folder`; returns the files written.

    Without jinja2 and matplotlib (extra ``report``) the page is left out, and one line says how to get it.
    The same report gives the same bytes.

    Args:
        report: See `catalex.reporting.structure.Report`.
        folder: Made when missing.
    """
    values = plain(report)
    written = [folder / JSON_FILE, folder / MARKDOWN_FILE]
    write_json(written[0], values)
    write_text(written[1], render_markdown(values))
    missing = _missing_packages()
    if missing:
        say(f"{folder / HTML_FILE} was not written, it needs {' and '.join(missing)}: {REMEDY}")
        return written
    write_text(folder / HTML_FILE, render_html(values))
    return [*written, folder / HTML_FILE]


def render_html(report: Mapping[str, Any]) -> str:
    """The page: one file without any reference to the network, plots inline.

    Raises:
        CatalexError: When jinja2 or matplotlib is not installed.
    """
    missing = _missing_packages()
    if missing:
        raise user_error(f"the page needs {' and '.join(missing)}", remedy=REMEDY)
    import jinja2
    import markupsafe

    from catalex.reporting.plots import with_prefix

    def picture(figure: Figure) -> markupsafe.Markup:
        # The one place that escapes nothing: the SVG comes from matplotlib, which has escaped its texts.
        return markupsafe.Markup(with_prefix(figure.draw(), f"plot-{figure.name}"))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = markupsafe.Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    page = environment.get_template("report.html.j2")
    values = plain(report)
    text = page.render(
        name=_name(values), made=_made(values), sections=_sections(values), style=style, picture=picture
    )
    return text.strip() + "\n"


def render_markdown(report: Mapping[str, Any]) -> str:
    """The same sections, tables and numbers as Markdown; plots are told in words."""
    values = plain(report)
    lines = [f"# catalex report: {escape(_name(values))}", ""]
    if _made(values):
        lines += [escape(_made(values)), ""]
    for section in _sections(values):
        lines += [f"## {escape(section.title)}", ""]
        for block in section.blocks:
            lines += [*_markdown(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def plain(value: Any) -> Any:
    """A value as strict JSON: NumPy numbers and arrays as Python's, what is not a finite number as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return [plain(inner) for inner in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _sections(report: Mapping[str, Any]) -> list[Section]:
    return [make(report) for make in SECTIONS]


def _name(report: Mapping[str, Any]) -> str:
    return str(report.get("name") or "unnamed run")


def _made(report: Mapping[str, Any]) -> str:
    """When and from which commit, as far as the report says."""
    environment = report.get("environment") or {}
    parts = [
        str(environment.get("date") or ""),
        f"commit {environment['commit']}" if environment.get("commit") else "",
    ]
    return ", ".join(part for part in parts if part)


def _missing_packages() -> list[str]:
    return [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]


def _markdown(block: Block) -> list[str]:
    """Lines of one block."""
    if isinstance(block, Paragraph):
        return [f"**{escape(block.text)}**" if block.strong else escape(block.text)]
    if isinstance(block, Heading):
        return [f"### {escape(block.text)}"]
    if isinstance(block, Points):
        return [f"- {escape(point)}" for point in block.points]
    if isinstance(block, Figure):
        return [f"*Plot ({HTML_FILE}): {escape(block.caption)}* {escape(block.alternative)}."]
    if isinstance(block, Code):
        fence = "`" * max(3, _longest_run(block.text) + 1)
        return [f"{escape(block.caption)}:", "", fence, *block.text.splitlines(), fence]
    if isinstance(block, Table):
        return [f"**{escape(block.caption)}**", "", *_table(block)]
    if isinstance(block, Cards):
        return _cards(block)
    return _recommendation(block)


def _table(table: Table) -> list[str]:
    rows = []
    for row in table.rows:
        texts = [f"**{escape(cell.text)}**" if cell.strong else escape(cell.text) for cell in row]
        rows.append(
            [" ".join(filter(None, (text, cell.mark))) for text, cell in zip(texts, row, strict=True)]
        )
    return markdown_table([escape(name) for name in table.header], rows, table.text_columns)


def _cards(block: Cards) -> list[str]:
    lines = [f"**{escape(block.heading)}**", "", escape(block.text), ""]
    for card in block.cards:
        title = f"**{escape(card.title)}**" if card.strong else escape(card.title)
        lines.append(f"- {title}" + (f" ({escape(card.note)})" if card.note else ""))
    return lines


def _recommendation(block: Recommendation) -> list[str]:
    lines = [f"**{escape(block.heading)}**", "", "History, oldest first:", ""]
    lines += [f"- {escape(title)}" for title in block.history]
    outcome = f"place {block.rank}" if block.rank else "not recommended"
    lines += ["", f"Chosen next: {escape(block.target)} ({outcome})", "", "Recommended:", ""]
    for place, title in enumerate(block.recommended, start=1):
        lines.append(f"{place}. {escape(title)}" + (" **(hit)**" if place == block.rank else ""))
    return lines


def _longest_run(text: str) -> int:
    """Longest run of backticks in `text`."""
    return max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)


def read_report(path: Path) -> dict[str, Any]:
    """The mapping that ``report.json`` holds.

    Raises:
        CatalexError: When the file is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise user_error(
            f"the report cannot be read ({error})", place=path, remedy="run 'catalex report'"
        ) from None
    return dict(values)

"""The report: a well-formed page of its own, the same numbers in every format, gaps said aloud."""

from __future__ import annotations

import builtins
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalex.errors import CatalexError
from catalex.reporting import plots
from catalex.reporting.report import plain, read_report, render_html, render_markdown, write_report
from catalex.reporting.sections import SECTIONS
from catalex.reporting.sections.examples import place_of_target
from catalex.reporting.sections.summary import duration

VOID = {"meta", "link", "br", "hr", "img", "input", "use"}


class Page(HTMLParser):
    """Collects tags and refuses bad nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [
            value or "" for _, attributes in self.tags for key, value in attributes.items() if key == name
        ]


@pytest.fixture(scope="module")
def html(shared_report: dict[str, Any]) -> str:
    return render_html(shared_report)


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots have their own tests; drawing them dozens of times here would only take time."""
    monkeypatch.setattr(plots, "_figure", lambda *_: "<svg></svg>")


def test_the_page_is_well_formed_and_accessible(html: str) -> None:
    assert html.startswith("<!DOCTYPE html>")
    page = Page(html)
    names = [tag for tag, _ in page.tags]
    assert names.count("h1") == 1
    assert names.count("h2") == len(SECTIONS)
    assert names.count("table") == names.count("caption") > 8
    plots = [a for tag, a in page.tags if tag == "div" and a.get("role") == "img"]
    assert len(plots) == names.count("svg") == 5
    assert all(len(a["aria-label"] or "") > 40 for a in plots)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)), "two elements share an id"
    assert {link[1:] for link in page.attributes("href")} <= set(ids)


def test_the_page_asks_the_network_for_nothing(html: str) -> None:
    assert not re.search(r"https?:|//[a-z]", html)
    assert not re.search(r"@import|url\((?!#)", html)
    assert {"script", "link", "iframe", "object", "img"}.isdisjoint(tag for tag, _ in Page(html).tags)


def test_titles_are_data_not_markup(report: dict[str, Any]) -> None:
    hostile = "<script>alert(1)</script>"
    report["name"] = hostile
    report["domains"][hostile] = {"items": 1, hostile: "</table>"}
    report["training"][0]["name"] = hostile + "$x_1$"
    report["results"].append(report["results"][0] | {"domain": hostile, "system": hostile})
    page = render_html(report)
    Page(page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    markdown = render_markdown(report)
    assert "<script" not in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,]*(?:\.\d+)?", text))


def test_markdown_and_page_show_the_numbers_of_the_json(report: dict[str, Any], html: str) -> None:
    markdown, page = render_markdown(report), " ".join(Page(html).words)
    shown = [numbers(markdown), numbers(page)]
    grouped: dict[tuple[str, str, str], list[float]] = {}
    for result in json.loads(json.dumps(plain(report)))["results"]:
        for metric, value in result["metrics"].items():
            grouped.setdefault((result["domain"], result["system"], metric), []).append(value)
    for values in grouped.values():
        mean = f"{np.mean(values):.4f}"
        assert all(mean in found for found in shown), mean
        if len(values) > 1:
            whole = f"{mean} ± {np.std(values, ddof=1):.4f} ({len(values)})"
            assert whole in markdown
            assert whole in page
    for fact in report["domains"].values():
        assert all(f"{fact[key]:,}" in found for found in shown for key in ("users", "items", "interactions"))
    tables = numbers("".join(line for line in markdown.splitlines() if line.startswith("|")))
    assert tables <= numbers(page)


def test_leaders_and_losses_are_told(report: dict[str, Any]) -> None:
    text = render_markdown(report)
    assert re.search(r"- beauty: catalex leads with NDCG@10 .*best baseline is transitions", text)
    assert re.search(r"- office: sasrec leads .*best of ours is catalex .*\(significant, Holm", text)
    assert (
        "Where we lose: a baseline has the higher mean in office (Recall@5, Recall@10, NDCG@5, NDCG@10)"
        in text
    )
    assert "no significant difference, seeds disagree in sign" in text
    report["ours"] = ["sasrec", "catalex"]
    assert re.search(r"Where we lose: in no domain", render_markdown(report))
    report["ours"] = ["popularity"]
    assert "a baseline has the higher mean in beauty" in render_markdown(report)
    del report["ours"]
    for result in report["results"]:
        del result["tokenizer"]
    assert "Where we lose" not in render_markdown(report)


def test_significance_marks_stand_beside_the_tested_metric(report: dict[str, Any]) -> None:
    rows = render_markdown(report).splitlines()
    office = [row for row in rows if row.startswith("| sasrec") and "▲" in row]
    assert len(office) == 1
    assert office[0].split("|")[5].strip().endswith("▲")
    assert any(row.startswith("| popularity") and "▼" in row for row in rows)
    assert any(row.startswith("| transitions") and "=" in row for row in rows)


SECTION_KEYS = {
    "domains": "data", "tokenizer": "tokenizer", "prefixes": "prefixes", "training": "curves",
    "results": "accuracy", "examples": "examples", "cost": "cost", "environment": "origin",
}  # fmt: skip


@pytest.mark.parametrize("key", [*SECTION_KEYS, "recipe", "name", "comparisons"])
@pytest.mark.usefixtures("without_plots")
def test_any_part_may_be_missing(report: dict[str, Any], key: str) -> None:
    del report[key]
    Page(render_html(report))
    assert render_markdown(report)


def test_an_empty_report_says_that_nothing_was_run() -> None:
    sections = [make({}) for make in SECTIONS]
    assert [s.anchor for s in sections if not s.missing] == ["summary"]
    page = render_html({})
    Page(page)
    assert page.count("This stage was not run") == len(SECTIONS) - 1
    assert render_markdown({}).count("This stage was not run") == len(SECTIONS) - 1


def test_parts_without_their_details_are_shown(report: dict[str, Any]) -> None:
    sparse = {
        "results": [{"domain": "d", "system": "s", "metrics": {}}, {"domain": "e"}],
        "tokenizer": {"health": {"d": {}}},
        "domains": {"d": {}},
        "training": [{"name": "x", "curves": {"loss": [], "valid_ndcg@10": [None, 0.1]}}],
        "examples": [{"history": []}],
        "cost": [{"stage": "embed"}],
        "comparisons": [{"domain": "d"}],
    }
    Page(render_html(sparse))
    assert "no metric was measured" in render_markdown(sparse)


def test_files_are_written_whole_and_the_same_each_time(report: dict[str, Any], tmp_path: Path) -> None:
    written = write_report(report, tmp_path / "out")
    assert [path.name for path in written] == ["report.json", "report.md", "report.html"]
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_report(report, tmp_path / "out")] == first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    assert read_report(written[0]) == plain(report)


def test_numpy_and_nan_become_plain_json() -> None:
    given = {"a": np.float32(0.5), "b": np.arange(2), "c": float("nan"), "d": (1, Path("x")), 1: {2}}
    assert plain(given) == {"a": 0.5, "b": [0, 1], "c": None, "d": [1, "x"], "1": [2]}


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra_the_rest_is_written(
    package: str,
    report: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real_find, real_import = importlib.util.find_spec, builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(name)
        return real_import(name, *rest, **options)

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real_find(name)
    )
    monkeypatch.setattr(builtins, "__import__", refuse)
    written = write_report(report, tmp_path)
    assert [path.name for path in written] == ["report.json", "report.md"]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert package in told[0]
    assert "pip install 'catalex[report]'" in told[0]
    with pytest.raises(CatalexError, match="Install the extra"):
        render_html(report)


def test_the_recipe_cannot_leave_its_fence(report: dict[str, Any]) -> None:
    report["recipe"] = {"note": "```` # not a heading"}
    assert "`````\nnote:" in render_markdown(report)


def test_places_of_targets() -> None:
    assert place_of_target({"target": "b", "recommended": ["a", "b"]}) == 2
    assert place_of_target({"target": "c", "recommended": ["a", "b"]}) == 0
    assert place_of_target({"target": "a", "recommended": ["a", "a"], "rank": 2}) == 2
    assert place_of_target({"target": "a", "recommended": ["a"], "rank": 7}) == 0


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.21, "3.2 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said

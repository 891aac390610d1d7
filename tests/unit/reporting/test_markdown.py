"""Tables of documents: the query language, the pooling of seeds, and the markers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from catalex.errors import CatalexError
from catalex.reporting.ledger import BenchmarkLine, ResultLine, append
from catalex.reporting.markdown import NOTHING_YET, difference, read_ledgers, render_document, render_file


def result(system: str, level: float, **changes: Any) -> ResultLine:
    base = {
        "date": "2026-01-31T12:00:00Z", "commit": "abc", "machine": "m", "command": "c", "domain": "beauty",
        "split": "test", "system": system, "users": 22363,
        "recall@5": level, "recall@10": level * 2, "ndcg@5": level / 2, "ndcg@10": level,
    }  # fmt: skip
    return ResultLine.parse(base | changes, "here")


LINES = [
    result("sasrec", 0.04, seed=0),
    result("sasrec", 0.05, seed=1),
    result("sasrec", 0.06, seed=2),
    result("tiger", 0.02, tokenizer="rqvae"),
    result("tiger", 0.03, tokenizer="rqvae", date="2026-02-01T00:00:00Z"),
    result("sasrec", 0.01, domain="toys"),
]


def render(query: str, lines: list[Any] = LINES, ledger: str = "results") -> str:
    text = render_document(f"<!-- table: {query} -->\n<!-- /table -->", {ledger: lines}, "doc.md")
    return "\n".join(text.split("\n")[2:-2])


def cells(text: str) -> list[list[str]]:
    """Body of the first table as trimmed cells, header first."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in [rows[0], *rows[2:]]]


def test_seeds_are_pooled_the_newest_wins_and_the_best_is_bold() -> None:
    text = render("results domain=beauty columns=ndcg@10,users")
    assert cells(text) == [
        ["system", "tokenizer", "ndcg@10", "users"],
        ["sasrec", "–", "**0.0500 ± 0.0100 (3)**", "22,363"],
        ["tiger", "rqvae", "0.0300", "22,363"],
    ]
    assert text.endswith(
        "Bold: the best of a column. ± is the standard deviation over seeds; their number stands in brackets."
    )


def test_a_ranking_without_the_history_comes_into_no_table_unasked() -> None:
    lines = [*LINES, result("sasrec", 0.09, excluded="history", date="2026-03-01T00:00:00Z")]
    assert render("results domain=beauty", lines) == render("results domain=beauty")
    asked = cells(render("results domain=beauty excluded=history columns=ndcg@10", lines))
    assert asked[1:] == [["sasrec", "–", "0.0900"]]
    both = cells(render("results domain=beauty system=sasrec rows=excluded columns=ndcg@10", lines))
    assert [row[0] for row in both[1:]] == ["–", "history"]


def test_by_gives_a_table_a_value_and_across_columns() -> None:
    by = render("results rows=system columns=recall@5 by=domain")
    assert by.index("**beauty**") < by.index("**toys**")
    across = cells(render("results rows=system columns=recall@5 across=domain domain=toys,beauty"))
    assert across[0] == ["system", "toys recall@5", "beauty recall@5"]
    assert across[2] == ["tiger", "–", "0.0300"]


def test_filters_order_rows_and_sort_overrides() -> None:
    base = "results domain=beauty rows=system columns=ndcg@10"
    assert [row[0] for row in cells(render(base))[1:]] == ["sasrec", "tiger"]
    assert [row[0] for row in cells(render(base + " system=tiger,sas*"))[1:]] == ["tiger", "sasrec"]
    assert [row[0] for row in cells(render(base + " sort=ndcg@10"))[1:]] == ["tiger", "sasrec"]
    assert [row[0] for row in cells(render(base + " sort=-ndcg@10"))[1:]] == ["sasrec", "tiger"]
    assert [row[0] for row in cells(render(base + " tokenizer=-"))[1:]] == ["sasrec"]
    assert [row[0] for row in cells(render(base + " tokenizer!=-"))[1:]] == ["tiger"]


def test_notes_with_spaces_and_brackets_can_be_chosen() -> None:
    lines = [result("a", 0.01, note="beam [20] wide"), result("a", 0.02)]
    assert cells(render('results rows=system columns=ndcg@10 "note=beam [20] wide"', lines))[1] == [
        "a",
        "0.0100",
    ]


def test_a_cell_never_mixes_configurations() -> None:
    lines = [result("a", 0.01, note="x"), result("a", 0.02, seed=1)]
    with pytest.raises(CatalexError, match="would mix measurements that differ in 'note'"):
        render("results rows=system", lines)
    with pytest.raises(CatalexError, match="'domain'"):
        render("results rows=system system=sasrec")


def test_benchmarks_are_listed() -> None:
    line = BenchmarkLine.parse(
        {
            "name": "decode/b1", "value": 2.1, "unit": "ms", "baseline": "transformers",
            "baseline_value": 63.0, "ratio": 30.0, "machine": "GPU", "commit": "a", "command": "c",
        },
        "here",
    )  # fmt: skip
    found = cells(render("benchmarks name=decode* rows=name,baseline", [line], "benchmarks"))
    assert found == [
        ["name", "baseline", "value", "unit", "baseline_value", "ratio"],
        ["decode/b1", "transformers", "2.10", "ms", "63.0", "30.0"],
    ]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("result", "Write 'results'"),
        ("results domian=beauty", "Write 'domain'"),
        ("results columns=recal@10", "Write 'recall@10'"),
        ("results rows=sistem", "Write 'system'"),
        ("results domain", "not key=value"),
        ("results sort=users", "unknown column to sort by 'users'"),
        ("results digits=many", "digits"),
        ("results rows=system rows=domain", "twice"),
        ('results "note=a', "open quote"),
        ("results columns=domain by=domain", "no rows or no columns"),
    ],
)
def test_wrong_queries_are_explained_with_their_place(query: str, said: str) -> None:
    with pytest.raises(CatalexError) as error:
        render(query)
    assert said in str(error.value)
    assert "doc.md, line 1" in str(error.value)


def test_markers_need_their_partner_and_fences_hide_them() -> None:
    for text in (
        "<!-- table: results -->",
        "<!-- /table -->",
        "<!-- table: results -->\n<!-- table: results -->",
    ):
        with pytest.raises(CatalexError, match=r"doc\.md, line"):
            render_document(text, {}, "doc.md")
    fenced = (
        "```\n<!-- table: nonsense -->\n```\n~~~\n```\n<!-- /table -->\n~~~\n`<!-- /table -->` in a line\n"
    )
    assert render_document(fenced, {}, "doc.md") == fenced


def test_nothing_measured_yet_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert render("results", []) == NOTHING_YET
    assert not capsys.readouterr().err
    assert render("results domain=beuty") == NOTHING_YET
    assert "matches" in capsys.readouterr().err


def test_files_are_rendered_once_and_checked(tmp_path: Path) -> None:
    append(tmp_path / "results.jsonl", LINES[0])
    document = tmp_path / "doc.md"
    document.write_text("# Title\n\n<!-- table: results -->\nstale\n<!-- /table -->\n\nafter\n")
    ledgers = read_ledgers(tmp_path)
    found = difference(document, ledgers)
    assert found is not None
    assert "doc.md, line 4" in found
    assert "stale" in found
    assert render_file(document, ledgers)
    assert not render_file(document, ledgers)
    assert difference(document, ledgers) is None
    assert document.read_text().startswith("# Title\n\n<!-- table: results -->\n\n| system")
    assert document.read_text().endswith("<!-- /table -->\n\nafter\n")
    with pytest.raises(CatalexError, match="does not exist"):
        render_file(tmp_path / "none.md", ledgers)

"""Statistics of a domain whose numbers can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from catalex.data.domain import Domain
from catalex.data.prepare import PrepareOptions, prepare
from catalex.data.statistics import statistics, table
from catalex.errors import CatalexError
from support.raw_files import canonical


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    options = PrepareOptions(source="canonical", options=canonical(tmp_path / "raw", ""))
    prepare("tiny", options, tmp_path / "out")
    return tmp_path / "out"


def test_statistics_by_hand(folder: Path) -> None:
    found = statistics(folder)
    assert found == statistics(Domain.load(folder))
    assert found["users"] == 6
    assert found["items"] == 5
    assert found["interactions"] == 16
    assert found["mean_length"] == pytest.approx(16 / 6)
    assert found["median_length"] == 3
    assert found["longest"] == 4
    assert found["sparsity"] == pytest.approx(1 - 16 / 30)
    assert found["items_without_interactions"] == 0
    assert found["images"] == 1
    assert found["parts"] == {"train": 8, "valid": 4, "test": 4}
    assert found["coverage"] == {
        "title": 4,
        "brand": 3,
        "categories": 3,
        "description": 3,
        "keywords": 0,
        "extra": 0,
        "image": 1,
        "without_text": 1,
    }


def test_the_table_prints_what_papers_print(folder: Path) -> None:
    console = Console(width=200, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(table([statistics(folder)]))
    row = next(line for line in captured.get().splitlines() if "tiny" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    expected = [
        "tiny",
        "6",
        "5",
        "16",
        "2.7",
        "46.67 %",
        "80.0 %",
        "60.0 %",
        "60.0 %",
        "60.0 %",
        "–",
        "1",
        "1",
    ]
    assert cells == expected


def test_a_folder_that_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"manifest.json: the file does not exist"):
        statistics(tmp_path)

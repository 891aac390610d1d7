"""The ledger: whole lines or nothing, honest numbers only, errors that name the line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from catalex.errors import CatalexError
from catalex.reporting import ledger
from catalex.reporting.ledger import BenchmarkLine, ResultLine, append, merge, newest, read

KEYS = [
    "date", "commit", "machine", "command", "domain", "split", "system", "tokenizer", "encoder",
    "pretrained_on", "beam", "history", "excluded", "seed", "users", "recall@5", "recall@10",
    "ndcg@5", "ndcg@10", "valid_ndcg@10", "collision_before", "collision_after", "parameters",
    "train_seconds", "note",
]  # fmt: skip


def values(**changes: Any) -> dict[str, Any]:
    return {
        "date": "2026-01-31T12:00:00Z", "commit": "abc", "machine": "m", "command": "c", "domain": "beauty",
        "split": "test", "system": "sasrec", "seed": 0, "users": 10,
        "recall@5": 0.05, "recall@10": 0.08, "ndcg@5": 0.03, "ndcg@10": 0.04,
    } | changes  # fmt: skip


def line(**changes: Any) -> ResultLine:
    return ResultLine.parse(values(**changes), "here")


def test_a_line_has_exactly_the_published_keys_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    append(path, line())
    append(path, line(seed=1, note="größer"))
    assert [list(json.loads(text)) for text in path.read_text().splitlines()] == [KEYS, KEYS]
    assert read(path) == [line(), line(seed=1, note="größer")]


def test_origin_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATALEX_COMMIT", "deadbee")
    given = {k: v for k, v in values().items() if k not in ("date", "commit", "machine", "command")}
    made = ResultLine.parse(given, "here")
    assert made.commit == "deadbee"
    assert "cores" in made.machine
    assert made.date.endswith("Z")
    assert made.command


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recall@5": float("nan")}, "recall@5"),
        ({"recall@10": 1.2}, "recall@10"),
        ({"ndcg@5": -0.1}, "ndcg@5"),
        ({"ndcg@10": 0.09}, "ndcg@10 0.09 exceeds recall@10 0.08"),
        ({"ndcg@5": 0.051}, "ndcg@5 0.051 exceeds recall@5 0.05"),
        ({"recall@5": 0.081}, "recall@5 0.081 exceeds recall@10 0.08"),
        ({"ndcg@5": 0.045}, "ndcg@5 0.045 exceeds ndcg@10 0.04"),
        ({"train_seconds": float("inf")}, "train_seconds"),
        ({"date": "yesterday"}, "ISO 8601"),
        ({"sistem": "x"}, "Write 'system'"),
        ({"users": 0}, "users"),
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CatalexError) as error:
        line(**changes)
    assert said in str(error.value)


def test_benchmarks_have_their_own_line(tmp_path: Path) -> None:
    made = BenchmarkLine.parse({"name": "decode/50", "value": 2.1, "unit": "ms", "commit": "a"}, "here")
    append(tmp_path / "b.jsonl", made)
    assert read(tmp_path / "b.jsonl", BenchmarkLine) == [made]
    with pytest.raises(CatalexError, match="value"):
        BenchmarkLine.parse({"name": "x", "value": float("nan"), "unit": "ms"}, "here")


@pytest.mark.parametrize("damage", ["{not json", '"text"', '{"domain": "beauty"}'])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "results.jsonl"
    append(path, line())
    with path.open("a") as file:
        file.write(f"\n{damage}\n")
    with pytest.raises(CatalexError, match=r"results\.jsonl, line 3"):
        read(path)


def test_a_missing_ledger_is_an_error_and_nan_in_a_file_too(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match="does not exist"):
        read(tmp_path / "nowhere.jsonl")
    (tmp_path / "n.jsonl").write_text(json.dumps(values(**{"recall@5": float("nan")})) + "\n")
    with pytest.raises(CatalexError, match="line 1"):
        read(tmp_path / "n.jsonl")


def test_a_torn_end_counts_for_nothing_and_a_missing_line_break_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, line())
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    assert read(path) == [line()]
    append(path, line(seed=1))
    assert read(path) == [line(), line(seed=1)]
    path.write_text(path.read_text().rstrip("\n"))
    append(path, line(seed=2))
    assert [one.seed for one in read(path)] == [0, 1, 2]


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    append(path, line())
    before = path.read_bytes()
    real = os.write

    def half_then_full(descriptor: int, content: Any) -> int:
        if len(content) > 30:
            return real(descriptor, bytes(content)[:30])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger.os, "write", half_then_full)
        # The last piece is what is left of the line after pieces of 30 bytes.
        with pytest.raises(CatalexError, match="disk is full"):
            append(path, line(seed=1))
    assert path.read_bytes() == before
    append(path, line(seed=2))
    assert [one.seed for one in read(path)] == [0, 2]


def _write_many(path: Path, writer: int) -> None:
    for i in range(25):
        append(path, line(seed=writer * 100 + i, note="x" * 3000))


def test_concurrent_writers_lose_and_mix_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=_write_many, args=(path, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert sorted(one.seed for one in read(path)) == sorted(n * 100 + i for n in range(3) for i in range(25))


def test_merge_adds_what_is_missing_once(tmp_path: Path) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    append(here, line(seed=0))
    for seed in (0, 1, 2, 2):
        append(there, line(seed=seed))
    assert merge(there, here) == 2
    assert [one.seed for one in read(here)] == [0, 1, 2]
    assert merge(there, here) == 0
    assert merge(there, tmp_path / "new.jsonl") == 3


def test_merge_refuses_damaged_ledgers_and_leaves_the_target(tmp_path: Path) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    append(here, line())
    append(there, line(seed=1))
    there.write_text(there.read_text() + "oops\n")
    before = here.read_bytes()
    with pytest.raises(CatalexError, match=r"there\.jsonl, line 2"):
        merge(there, here)
    here.write_text("oops\n")
    there.write_bytes(before)
    with pytest.raises(CatalexError, match=r"here\.jsonl, line 1"):
        merge(there, here)
    assert here.read_text() == "oops\n"


def test_newest_goes_by_date_then_by_place() -> None:
    old, new = line(date="2026-01-01", users=1), line(date="2026-02-01T01:00:00+02:00", users=2)
    same = line(date="2026-01-31T23:00:00Z", users=3)
    assert newest([new, old], ["seed"]) == [new]
    assert newest([new, same, old], ["seed"]) == [same]
    assert newest([old, line(seed=1)], ["seed"]) == [old, line(seed=1)]

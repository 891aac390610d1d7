"""Files of a run: whole or not there, and stages that know whether they are done."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalex.artifacts import (
    Stage,
    atomic_path,
    explain_os_error,
    hash_array,
    hash_file,
    hash_json,
    outputs_of,
    read_arrays,
    read_json,
    read_parquet,
    write_arrays,
    write_json,
    write_parquet,
    write_text,
)
from catalex.errors import CatalexError

# --- writing ------------------------------------------------------------------------------------------------


def test_a_new_file_appears_whole_in_a_new_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a/b.txt") as temporary:
        temporary.write_text("x")
        assert not (tmp_path / "a/b.txt").exists()
    assert (tmp_path / "a/b.txt").read_text() == "x"
    assert (tmp_path / "a/b.txt").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_after_a_failure_the_old_file_is_there_and_nothing_else(
    failure: type[BaseException], tmp_path: Path
) -> None:
    write_text(tmp_path / "a.txt", "old")

    def write_half_of_it() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(failure):
        write_half_of_it()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full.*free some space"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "cannot be written.*choose a folder"),
        (errno.EROFS, "cannot be written"),
        (errno.EFBIG, "beyond the allowed size"),
    ],
)
def test_failures_a_user_can_mend_get_a_sentence(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(number, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(CatalexError, match=rf"(?i)a\.txt: .*{words}"):
            write_text(tmp_path / "a.txt", "x")
    assert os.listdir(tmp_path) == []


def test_other_failures_stay_as_they_are() -> None:
    error = OSError(errno.EIO, "input/output error")
    assert explain_os_error(error, Path("x")) is error


def test_round_trips_and_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "Grüße"}
    write_json(tmp_path / "a.json", value)
    write_json(tmp_path / "b.json", dict(reversed(value.items())))
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    arrays = {"x": np.arange(6).reshape(2, 3).T, "y": np.float32([0.5])}
    write_arrays(tmp_path / "a.safetensors", arrays)
    for name, found in read_arrays(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(found, arrays[name])
        assert found.dtype == arrays[name].dtype
    table = pa.table({"n": [1, 2], "s": ["a", None]})
    for name in ("a.parquet", "b.parquet"):
        write_parquet(tmp_path / name, table)
    assert read_parquet(tmp_path / "a.parquet").equals(table)
    assert read_parquet(tmp_path / "a.parquet", ["s"]).column_names == ["s"]
    assert hash_file(tmp_path / "a.parquet") == hash_file(tmp_path / "b.parquet")


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_json, read_arrays, read_parquet, hash_file])
def test_a_missing_file_is_told_by_name(read: Any, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"none\.x: the file does not exist"):
        read(tmp_path / "none.x")


@pytest.mark.parametrize("read", [read_json, read_arrays, read_parquet])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe garbage", b"{"])
def test_a_damaged_file_gets_a_sentence(read: Any, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.x").write_bytes(content)
    with pytest.raises(CatalexError, match=r"a\.x: the file is (not|damaged)"):
        read(tmp_path / "a.x")


def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pa.table({"n": [1]}))
    with pytest.raises(CatalexError, match=r"column 'm' is missing \(allowed: n\)"):
        read_parquet(tmp_path / "a.parquet", ["n", "m"])


# --- hashing ------------------------------------------------------------------------------------------------


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1}) != hash_json({"a": 2, "b": 1})
    assert hash_json({"folder": Path("x")}) == hash_json({"folder": "x"})
    numbers = np.arange(6)
    same = hash_array(numbers)
    assert same == hash_array(np.arange(12)[::1][:6].copy())
    assert same == hash_array(np.repeat(numbers, 2)[::2])  # not contiguous, but equal
    others = [numbers.reshape(2, 3), numbers.astype(np.int32), numbers[::-1], np.append(numbers, 0)]
    assert len({same, *(hash_array(array) for array in others)}) == 5


# --- stages -------------------------------------------------------------------------------------------------


def finished(folder: Path, inputs: dict[str, Any]) -> Stage:
    stage = Stage(folder, "embed", inputs)
    write_text(folder / "out.txt", "result")
    write_text(folder / "deep/er.txt", "more")
    stage.finish(["out.txt", "deep/er.txt"])
    return stage


def test_a_finished_stage_is_done_for_the_same_inputs_only(tmp_path: Path) -> None:
    assert not Stage(tmp_path, "embed", {"x": 1}).done
    assert finished(tmp_path, {"x": 1}).done
    assert Stage(tmp_path, "embed", {"x": 1}).done
    assert not Stage(tmp_path, "embed", {"x": 2}).done
    assert not Stage(tmp_path, "tokenize", {"x": 1}).done


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_stage_with_a_tampered_output_is_not_done(damage: str, tmp_path: Path) -> None:
    stage = finished(tmp_path, {})
    output = tmp_path / "deep/er.txt"
    if damage == "missing":
        output.unlink()
    else:
        output.write_text("mOre")
    assert not stage.done


def test_outputs_are_the_inputs_of_the_next(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"'embed' has not been run.*[Rr]un 'catalex embed' first"):
        outputs_of(tmp_path, "embed")
    finished(tmp_path, {})
    assert outputs_of(tmp_path, "embed") == {
        "out.txt": hash_file(tmp_path / "out.txt"),
        "deep/er.txt": hash_file(tmp_path / "deep/er.txt"),
    }


def test_partial_work_survives_a_kill_but_not_other_inputs(tmp_path: Path) -> None:
    first = Stage(tmp_path, "embed", {"x": 1})
    (first.partial / "work.txt").write_text("half")
    assert (Stage(tmp_path, "embed", {"x": 1}).partial / "work.txt").read_text() == "half"
    assert not (Stage(tmp_path, "embed", {"x": 2}).partial / "work.txt").exists()
    assert not (Stage(tmp_path, "embed", {"x": 1}).partial / "work.txt").exists()


def test_finishing_drops_the_partial_work_and_comes_last(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "embed", {})
    (stage.partial / "work.txt").write_text("half")
    with pytest.raises(CatalexError, match="does not exist"):
        stage.finish(["never-written.txt"])
    assert not stage.done
    assert (tmp_path / "partial/work.txt").exists()
    finished(tmp_path, {})
    assert not (tmp_path / "partial").exists()
    assert stage.seconds >= 0


def test_a_stage_that_began_again_is_not_done_until_it_finishes(tmp_path: Path) -> None:
    stage = finished(tmp_path, {"x": 1})
    (tmp_path / ".out.txt.abc.tmp").write_text("half-written by a killed process")
    stage.begin()
    assert not Stage(tmp_path, "embed", {"x": 1}).done
    assert not (tmp_path / ".out.txt.abc.tmp").exists()
    assert finished(tmp_path, {"x": 1}).done
    assert sorted(os.listdir(tmp_path)) == ["deep", "out.txt", "stage.json"]


@pytest.mark.parametrize(("restore", "touched"), [(True, False), (True, True), (False, False)])
def test_after_a_failure_the_earlier_result_counts_if_it_was_not_touched(
    restore: bool, touched: bool, tmp_path: Path
) -> None:
    stage = finished(tmp_path, {})
    stage.begin()
    if touched:
        (tmp_path / "out.txt").write_text("half of the second run")
    stage.give_up(restore=restore)
    assert stage.done == (restore and not touched)
    assert not list(tmp_path.glob(".*"))


def test_a_tampered_output_is_no_input_of_the_next(tmp_path: Path) -> None:
    finished(tmp_path, {})
    (tmp_path / "out.txt").write_text("tampered!")
    with pytest.raises(CatalexError):
        outputs_of(tmp_path, "embed")


def test_another_process_never_makes_the_folder_of_partial_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may ask when the main process has finished the stage."""
    stage = Stage(tmp_path / "s", "fit", {})
    stage.begin()
    monkeypatch.setattr("catalex.processes.is_main", lambda: False)
    assert stage.partial == tmp_path / "s" / "partial"
    assert not stage.partial.exists()

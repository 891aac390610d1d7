"""Folders of a run, the choice of a device, and the timing of a stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from catalex.artifacts import Stage, read_json, write_text
from catalex.errors import CatalexError
from catalex.pipelines.workspace import Workspace, read_optional, resolve_device, running, seconds_of


def test_no_two_things_share_a_folder() -> None:
    place = Workspace(Path("w"))
    folders = [
        place.prepared("toys"),
        place.embedded("toys"),
        place.tokenized,
        place.pretrained(0),
        place.pretrained(1),
        place.transferred("toys", "pretrained", 0),
        place.transferred("toys", "scratch", 0),
        place.evaluated("toys", "t5", 0),
        place.evaluated("toys", "sasrec", 0),
        place.reported,
    ]
    assert len(set(folders)) == len(folders)
    assert all(folder.is_relative_to("w") for folder in folders)
    for one in folders:
        assert not any(one != other and one.is_relative_to(other) for other in folders)


def test_a_domain_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"'prepare' has not been run"):
        Workspace(tmp_path).domain("toys")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == "cpu"
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device("auto") == expected
    with pytest.raises(CatalexError, match=r"no CUDA device here.*[Ss]et device: cpu"):
        resolve_device("cuda")
    with pytest.raises(CatalexError, match=r"unknown device.*'tpu'.*auto, cpu, cuda"):
        resolve_device("tpu")


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert resolve_device("cuda") == "cuda"
    assert chosen == []  # one process takes the device that is the current one
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert resolve_device("auto") == "cuda"
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(CatalexError, match=r"fewer CUDA devices than processes \(found 2\).*device: cpu"):
        resolve_device("auto")


def test_a_done_stage_is_skipped_and_a_run_one_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(inputs: int) -> bool:
        stage = Stage(tmp_path, "embed", {"x": inputs})
        with running(stage, "embed toys") as needed:
            if needed:
                write_text(tmp_path / "out", str(inputs))
                stage.finish(["out"])
        return needed

    assert seconds_of(tmp_path) is None
    assert [run(1), run(1), run(2)] == [True, False, True]
    assert capsys.readouterr().err.splitlines() == [
        "embed toys: running",
        "embed toys: unchanged, skipped",
        "embed toys: running",
    ]
    assert len(read_json(tmp_path / "timing.json")["seconds_by_run"]) == 2
    assert seconds_of(tmp_path) is not None


def test_a_failing_stage_is_neither_done_nor_timed(tmp_path: Path) -> None:
    def fail() -> None:
        with running(Stage(tmp_path, "embed", {}), "embed toys"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not Stage(tmp_path, "embed", {}).done
    assert seconds_of(tmp_path) is None


def test_optional_files(tmp_path: Path) -> None:
    assert read_optional(tmp_path / "x.json") is None
    write_text(tmp_path / "x.json", "[1]")
    assert read_optional(tmp_path / "x.json") == [1]

"""Progress: plain lines off a terminal, a bar on one, and a rate that counts this process only."""

from __future__ import annotations

import re
import sys
import time

import pytest

from catalex import progress
from catalex.progress import Track, say


def test_say_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_of_several_processes_the_main_one_alone_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    say("hello")
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with Track("x", 1) as track:
            track.advance()
    assert capsys.readouterr() == ("", "")


def test_a_finished_piece_of_work_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Track("embed toys", 1200, "items") as track:
        track.advance(1000)
        track.advance(200, note="loss 0.31")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(
        r"embed toys: 1,200/1,200 items, [\d,]+ items/s, done in [\d.]+ s, loss 0\.31\n", printed.err
    )


def test_lines_come_at_intervals_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    with Track("x", 10) as track:
        time.sleep(0.01)
        track.advance(4)
    first, last = capsys.readouterr().err.splitlines()
    assert re.search(r"x: 4/10 items, .*ETA \d", first)
    assert "done in" in last


def test_a_total_is_not_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with Track("x", None) as track:
        track.advance(3)
    assert capsys.readouterr().err.startswith("x: 3 items, ")


def test_a_failure_prints_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with Track("x", 10) as track:
            track.advance(1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert capsys.readouterr().err == ""


def test_what_was_done_before_counts_but_not_in_the_rate() -> None:
    with Track("x", 1000, start=900) as track:
        time.sleep(0.02)
        track.advance(1)
        assert track.count == 901
        assert track.rate < 100


def test_on_a_terminal_there_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Track("embed toys", 10) as track:
        track.advance(10, note="half")
    printed = capsys.readouterr().err
    assert "embed toys" in printed
    assert "10/10" in printed

"""The results ledger: one JSON line a measured number, appended by the tool and never by hand.

Documents show numbers only through `catalex.reporting.markdown`, which renders them from here. A line names
its commit, machine and command, so that anybody can measure it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, model_validator

from catalex.artifacts import explain_os_error
from catalex.errors import nearest, user_error
from catalex.options import Options
from catalex.reporting.provenance import command_line, commit_id, machine_name, now

__all__ = [
    "BenchmarkLine", "ResultLine",
    "append", "command_line", "commit_id", "machine_name", "merge", "newest", "now", "read",
]  # fmt: skip

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]

_ROUNDING = 1e-9
"""Slack of the comparisons between metrics, for sums taken in another order."""

_RESTORE = "restore it from version control"


class LedgerLine(Options):
    """What every line of a ledger says about its origin. Keys in the file are the aliases (``recall@5``)."""

    model_config = ConfigDict(populate_by_name=True)

    date: str = Field(default_factory=now)
    """When it was measured, ISO 8601."""
    commit: Name = Field(default_factory=commit_id)
    """Commit of catalex, with ``+`` when the code was changed since."""
    machine: Name = Field(default_factory=machine_name)
    """CPU model, cores and GPU."""
    command: Name = Field(default_factory=command_line)
    """What to type to measure it again."""

    @classmethod
    def parse(cls, values: Mapping[str, Any], place: str) -> Self:
        """Validate one line; unknown keys are held against the names used in files."""
        names = cls.keys()
        for key in values:
            if key not in names and key not in names.values():
                close = nearest(key, names)
                raise user_error(
                    f"unknown key {key!r}",
                    place=place,
                    allowed=list(names),
                    remedy=f"write {close!r}" if close else "remove it",
                )
        return super().parse(values, place)

    @classmethod
    def keys(cls) -> dict[str, str]:
        """Attribute of a line by its name in the file (``recall@5`` -> ``recall_at_5``)."""
        return {info.alias or name: name for name, info in cls.model_fields.items()}

    @model_validator(mode="after")
    def _date_is_readable(self) -> Self:
        try:
            datetime.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date {self.date!r} is not ISO 8601, such as 2026-01-31T12:00:00Z") from None
        return self

    @property
    def when(self) -> datetime:
        """`date` as a moment; without a zone it is taken as UTC."""
        moment = datetime.fromisoformat(self.date)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class ResultLine(LedgerLine):
    """Accuracy of one trained system on one domain with one seed: full ranking, counted by items."""

    domain: Name
    """Domain that was evaluated."""
    split: Name
    """Part and kind of split that was evaluated."""
    system: Name
    """Recommender or baseline."""
    tokenizer: str | None = None
    """Tokenizer of the identifiers; none for systems without identifiers."""
    encoder: str | None = None
    """Content encoder of the vectors; none for systems without content."""
    pretrained_on: str | None = None
    """Domains of the pre-training joined by ``+``; none when trained from scratch."""
    beam: Annotated[int, Field(ge=1)] | None = None
    """Beams kept in decoding; none for systems that score all items."""
    history: Annotated[int, Field(ge=1)] | None = None
    """Most recent items of a user that the system sees; none when it sees all or nothing."""
    excluded: Literal["history"] | None = None
    """What was left out of the ranking of each user; none when all items were ranked."""
    seed: int = 0
    """Seed of the training."""
    users: Annotated[int, Field(ge=1)]
    """Users the metrics are averaged over."""
    recall_at_5: Share = Field(alias="recall@5")
    """Share of users whose target is among the first 5."""
    recall_at_10: Share = Field(alias="recall@10")
    """The same among the first 10."""
    ndcg_at_5: Share = Field(alias="ndcg@5")
    """Mean of 1 / log2(rank + 1) for ranks up to 5."""
    ndcg_at_10: Share = Field(alias="ndcg@10")
    """The same up to 10."""
    valid_ndcg_at_10: Share | None = Field(default=None, alias="valid_ndcg@10")
    """NDCG@10 on validation at the chosen epoch; none for systems without training."""
    collision_before: Share | None = None
    """(n - u) / n of identifiers before conflict handling."""
    collision_after: Share | None = None
    """The same after it."""
    parameters: Annotated[int, Field(ge=0)] | None = None
    """Trainable parameters."""
    train_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Wall time of the training."""
    note: str = ""
    """What sets this measurement apart from others with the same names."""

    @model_validator(mode="after")
    def _metrics_agree(self) -> Self:
        smaller_first = [
            ("ndcg@5", self.ndcg_at_5, "recall@5", self.recall_at_5),
            ("ndcg@10", self.ndcg_at_10, "recall@10", self.recall_at_10),
            ("recall@5", self.recall_at_5, "recall@10", self.recall_at_10),
            ("ndcg@5", self.ndcg_at_5, "ndcg@10", self.ndcg_at_10),
        ]
        for small_name, small, large_name, large in smaller_first:
            if small > large + _ROUNDING:
                raise ValueError(f"{small_name} {small:g} exceeds {large_name} {large:g}, which cannot be")
        return self


class BenchmarkLine(LedgerLine):
    """A measured speed, size or memory, beside the thing it is compared with."""

    name: Name
    """What was measured, ``group/detail``."""
    value: Finite
    """The measurement."""
    unit: Name
    """Unit of `value` and `baseline_value`."""
    baseline: str | None = None
    """What it is compared with."""
    baseline_value: Finite | None = None
    """The measurement of the baseline on the same machine."""
    ratio: Finite | None = None
    """How many times better than the baseline; the command that measures decides what better means."""


Line = TypeVar("Line", bound=LedgerLine)


def append(path: Path, line: LedgerLine) -> None:
    """Add one line to the ledger at `path`, which is made when missing.

    Safe under concurrent writers: the file is locked, the line goes to disk whole or not at all.

    Raises:
        CatalexError: When the folder cannot be written or the disk is full.
    """
    _append_text(path, lambda _: _text(line))


def read(path: Path, kind: type[Line] = ResultLine) -> list[Line]:  # type: ignore[assignment]
    """All lines of a ledger, oldest first.

    Raises:
        CatalexError: When the file is missing, or a line is damaged; the message names the line's number.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            content = file.read()
    except FileNotFoundError:
        raise user_error(
            "the ledger does not exist", place=path, remedy="measure something first, or check the path"
        ) from None
    except OSError as error:
        raise user_error(
            f"the ledger cannot be read ({error.strerror})", place=path, remedy="check the path"
        ) from None
    return _parse(content, path, kind)


def merge(source: Path, target: Path, kind: type[Line] = ResultLine) -> int:  # type: ignore[assignment]
    """Append those lines of `source` that `target` lacks, in their order; returns how many.

    For results that were measured on another machine. Merging the same file again adds nothing.

    Raises:
        CatalexError: When a line of either file is damaged; `target` is then unchanged.
    """
    arriving = dict.fromkeys(_text(line) for line in read(source, kind))
    added = 0

    def missing(content: bytes) -> str:
        nonlocal added
        present = {_text(line) for line in _parse(content, target, kind)}
        new = [text for text in arriving if text not in present]
        added = len(new)
        return "".join(new)

    _append_text(target, missing)
    return added


def _text(line: LedgerLine) -> str:
    """One line of the file: every key in the declared order."""
    return json.dumps(line.model_dump(by_alias=True), ensure_ascii=False, allow_nan=False) + "\n"


def _append_text(path: Path, make: Any) -> None:
    """Append ``make(content)`` under an exclusive lock; on failure the file gets its former length back."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file, _locked(file.fileno()):
            file.seek(0)
            content = file.read() or b""
            whole = _whole_lines(content)
            new = make(whole).encode()
            if whole != content[: len(whole)]:  # Only the final line break was missing.
                new, whole = b"\n" + new, content
            try:
                file.truncate(len(whole))
                _write_all(file.fileno(), new)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(len(whole))
                raise
    except OSError as error:
        raise explain_os_error(error, path) from error


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _whole_lines(content: bytes) -> bytes:
    """`content` with a final line break, without the torn end that a power cut in mid-write leaves."""
    if not content or content.endswith(b"\n"):
        return content
    _, _, tail = content.rpartition(b"\n")
    try:
        json.loads(tail)
    except ValueError:
        return content[: len(content) - len(tail)]
    return content + b"\n"


def _parse(content: bytes, path: Path, kind: type[Line]) -> list[Line]:
    lines = []
    for number, raw in enumerate(_whole_lines(content).splitlines(), start=1):
        if not raw.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = json.loads(raw)
        except ValueError as error:
            raise user_error(f"the line is not JSON ({error})", place=place, remedy=_RESTORE) from None
        if not isinstance(values, dict):
            raise user_error(
                "the line is not an object",
                place=place,
                value=values,
                remedy=_RESTORE,
            )
        lines.append(kind.parse(values, place))
    return lines


def newest(lines: Sequence[Line], key: Sequence[str]) -> list[Line]:
    """The newest line of every combination of the fields in `key`, in the order of the ledger.

    The date decides; between equal dates the later line wins.
    """
    chosen: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        values = tuple(getattr(line, name) for name in key)
        if values not in chosen or line.when >= chosen[values].when:
            chosen[values] = line
    kept = {id(line) for line in chosen.values()}
    return [line for line in lines if id(line) in kept]

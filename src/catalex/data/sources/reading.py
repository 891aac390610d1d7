"""Open raw tables of any format lazily, and say in one sentence what is wrong with a damaged one.

Text formats are read as strings only: numbers are parsed where their meaning is known, so that a bad value
can be quoted as it stands in the file.
"""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from catalex.errors import CatalexError, nearest, user_error

FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""Recognised endings; all but Parquet may be followed by .gz or .zst."""

ROW = "__row__"
"""Column with the row number in the file, counted from 1 without the header. Only messages read it."""

PEEK_LINES = 1000
"""JSON lines looked at to learn which keys there are."""

Encoding = Literal["utf8", "utf8-lossy"]


def existing(path: Path, what: str) -> Path:
    """`path`, once it is known to be a file with content.

    Raises:
        CatalexError: When the file is missing, empty, or a folder.
    """
    if path.is_dir():
        raise user_error(f"the {what} must be a file, not a folder", place=path, remedy="name the file")
    if not path.is_file():
        close = nearest(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else None
        remedy = f"did you mean {close!r}?" if close else "check the path"
        raise user_error(f"the {what} does not exist", place=path, remedy=remedy)
    if path.stat().st_size == 0:
        raise user_error(f"the {what} is empty", place=path, remedy="copy or download it again")
    return path


def matching(pattern: str, what: str) -> list[Path]:
    """The files of a path or of a glob pattern ("part-*.parquet"), sorted by name.

    Raises:
        CatalexError: When there is none, or one is empty.
    """
    expanded = str(Path(pattern).expanduser())
    if not glob.has_magic(expanded) or Path(expanded).exists():
        return [existing(Path(expanded), what)]
    found = sorted(glob.glob(expanded))
    if not found:
        raise user_error(f"no file matches the {what}", place=pattern, remedy="check the pattern")
    return [existing(Path(name), what) for name in found]


def format_of(path: Path) -> str:
    """The ending of `FORMATS` that `path` has.

    Raises:
        CatalexError: When it has none of them.
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    for ending in FORMATS:
        if name.endswith(ending):
            return ending
    raise user_error(
        "the format of the file cannot be told from its name",
        place=path,
        value=path.name,
        allowed=f"{', '.join(FORMATS)}; text formats also with .gz or .zst",
        remedy="rename the file",
    )


def open_table(
    paths: Sequence[Path],
    columns: Sequence[str],
    optional: Sequence[str] = (),
    *,
    encoding: Encoding = "utf8",
) -> pl.LazyFrame:
    """The named columns of one table, which may be spread over several files, and `ROW`.

    Args:
        paths: Files of one format with the same columns.
        columns: Columns that must be there.
        optional: Columns that are returned when they are there.
        encoding: "utf8-lossy" replaces bytes that are not UTF-8 in CSV and TSV.

    Raises:
        CatalexError: When a column is missing or the beginning of a file cannot be read.
    """
    frames = [_open_one(path, columns, optional, encoding) for path in paths]
    frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="vertical_relaxed")
    return frame if len(frames) == 1 else frame.drop(ROW).with_row_index(ROW, offset=1)


def _open_one(
    path: Path, columns: Sequence[str], optional: Sequence[str], encoding: Encoding
) -> pl.LazyFrame:
    form = format_of(path)
    present = columns_of(path)
    wanted = [*columns, *(name for name in optional if name in present)]
    require(path, columns, present)
    if form == ".parquet":
        frame = pl.scan_parquet(path, row_index_name=ROW, row_index_offset=1)
    elif form in (".csv", ".tsv"):
        frame = pl.scan_csv(
            path,
            separator="," if form == ".csv" else "\t",
            infer_schema=False,
            encoding=encoding,
            row_index_name=ROW,
            row_index_offset=1,
        )
    else:
        schema = dict.fromkeys(wanted, pl.String())
        frame = pl.scan_ndjson(path, schema=schema, row_index_name=ROW, row_index_offset=1)
    return frame.select(ROW, *dict.fromkeys(wanted))


def require(path: Path, columns: Sequence[str], present: Sequence[str]) -> None:
    """Refuse a table that lacks one of `columns`, naming the one that looks most like it."""
    for name in columns:
        if name not in present:
            close = nearest(name, present)
            remedy = f"did you mean {close!r}?" if close else "name the right column in the recipe"
            raise user_error(
                f"column {name!r} is missing",
                place=path,
                allowed=f"the file has {', '.join(present)}",
                remedy=remedy,
            )


def columns_of(path: Path) -> list[str]:
    """Column names of a table: from the schema, the header, or the keys of the first JSON lines."""
    form = format_of(path)
    try:
        if form == ".parquet":
            return pl.scan_parquet(path).collect_schema().names()
        if form in (".csv", ".tsv"):
            with text_lines(path, errors="replace") as lines:
                header = next(csv.reader(lines, delimiter="," if form == ".csv" else "\t"), [])
            return [name.removeprefix("\ufeff") for name in header]
        keys: dict[str, None] = {}
        for _, record in json_lines(path, limit=PEEK_LINES):
            keys.update(dict.fromkeys(record))
        return list(keys)
    except CatalexError:
        raise
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise damaged(error, [path]) from None


def locate(files: Sequence[Path], row: int) -> str:
    """Place of row `row` of a table spread over the first of `files`, rows counted on from file to file."""
    for path in files:
        try:
            count = _open_one(path, [], [], "utf8-lossy").select(pl.len()).collect().item()
        except CatalexError:  # a format of its own, which is never spread
            return f"{path}, row {row}"
        if row <= count:
            return f"{path}, row {row}"
        row -= count
    return f"{files[0]}, row {row}"


def text_lines(path: Path, encoding: str = "utf-8", errors: str = "strict") -> io.TextIOWrapper:
    """Lines of a plain, .gz or .zst text file, decompressed as they are read."""
    kind: Any = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    stream: Any = pa.input_stream(str(path), compression=kind)
    return io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")


def json_lines(path: Path, limit: int | None = None) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number (from 1) and object of each JSON line.

    Raises:
        CatalexError: When a line is not a JSON object.
    """
    with text_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and number > limit:
                return
            if line.strip():
                yield number, _json_object(path, number, line)


def _json_object(path: Path, number: int, line: str) -> dict[str, object]:
    place = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        remedy = "repair or remove the line"
        raise user_error(
            f"not valid JSON: {error.msg}", place=place, value=line.strip(), remedy=remedy
        ) from None
    if not isinstance(record, dict):
        remedy = "write one JSON object a line"
        raise user_error("a line must be a JSON object", place=place, value=line.strip(), remedy=remedy)
    return record


def collect(frame: pl.LazyFrame, files: Sequence[Path]) -> pl.DataFrame:
    """Run a lazy frame over `files` in the streaming engine.

    Raises:
        CatalexError: When a file is truncated, malformed or not UTF-8.
    """
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise damaged(error, files) from None


def damaged(error: Exception, files: Sequence[Path]) -> CatalexError:
    """What is wrong with `files`, given the `error` met while reading them; names the very line if it can."""
    for path in files:
        try:
            _read_through(path)
        except CatalexError as found:
            return found
        except UnicodeDecodeError as found:
            remedy = "convert it to UTF-8, or set encoding: utf8-lossy"
            return user_error(
                "the file is not UTF-8",
                place=path,
                value=found.object[found.start : found.end],
                remedy=remedy,
            )
        except (pl.exceptions.PolarsError, OSError, EOFError, pa.ArrowInvalid) as found:
            reason = (str(found).splitlines() or [type(found).__name__])[0].rstrip(".")
            return user_error(
                f"the file is truncated or damaged ({reason})", place=path, remedy="copy or download it again"
            )
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    place = ", ".join(map(str, files))
    return user_error(
        f"the file cannot be read ({reason})", place=place, remedy="check its format and columns"
    )


def _read_through(path: Path) -> None:
    """Read a whole file with slow, exact tools; raises at its first fault."""
    if path.suffix == ".parquet":
        pl.scan_parquet(path).select(pl.all().count()).collect(engine="streaming")
        return
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        for _ in json_lines(path):
            pass
        return
    with text_lines(path) as lines:
        if not name.endswith((".csv", ".tsv")):
            for _ in lines:
                pass
            return
        csv.field_size_limit(2**31 - 1)
        width = None
        for number, cells in enumerate(csv.reader(lines, delimiter="," if name.endswith(".csv") else "\t")):
            width = len(cells) if width is None else width
            if len(cells) > width:
                raise user_error(
                    f"a row has {len(cells)} cells under a header of {width}",
                    place=f"{path}, row {number}",
                    remedy="quote cells that contain the separator",
                )

"""Files of a run: atomic writing, hashing, and stage folders that know whether they are done.

Nothing is ever half-written: each file goes to a temporary name beside its target, is flushed to disk and
renamed. A stage is done when its `stage.json`, written last, names every output with its hash.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file as _load_numpy
from safetensors.numpy import save_file as _save_numpy

from catalex import processes
from catalex.errors import CatalexError, user_error
from catalex.types import JSON

STAGE_FILE = "stage.json"
TEMPORARY = ".tmp"
"""Ending of files that are not whole yet; their names begin with a dot."""


# --- writing ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it becomes `target`, on any failure it disappears.

    Raises:
        CatalexError: When the disk is full or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=TEMPORARY, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise explain_os_error(error, target) from error
    except SafetensorError as error:  # the Rust writer hides the number of the system's error in a text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise explain_os_error(OSError(int(number[1]), str(error)), target) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def explain_os_error(error: OSError, target: Path) -> Exception:
    """A `CatalexError` for the failures a user can mend; the error itself for all others."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return user_error(
            "the disk is full; nothing was changed",
            place=target,
            remedy="free some space and run the command again",
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return user_error(
            "the file cannot be written", place=target, remedy="choose a folder you may write to"
        )
    if error.errno == errno.EFBIG:
        return user_error(
            "the file grows beyond the allowed size; nothing was changed",
            place=target,
            remedy="raise the limit (ulimit -f) or write elsewhere",
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return user_error(
            "a file stands where a folder is needed, or a folder where a file is",
            place=target,
            remedy="move it away, or choose another folder",
        )
    if error.errno == errno.ENAMETOOLONG:
        return user_error("the name of the file is too long", place=target, remedy="choose a shorter name")
    return error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_half_written(folder: Path) -> None:
    """Delete the temporary files of killed processes below `folder`; nobody else may be writing there."""
    for left in folder.rglob(f".*{TEMPORARY}"):
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: JSON) -> None:
    """Write `value` as readable JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_parquet(path: Path, table: pa.Table, *, differences: Sequence[str] = ()) -> None:
    """Write `table` as zstd Parquet, atomically; equal tables give equal bytes.

    Args:
        differences: Columns of integers that are near the one before. With any, no column gets a dictionary:
            half the time and a smaller file where values seldom repeat.
    """
    encodings: dict[str, Any] = {}
    if differences:
        by_name = {n: "DELTA_BINARY_PACKED" if n in differences else "PLAIN" for n in table.column_names}
        encodings = {"use_dictionary": False, "column_encoding": by_name}
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", **encodings)


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays as safetensors, atomically."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        _save_numpy(contiguous, temporary, metadata=dict(metadata or {}))


# --- reading ------------------------------------------------------------------------------------------------


def read_json(path: Path) -> JSON:
    """Read a JSON file.

    Raises:
        CatalexError: When the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise user_error(
            "the file does not exist", place=path, remedy="run the stage that writes it"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise user_error(
            f"the file is not valid JSON: {error}", place=path, remedy="delete it and run the stage again"
        ) from None


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or the named columns of it.

    Raises:
        CatalexError: When the file is missing, damaged, or lacks a column.
    """
    try:
        present = pq.read_schema(path).names
        missing = [c for c in columns or () if c not in present]
        if missing:
            raise user_error(
                f"column {missing[0]!r} is missing",
                place=path,
                allowed=present,
                remedy="check that the file is what its name says",
            )
        return pq.read_table(path, columns=list(columns) if columns is not None else None)
    except FileNotFoundError:
        raise user_error(
            "the file does not exist", place=path, remedy="check the path, or run the stage that writes it"
        ) from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise user_error(
            f"the file is not a readable Parquet file ({reason})",
            place=path,
            remedy="copy or download it again",
        ) from None


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read a safetensors file into NumPy arrays.

    Raises:
        CatalexError: When the file is missing or damaged.
    """
    try:
        arrays: dict[str, np.ndarray[Any, Any]] = _load_numpy(path)
        return arrays
    except FileNotFoundError:
        raise user_error(
            "the file does not exist", place=path, remedy="run the stage that writes it"
        ) from None
    except (SafetensorError, ValueError) as error:
        raise user_error(
            f"the file is damaged ({error})", place=path, remedy="delete it and run the stage again"
        ) from None


# --- hashing ------------------------------------------------------------------------------------------------


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise user_error("the file does not exist", place=path, remedy="check the path") from None


def hash_json(value: JSON) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()
    ).hexdigest()


def hash_array(*arrays: np.ndarray[Any, Any]) -> str:
    """SHA-256 of the types, shapes and bytes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


# --- stages -------------------------------------------------------------------------------------------------


class Stage:
    """One resumable step of a run: a folder whose `stage.json` says from which inputs its outputs were made.

    A stage is identified by `inputs` (settings and hashes of what it reads). Done with the same inputs: skip
    it. Killed half-way: `partial` still holds its resumable work, provided the inputs are unchanged.

    >>> stage = Stage(folder, "embed", {"encoder": "minilm"})      # doctest: +SKIP
    >>> if not stage.done:                                         # doctest: +SKIP
    ...     write_arrays(stage.folder / "vectors.safetensors", {"vectors": vectors})
    ...     stage.finish(["vectors.safetensors"])
    """

    def __init__(self, folder: Path, verb: str, inputs: Mapping[str, JSON]) -> None:
        self.folder = folder
        self.verb = verb
        self.inputs = dict(inputs)
        self.fingerprint = hash_json({"verb": verb, "inputs": self.inputs})
        self._started = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether every output is there, unchanged, and was made from the same inputs."""
        record = self.record
        if record is None or record.get("fingerprint") != self.fingerprint:
            return False
        return _intact(self.folder, record)

    @property
    def record(self) -> dict[str, Any] | None:
        """The content of `stage.json`, or None before the stage is done."""
        path = self.folder / STAGE_FILE
        if not path.is_file():
            return None
        return _read_record(path)

    @property
    def partial(self) -> Path:
        """Folder for resumable work of this very stage; emptied when it was begun from other inputs.

        Of several processes the main one sees to that. Another may ask when the main one is done already, and
        must not make the folder again.
        """
        folder = self.folder / "partial"
        if not processes.is_main():
            return folder
        owner = folder / "fingerprint"
        if folder.is_dir() and not (owner.is_file() and owner.read_text() == self.fingerprint):
            shutil.rmtree(folder)
        if not folder.is_dir():
            write_text(owner, self.fingerprint)
        return folder

    def begin(self) -> None:
        """Forget that the stage was ever done, and drop half-written files of a killed process.

        A stage that is killed half-way through its second run thus never passes for done, and the next verb
        never reads new files under the hashes of old ones.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        drop_half_written(self.folder)
        if (self.folder / STAGE_FILE).is_file():
            os.replace(self.folder / STAGE_FILE, self._earlier)

    def give_up(self, *, restore: bool) -> None:
        """Undo `begin` after a failure: the earlier result counts again if wanted and if it was not touched.

        A renaming is all it takes, so it works on a full disk too.
        """
        with contextlib.suppress(OSError, CatalexError):
            if restore and self._earlier.is_file() and _intact(self.folder, _read_record(self._earlier)):
                os.replace(self._earlier, self.folder / STAGE_FILE)
            self._earlier.unlink(missing_ok=True)

    @property
    def _earlier(self) -> Path:
        """Where the record of the earlier run waits while the stage runs again."""
        return self.folder / f".{STAGE_FILE}.earlier{TEMPORARY}"

    def finish(self, outputs: Sequence[str]) -> None:
        """Record the outputs and drop the partial work: the last act of a stage.

        Args:
            outputs: Paths relative to the folder.
        """
        record = {
            "verb": self.verb,
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "outputs": {name: hash_file(self.folder / name) for name in sorted(outputs)},
        }
        write_json(self.folder / STAGE_FILE, record)
        self._earlier.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "partial", ignore_errors=True)

    def tidy(self) -> None:
        """Remove what a process that was killed right after it finished the stage left behind."""
        shutil.rmtree(self.folder / "partial", ignore_errors=True)
        drop_half_written(self.folder)

    @property
    def seconds(self) -> float:
        """Wall time since this object was made."""
        return time.monotonic() - self._started


def outputs_of(folder: Path, verb: str) -> dict[str, str]:
    """Hashes of a finished stage's outputs, for use as the inputs of the next.

    Raises:
        CatalexError: When the stage has not been finished, or an output is missing or differs from what the
            stage wrote (a later run of it was interrupted, or somebody changed the file).
    """
    path = folder / STAGE_FILE
    if not path.is_file():
        raise user_error(
            f"stage '{verb}' has not been run", place=folder, remedy=f"run 'catalex {verb}' first"
        )
    outputs: dict[str, str] = _read_record(path)["outputs"]
    for name, digest in outputs.items():
        output = folder / name
        if not output.is_file() or _hash_once(output, *_version(output)) != digest:
            raise user_error(
                f"the file was {'changed' if output.is_file() else 'removed'} after stage '{verb}' wrote it",
                place=output,
                remedy=f"run 'catalex {verb}' again",
            )
    return outputs


def _read_record(path: Path) -> dict[str, Any]:
    """The content of a `stage.json`."""
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("outputs"), dict):
        raise user_error(
            "this is no record of a stage", place=path, remedy="delete it and run the stage again"
        )
    return record


def _intact(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether every output of a record is there and unchanged."""
    return all(
        (folder / name).is_file() and _hash_once(folder / name, *_version(folder / name)) == digest
        for name, digest in record["outputs"].items()
    )


def _version(path: Path) -> tuple[int, int, int]:
    """What changes whenever a file is replaced or rewritten: inode, size, time of change (ns)."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_ctime_ns


@functools.lru_cache(maxsize=4096)
def _hash_once(path: Path, inode: int, size: int, changed: int) -> str:
    """`hash_file`, remembered while the file stays as it is: the same outputs are asked for many times."""
    del inode, size, changed  # part of the memory's key only
    return hash_file(path)

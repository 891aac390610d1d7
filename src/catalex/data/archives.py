"""Unpacking zip archives without trusting them."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from catalex.artifacts import atomic_path
from catalex.errors import CatalexError, user_error

UNPACKED_LIMIT = 20 * 10**9
"""Most bytes an archive may unpack to; the largest dataset we know (MovieLens 25M) has about 1.2 GB."""


def extract_zip(archive: Path, folder: Path, *, size_limit: int = UNPACKED_LIMIT) -> list[Path]:
    """Unpack a zip archive into `folder`, trusting nothing it says. Files that are there already are kept.

    Raises:
        CatalexError: When the archive is damaged, needs a password, holds a path that leads out of `folder`
            or a link, or unpacks to more than `size_limit` bytes (counted, whatever the archive claims).
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [(info, _safe_target(info, archive, folder)) for info in packed.infolist()]
            members = [(info, target) for info, target in members if not info.is_dir()]
            if sum(info.file_size for info, _ in members) > size_limit:
                raise _too_big(archive, size_limit)
            for info, target in members:
                if not (target.is_file() and target.stat().st_size == info.file_size):
                    _unpack(packed, info, target, archive, size_limit)
            return [target for _, target in members]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise user_error(
            f"the archive is damaged ({error})", place=archive, remedy="delete it and download it again"
        ) from None


def _safe_target(info: zipfile.ZipInfo, archive: Path, folder: Path) -> Path:
    """Where a member goes; refused when that is not strictly inside `folder`, or not a plain file."""
    path = PurePosixPath(info.filename)
    windows = bool(PureWindowsPath(info.filename).drive) or "\\" in info.filename
    outside = path.is_absolute() or ".." in path.parts or windows
    if outside or not path.parts:
        raise user_error(
            "the archive holds a path that leads out of the folder", place=archive, value=info.filename
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise user_error("the archive holds a link", place=archive, value=info.filename)
    if info.flag_bits & 0x1:
        raise user_error("the archive needs a password", place=archive, value=info.filename)
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise user_error(
            "the archive would write through a link",
            place=archive,
            value=info.filename,
            remedy="remove the link",
        )
    return target


def _unpack(packed: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, archive: Path, limit: int) -> None:
    """One member, atomically; reading to its end also checks its CRC."""
    with packed.open(info) as source, atomic_path(target) as temporary, temporary.open("wb") as file:
        written = 0
        for chunk in _chunks(source):
            written += len(chunk)
            if written > limit:
                raise _too_big(archive, limit)
            file.write(chunk)


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(1 << 20):
        yield chunk


def _too_big(archive: Path, limit: int) -> CatalexError:
    return user_error("the archive unpacks to too much", place=archive, allowed=f"at most {limit:,} bytes")

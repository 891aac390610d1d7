"""The one exception a user is meant to see, and helpers that phrase it.

Every message has the same anatomy: *where* it is, *what* is wrong with *which value*, what is allowed, what
to do. The command line prints it as a single sentence and exits with code 2; no traceback follows.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

EXIT_CODE = 2
"""Exit status of the command line after a `CatalexError`."""


class CatalexError(Exception):
    """A problem that the user can fix. `str(error)` is one clear sentence with place, value and remedy."""


def user_error(
    problem: str,
    *,
    place: str | Path | None = None,
    value: object | None = None,
    allowed: str | Iterable[object] | None = None,
    remedy: str | None = None,
) -> CatalexError:
    """Build a `CatalexError` from its parts, so that all messages read alike.

    Args:
        problem: What is wrong, without a final full stop ("column 'user' is missing").
        place: File, row, column or recipe key where it is wrong.
        value: The offending value; shown shortened to 80 characters.
        allowed: What would have been right: a phrase, or the valid choices.
        remedy: What to do about it, as an instruction ("rename the column or set columns.user in the
            recipe").
    """
    text = f"{place}: {problem}" if place is not None else problem
    details = []
    if value is not None:
        shown = repr(value)
        details.append(f"found {shown if len(shown) <= 80 else shown[:77] + '...'}")
    if allowed is not None:
        details.append(f"allowed: {allowed if isinstance(allowed, str) else ', '.join(map(str, allowed))}")
    if details:
        text += f" ({'; '.join(details)})"
    text += "."
    if remedy:
        text += f" {remedy[0].upper()}{remedy[1:].rstrip('.')}" + ("" if remedy.endswith("?") else ".")
    return CatalexError(text)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like `name`, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return found[0] if found else None


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """`table[name]`, or a `CatalexError` that lists the entries and the nearest one.

    `kind` is the noun of the table's entries ("tokenizer", "data source").
    """
    if name in table:
        return table[name]
    close = nearest(name, table)
    raise user_error(
        f"unknown {kind} {name!r}",
        allowed=sorted(table),
        remedy=f"did you mean {close!r}?" if close else f"use one of the listed {kind}s",
    )


def require(package: str, extra: str) -> None:
    """Refuse in one sentence when an optional package is missing.

    Raises:
        CatalexError: When `package` cannot be imported; the remedy names the extra that brings it.
    """
    try:
        importlib.import_module(package)
    except ImportError:
        raise user_error(
            f"the package {package!r} is not installed", remedy=f"run: pip install 'catalex[{extra}]'"
        ) from None

"""API keys: who may call, and what.

A key file has one key a line, with a role after it::

    # the shop's front end may only ask
    3f0c...e1 read
    # the importer may change items as well
    91ab...77 write
    # the operator may swap models too
    c4d2...05 admin

Only digests stay in memory. All are compared with every key that comes, in constant time, so that the time
of an answer tells nothing about the keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from catalex.errors import user_error

ROLES = ("read", "write", "admin")
"""Each may do what those before it may."""

SHORTEST = 16
"""Characters of a key; 16 hexadecimal digits are 64 bits."""


class Keys:
    """The keys of a service; with none of them every caller has the role "write".

    Swapping models needs a key of the operator: without keys nobody may.
    """

    def __init__(self, keys: Sequence[tuple[str, str]] = ()) -> None:
        self._digests = [(_digest(key), ROLES.index(role)) for key, role in keys]

    @classmethod
    def read(cls, path: Path | None) -> Keys:
        """The keys in a file.

        Raises:
            CatalexError: When the file cannot be read, is empty, or has a line that is no key and role.
        """
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise user_error(
                "the file of API keys cannot be read", place=path, remedy="name a text file of keys"
            ) from None
        found = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2 or len(words[0]) < SHORTEST or words[-1] not in (*ROLES, words[0]):
                raise user_error(  # the line stays unseen: it may hold a key
                    "the line is not a key and a role",
                    place=f"{path}, line {number}",
                    allowed=f"{SHORTEST} characters or more, then one of {', '.join(ROLES)}",
                    remedy="make a key with: openssl rand -hex 32",
                )
            found.append((words[0], words[1] if len(words) == 2 else "read"))
        if not found:
            raise user_error(
                "the file holds no API key", place=path, remedy="make a key with: openssl rand -hex 32"
            )
        return cls(found)

    @property
    def needed(self) -> bool:
        """Whether callers have to show a key."""
        return bool(self._digests)

    def role(self, shown: Sequence[str]) -> int:
        """The place in `ROLES` of whoever shows these keys; -1 for nobody. Of several the weakest counts."""
        if not self._digests:
            return ROLES.index("write")
        return min((self._role(key) for key in shown), default=-1)

    def _role(self, key: str) -> int:
        digest, found = _digest(key), -1
        for known, role in self._digests:
            if hmac.compare_digest(known, digest):
                found = max(found, role)
        return found


def shown_keys(headers: Sequence[tuple[bytes, bytes]]) -> list[str]:
    """The keys of a request: ``Authorization: Bearer KEY`` and ``X-API-Key: KEY``, normally one of them."""
    found = [value for name, value in headers if name == b"x-api-key"]
    found += [
        value[7:].strip()
        for name, value in headers
        if name == b"authorization" and value[:7].lower() == b"bearer "
    ]
    return [key.decode("latin-1") for key in found]


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()

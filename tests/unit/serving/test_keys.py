"""Key files, and that keys are compared in constant time."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")

from catalex.errors import CatalexError
from catalex.serving import keys
from catalex.serving.keys import Keys, shown_keys

A, B = "a" * 16, "b" * 32


def test_roles_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# the shop\n{A}\n\n  {B}   admin\n", encoding="utf-8")
    found = Keys.read(path)
    assert found.needed
    assert [found.role([key]) for key in (A, B, "c" * 16, "", "ü\udcff")] == [0, 2, -1, -1, -1]
    assert found.role([]) == -1
    assert [found.role([A, B]), found.role([B, "c" * 16])] == [0, -1], "the weakest counts"
    assert A not in repr(vars(found)), "only digests stay in memory"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no API key"),
        ("# only a comment\n", "holds no API key"),
        ("short read\n", "line 1: the line is not a key and a role"),
        (f"{A} king\n", "line 1.*allowed: 16 characters or more, then one of read, write, admin"),
        (f"{A}\n{B} read write\n", "line 2"),
    ],
)
def test_wrong_files_are_refused_without_showing_keys(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CatalexError, match=message) as caught:
        Keys.read(path)
    assert A not in str(caught.value)
    assert "king" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(CatalexError, match="cannot be read"):
            Keys.read(path)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    genuine = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return genuine(one, other)

    monkeypatch.setattr(keys.hmac, "compare_digest", counting)
    found = Keys([(A, "read"), (B, "write")])
    found.role([A])
    assert len(compared) == 2, "no early end at the first key that fits"
    assert all(len(one) == len(other) == 32 for one, other in compared)


def test_where_a_key_is_shown() -> None:
    assert shown_keys([(b"x-api-key", b"k1")]) == ["k1"]
    assert shown_keys([(b"authorization", b"bearer  k2 ")]) == ["k2"]
    assert shown_keys([(b"authorization", b"Basic abc")]) == []
    assert shown_keys([(b"x-api-key", b"k1"), (b"authorization", b"Bearer k2")]) == ["k1", "k2"]

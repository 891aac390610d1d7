"""Sentences for users: their parts, their order, and help with misspelt names."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalex.errors import CatalexError, lookup, nearest, user_error


def test_all_parts_in_one_sentence() -> None:
    error = user_error(
        "column 'user' is missing",
        place=Path("a.csv"),
        value=["item"],
        allowed=("user", "item"),
        remedy="rename the column",
    )
    assert isinstance(error, CatalexError)
    assert str(error) == (
        "a.csv: column 'user' is missing (found ['item']; allowed: user, item). Rename the column."
    )


def test_parts_may_be_left_out() -> None:
    assert str(user_error("it is broken")) == "it is broken."
    assert str(user_error("it is broken", value=0)) == "it is broken (found 0)."
    assert str(user_error("it is broken", allowed="at most 3")) == "it is broken (allowed: at most 3)."
    assert str(user_error("it is broken", remedy="did you mean 'x'?")) == "it is broken. Did you mean 'x'?"
    assert str(user_error("it is broken", remedy="mend it.")) == "it is broken. Mend it."


def test_long_values_are_shortened() -> None:
    shown = str(user_error("too long", value="x" * 500))
    assert len(shown) < 110
    assert "..." in shown


def test_nearest() -> None:
    assert nearest("epochz", ["epochs", "patience"]) == "epochs"
    assert nearest("qqq", ["epochs", "patience"]) is None


def test_lookup_finds_or_helps() -> None:
    table = {"rqkmeans": 1, "rqvae": 2}
    assert lookup(table, "rqvae", "tokenizer") == 2
    with pytest.raises(
        CatalexError, match=r"unknown tokenizer 'rqvea' \(allowed: rqkmeans, rqvae\). Did you"
    ):
        lookup(table, "rqvea", "tokenizer")
    with pytest.raises(CatalexError, match="Use one of the listed tokenizers"):
        lookup(table, "zzz", "tokenizer")

"""Options: strict, frozen, and precise about what is wrong and where."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field, ValidationError

from catalex.errors import CatalexError
from catalex.options import Options


class Inner(Options):
    rate: float = 0.1
    kind: Literal["fast", "slow"] = "fast"


class Outer(Options):
    name: str
    inner: Inner = Field(default_factory=Inner)
    many: dict[str, Inner] = Field(default_factory=dict)
    count: int = Field(default=1, ge=1)


def test_defaults_and_nested_values() -> None:
    parsed = Outer.parse({"name": "x", "inner": {"rate": 2}, "many": {"a": {"kind": "slow"}}}, "here")
    assert parsed.inner == Inner(rate=2.0)
    assert parsed.many["a"].kind == "slow"


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Inner().rate = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"name": "x", "cuont": 1},
            r"^recipe: unknown key 'cuont' \(allowed: count, .*Did you mean 'count'\?$",
        ),
        ({"name": "x", "inner": {"rat": 1}}, r"^recipe\.inner: unknown key 'rat'.*Did you mean 'rate'"),
        ({"name": "x", "many": {"a": {"kin": 1}}}, r"^recipe\.many\.a: unknown key 'kin'.*'kind'"),
        ({"name": "x", "zzzzz": 1}, r"unknown key 'zzzzz'.*Remove it"),
        ({}, r"^recipe: key 'name' is missing\. Add 'name'\.$"),
        ({"name": "x", "count": "many"}, r"^recipe\.count: input should be a valid integer.*found 'many'"),
        ({"name": "x", "count": 0}, r"^recipe\.count: .*greater than or equal to 1 \(found 0\)"),
        (
            {"name": "x", "inner": {"kind": "faster"}},
            r"^recipe\.inner\.kind: .*'fast' or 'slow'.*found 'faster'",
        ),
    ],
)
def test_mistakes_get_one_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(CatalexError, match=sentence) as caught:
        Outer.parse(values, "recipe")
    assert "\n" not in str(caught.value)

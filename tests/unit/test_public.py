"""The public face: every name is there, and asking for the package costs little."""

from __future__ import annotations

import subprocess
import sys

import pytest

import catalex


def test_every_public_name_can_be_had() -> None:
    assert len(catalex.__all__) == len(set(catalex.__all__))
    for name in catalex.__all__:
        assert getattr(catalex, name) is not None
    assert set(catalex.__all__) <= set(dir(catalex))


def test_other_names_are_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bundel'"):
        catalex.Bundel  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import catalex", "torch polars pyarrow"),
        ("import catalex.recommenders, catalex.training.loop, catalex.bundle", "polars httpx PIL"),
        ("from catalex.pipelines import pretrain", "polars httpx PIL"),
    ],
)
def test_imports_bring_only_what_they_need(code: str, absent: str) -> None:
    check = f"{code}; import sys; print([name for name in {absent.split()!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

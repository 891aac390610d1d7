"""The tokenizer that a newcomer would write runs, and keeps what the interface promises."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.tokenizers import TOKENIZERS, TokenizerDomain

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "toy_tokenizer.py"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        TOKENIZERS.pop("bins", None)
    printed = capsys.readouterr().out
    assert "different identifiers" in printed
    assert "after" in printed


def test_it_keeps_the_rules_of_the_interface() -> None:
    parts: dict[str, Any] = runpy.run_path(str(EXAMPLE))
    tokenizer = parts["Bins"](parts["BinsOptions"](levels=3, codebook_size=8))
    vectors = np.random.default_rng(0).standard_normal((100, 12)).astype(np.float32)
    with pytest.raises(CatalexError, match="has not been trained"):
        tokenizer.encode(vectors)
    domain = TokenizerDomain("toys", vectors, Histories.from_lists([]), "split")
    assert tokenizer.fit([domain], seed=0, device="cpu")["utilisation"] == [1.0, 1.0, 1.0]
    codes = tokenizer.encode(vectors)
    for level in range(3):
        np.testing.assert_array_equal(
            tokenizer.distances(vectors, codes[:, :level]).argmin(1), codes[:, level]
        )
    np.testing.assert_array_equal(tokenizer.encode(vectors[7:8]), codes[7:8])
    errors = np.square(vectors - tokenizer.decode(codes)).sum()
    assert errors < np.square(vectors - vectors.mean(0)).sum()

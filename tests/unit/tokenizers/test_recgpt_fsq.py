"""RecGPT's tokenizer: slices are independent, codes need no codebook, unseen domains need no training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.tokenizers import make_tokenizer
from catalex.tokenizers.base import TokenizerDomain
from catalex.types import Floats

TINY: dict[str, Any] = {
    "name": "recgpt-fsq",
    "levels": [4, 3],
    "heads": 1,
    "hidden": 16,
    "training": {"epochs": 3, "batch_size": 64},
}


def vectors(items: int = 100, width: int = 10, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((items, width)).astype(np.float32)


def fitted(rows: Floats, **options: Any) -> Any:
    tokenizer = make_tokenizer({**TINY, **options})
    tokenizer.fit([TokenizerDomain("a", rows, Histories.from_lists([[0]]), "split")], seed=0, device="cpu")
    return tokenizer


def test_presets_have_the_published_number_of_codes_in_one_vocabulary() -> None:
    paper = make_tokenizer({"name": "recgpt-fsq"}).space
    assert paper.sizes == (15_360,) * 4
    assert paper.groups == (0, 0, 0, 0)
    assert make_tokenizer({"name": "recgpt-fsq", "preset": "small"}).space.sizes == (1_000,) * 4


def test_a_slice_decides_its_own_code_and_no_other() -> None:
    rows = vectors()  # 10 columns in slices of 3: the last is filled up
    tokenizer = fitted(rows)
    codes = tokenizer.encode(rows)
    for level in range(4):
        changed = rows.copy()
        changed[:, 3 * level : 3 * level + 3] *= -3
        moved = tokenizer.encode(changed) != codes
        assert moved[:, level].any()
        assert not np.delete(moved, level, axis=1).any()


def test_distances_ignore_which_codes_came_before() -> None:
    rows = vectors()
    tokenizer = fitted(rows)
    one, other = np.zeros((100, 2), np.int32), np.full((100, 2), 5, np.int32)
    np.testing.assert_array_equal(tokenizer.distances(rows, one), tokenizer.distances(rows, other))


def test_an_unseen_domain_is_tokenized_and_fewer_items_than_codes_are_enough() -> None:
    tokenizer = fitted(vectors(3))
    codes = tokenizer.encode(vectors(50, seed=9))
    assert codes.shape == (50, 4)
    assert len(np.unique(codes, axis=0)) > 10


def test_training_lowers_the_mean_absolute_error() -> None:
    rows = vectors(200)
    tokenizer = make_tokenizer({**TINY, "training": {"epochs": 30, "batch_size": 100, "learning_rate": 1e-2}})
    domain = TokenizerDomain("a", rows, Histories.from_lists([[0]]), "split")
    curve = tokenizer.fit([domain], seed=0, device="cpu")["total"]
    assert curve[-1] < 0.9 * curve[0]


def test_the_loss_is_the_mean_absolute_error_of_the_decoded_codes() -> None:
    rows = vectors()
    tokenizer = fitted(rows, normalise="none")
    with torch.no_grad():
        loss = float(tokenizer.network(torch.from_numpy(rows)))
    assert loss == pytest.approx(
        float(np.abs(rows - tokenizer.decode(tokenizer.encode(rows))).mean()), rel=1e-4
    )


def test_heads_that_do_not_divide_a_slice_are_refused() -> None:
    with pytest.raises(CatalexError, match=r"slice is not divisible.*divisors of 3"):
        fitted(vectors(), heads=2)


def test_a_number_of_one_value_is_refused() -> None:
    with pytest.raises(CatalexError, match="at least two values"):
        make_tokenizer({"name": "recgpt-fsq", "levels": [8, 1]})

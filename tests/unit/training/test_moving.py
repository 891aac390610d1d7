"""Arrays that are moved to a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catalex.training.moving import moved


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
def test_values_and_type_stay(dtype: type) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    assert np.array_equal(moved(array, "cpu").numpy(), array)
    assert moved(array, "cpu").numpy().dtype == dtype


@pytest.mark.gpu
def test_copies_on_their_way_are_not_written_over() -> None:
    """Many copies behind a long step: each has its own memory until it is done."""
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy / 64
    found = [moved(np.full(1000, number), "cuda") for number in range(200)]
    assert [int(values.max()) for values in found] == list(range(200))
    assert [int(values.min()) for values in found] == list(range(200))

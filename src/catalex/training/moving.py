"""Batches on their way to the device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def moved(array: NDArray[Any], device: str | torch.device) -> Tensor:
    """`array`, of any shape, as a tensor on `device`.

    To a card it goes through page-locked memory: from any other a copy waits for all steps that were handed
    over before, and the host with it.
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

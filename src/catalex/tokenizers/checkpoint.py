"""Checkpoints of a tokenizer's training: module, optimizer and curves after an epoch, written atomically.

A checkpoint is ``checkpoint_<epoch>.safetensors``; ``checkpoint.json``, written after it, names the valid
one. Seeds of the epochs are derived from (seed, epoch), so no generator state has to be kept.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from catalex.artifacts import read_arrays, read_json, write_arrays, write_json

STATE_FILE = "checkpoint.json"

Curves = dict[str, Any]
"""Facts of a training by name, mostly lists with a value an epoch."""


def epoch_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed of its own for each epoch and purpose ("order", "revive")."""
    return zlib.crc32(f"{seed}/{epoch}/{purpose}".encode())


def save_checkpoint(
    folder: Path, epoch: int, module: nn.Module, optimizer: torch.optim.Optimizer, curves: Curves
) -> None:
    """Keep the state after `epoch` finished epochs; drops the checkpoint before."""
    arrays = {f"module.{name}": tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            arrays[f"optimizer.{index}.{key}"] = torch.as_tensor(value).detach().cpu().numpy()
    name = f"checkpoint_{epoch}.safetensors"
    write_arrays(folder / name, arrays)
    write_json(folder / STATE_FILE, {"epoch": epoch, "file": name, "curves": curves})
    for old in folder.glob("checkpoint_*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, Curves] | None:
    """Restore the state of a killed run into `module` and `optimizer`.

    Returns:
        The number of finished epochs and the curves, or None when there is no checkpoint.
    """
    if not (folder / STATE_FILE).is_file():
        return None
    record = read_json(folder / STATE_FILE)
    arrays = read_arrays(folder / record["file"])
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    module.load_state_dict(
        {
            name.removeprefix("module."): tensor
            for name, tensor in tensors.items()
            if name.startswith("module.")
        }
    )
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return int(record["epoch"]), dict(record["curves"])

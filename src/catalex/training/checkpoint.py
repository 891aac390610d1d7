"""Checkpoints of a training run: one folder, replaced as a whole, readable after a kill at any moment."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from catalex.artifacts import explain_os_error, read_arrays, read_json, write_arrays, write_json
from catalex.types import JSON

CURRENT = "checkpoint"


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, torch.Tensor] | None,
    state: JSON,
) -> None:
    """Replace the checkpoint in `folder` by the present weights, moments, best weights and `state`."""
    fresh, current, old = folder / f"{CURRENT}.new", folder / CURRENT, folder / f"{CURRENT}.old"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        write_arrays(fresh / "model.safetensors", _numpy(model.state_dict()))
        write_arrays(fresh / "optimizer.safetensors", _numpy(_moments(optimizer)))
        if best is not None:
            write_arrays(fresh / "best.safetensors", _numpy(best))
        write_json(fresh / "state.json", state)
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(current, old)
        os.replace(fresh, current)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[JSON, dict[str, torch.Tensor] | None] | None:
    """Put the last checkpoint into `model` and `optimizer`.

    Returns:
        Its state and the best weights (None before the first validation); None when there is no checkpoint.
    """
    present = next(
        (p for p in (folder / CURRENT, folder / f"{CURRENT}.old") if (p / "state.json").is_file()), None
    )
    if present is None:
        return None
    model.load_state_dict(_tensors(read_arrays(present / "model.safetensors")))
    _restore_moments(optimizer, _tensors(read_arrays(present / "optimizer.safetensors")))
    best = present / "best.safetensors"
    return read_json(present / "state.json"), _tensors(read_arrays(best)) if best.is_file() else None


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Optimizer state as named tensors: ``<parameter number>.<key>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{key}": torch.as_tensor(value)
        for number, values in state.items()
        for key, value in values.items()
    }


def _restore_moments(optimizer: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in moments.items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _tensors(arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    # cloned into torch's own, aligned memory: products of two threads may round by where the numbers lie
    return {name: torch.from_numpy(np.array(array)).clone() for name, array in arrays.items()}

"""Times and memory of a thing that is done again and again, on a CPU or a CUDA device."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

WARM_UP = {"cpu": 1, "cuda": 3}
"""Runs that are not counted."""
SIDES = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices whose product is the peak."""


@dataclass
class Measured:
    """Times of one thing that was measured, `items` items each, and the memory it took at most."""

    items: int
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Of this process; nothing of a GPU."""
    making: list[float] = field(default_factory=list)
    """Seconds of a training step before the network starts: reading, padding, copying."""
    peak_gib: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    """Operations of all items, by what does them."""

    @property
    def second(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.second

    @property
    def rate_by_processor(self) -> float:
        """Items a second of processor time, of all threads together."""
        return self.items / statistics.median(self.processor)

    def speed(self, device: str) -> float:
        """Operations a second; on a CPU those of its threads, by the time that it gave to them."""
        operations = sum(self.parts.values())
        if device != "cpu":
            return operations / self.second
        return operations / (statistics.median(self.processor) / torch.get_num_threads())


def matrix_peak(dtype: torch.dtype, side: int, device: str) -> float:
    """Operations a second of products of two random square matrices."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products = 1 if device == "cpu" else 10

    def run(number: int) -> None:
        for _ in range(products):
            left @ right

    found = measure(run, products, 10, device)
    found.parts["product"] = 2.0 * products * side**3
    return found.speed(device)


def measure(run: Callable[[int], Any], items: int, steps: int, device: str) -> Measured:
    """Times of ``run(number)``, the first ones not counted."""
    found, warm_up = Measured(items), WARM_UP[device.split(":")[0]]
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for number in range(warm_up + steps):
        wait(device)
        began = time.perf_counter(), time.process_time()
        run(number)
        wait(device)
        if number >= warm_up:
            found.seconds.append(time.perf_counter() - began[0])
            found.processor.append(time.process_time() - began[1])
    found.peak_gib = peak_gib(device)
    return found


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_gib(device: str) -> float:
    """GiB of tensors on the GPU since the last reset; on a CPU of the whole process since its start."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

"""One training loop for every model: planned batches, early stopping, exact resume, captured steps on CUDA.

Whatever is random at step s is seeded from (seed, s), and whatever has been summed is in the checkpoint. A
killed run therefore ends, after resuming, at the bits of an uninterrupted one (on one device with one thread
count).

With several processes each takes its rows of every batch, and gradients are averaged over processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import PartialState
from pydantic import Field
from torch import Tensor, nn

from catalex.capturing import capturing
from catalex.errors import user_error
from catalex.options import Options, Positive
from catalex.progress import Track, say
from catalex.training.checkpoint import load_checkpoint, save_checkpoint
from catalex.training.distributed import average_gradients, meet, same_everywhere, share
from catalex.training.optim import Decay, Recipe, Schedule, adam, learning_rate, set_learning_rate
from catalex.training.seeds import deterministic, seed_torch

Batch = Mapping[str, Tensor]
"""Tensors of one step, on the device; the same keys every step, few distinct shapes."""


class EpochPlan(Protocol):
    """The batches of one epoch; any of them may be asked for, in any order.

    A plan whose attribute `shared` is true gives every process its own share of a batch; otherwise the loop
    takes this process's rows of it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


class TrainingOptions(Options):
    """How a model is optimised."""

    epochs: Positive = 100
    """Passes over the training examples at most; the cosine schedule reaches 0 after this many."""
    batch_size: Positive = 1024
    """Examples a step, over all processes."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of Adam."""
    weight_decay: float = Field(default=0.0, ge=0)
    """How much weights decay."""
    decay: Decay = "decoupled"
    """`decoupled`: AdamW, of matrices alone. `l2`: Adam with the weights added to the gradients, all of them
    (`training.optim.Decay`)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    schedule: Schedule = "constant"
    """Learning rate after warm-up."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; null for no clipping."""
    patience: Positive = 10
    """Validations without improvement before training stops."""
    evaluate_every: Positive = 1
    """Epochs between two validations."""
    base_batch_size: Positive | None = None
    """Batch size for which learning rate, decay and warm-up are meant; at another one they are converted by
    the square-root rule of Adam (Malladi et al. 2022, arXiv 2205.10287). null takes them as they are."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of matrix products; weights stay float32. `auto` is bf16 on CUDA and fp32 on a CPU."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Seconds between two checkpoints; has no influence on results."""


@dataclass
class TrainingReport:
    """What a training run did; `curves` has one entry a validation."""

    curves: dict[str, list[float]] = field(
        default_factory=lambda: {"epoch": [], "loss": [], "valid_ndcg@10": []}
    )
    best_epoch: int = 0
    best_metric: float = -math.inf
    steps: int = 0
    seconds: float = 0.0
    examples: int = 0


def train(
    model: nn.Module,
    *,
    plan: Callable[[int], EpochPlan],
    loss: Callable[[nn.Module, Batch], Tensor],
    validate: Callable[[nn.Module], float],
    options: TrainingOptions,
    seed: int,
    device: str,
    partial: Path | None,
    name: str,
    metric_name: str = "valid NDCG@10",
) -> TrainingReport:
    """Train `model` in place and leave the weights of its best validation in it.

    Args:
        plan: Gives the batches of an epoch 0, 1, ..; must depend on the epoch alone.
        loss: Mean loss of a batch, to be minimised; no host synchronisation inside. Several processes call it
            with their rows each; where these may count unequally, or not at all, it is the joint mean by
            `distributed.global_mean`.
        validate: Metric to be maximised (NDCG@10), called with the model in evaluation mode, in the main
            process alone.
        partial: Folder for checkpoints, or None to keep none; the main process writes them.
        name: Shown beside the progress.
        metric_name: What `validate` gives, shown there too; empty shows the loss alone.

    Raises:
        CatalexError: When the loss stops being a number, or a batch has fewer rows than there are processes.
    """
    processes = PartialState(cpu=not device.startswith("cuda"))
    if options.batch_size < processes.num_processes:
        raise user_error(
            "there are more processes than examples in a batch",
            place=name,
            value=options.batch_size,
            remedy="start fewer processes, or raise batch_size",
        )
    model.to(device)
    same_everywhere(model.state_dict().values())
    recipe = Recipe(options.learning_rate, options.weight_decay, options.warmup_steps, options.decay)
    recipe = recipe.for_batch(options.batch_size, options.base_batch_size)
    optimizer = adam(
        model,
        recipe.learning_rate,
        recipe.weight_decay,
        device,
        decay=recipe.decay,
        betas=recipe.betas,
        eps=recipe.eps,
    )
    report, epoch, begin, total, best = TrainingReport(), 0, 0, 0.0, None
    restored = load_checkpoint(partial, model, optimizer) if partial is not None else None
    if restored is not None:
        state, best = restored
        report = TrainingReport(**state["report"])
        epoch, begin, total = state["epoch"], state["begin"], state["total"]
        say(f"{name}: resuming at epoch {epoch + 1}, step {report.steps}")
    meet(device)  # nobody replaces the checkpoint while another reads it
    step = make_step(model, loss, optimizer, options, device, processes)
    loss_sum = torch.tensor(total, dtype=torch.float64, device=device)
    first = plan(epoch) if epoch < options.epochs else plan(0)
    clock = time.monotonic()

    def checkpoint() -> None:
        nonlocal clock
        report.seconds += time.monotonic() - clock
        clock = time.monotonic()
        if partial is not None and processes.is_main_process:
            state = {"report": asdict(report), "epoch": epoch, "begin": begin, "total": loss_sum.item()}
            save_checkpoint(partial, model, optimizer, best, state)

    saved = time.monotonic()
    total_steps = options.epochs * len(first)
    with deterministic(device), Track(f"train {name}", total_steps, "steps", start=report.steps) as track:
        while epoch < options.epochs and not _exhausted(report, options):
            batches = first if begin or epoch == 0 else plan(epoch)
            model.train()
            for index in range(begin, len(batches)):
                rate = learning_rate(
                    report.steps,
                    peak=recipe.learning_rate,
                    total=total_steps,
                    warmup=recipe.warmup_steps,
                    schedule=options.schedule,
                )
                set_learning_rate(optimizer, rate)
                seed_torch(seed, "step", report.steps, processes.process_index)
                batch = batches[index]
                loss_sum += step(batch if getattr(batches, "shared", False) else _share(batch, processes))
                report.steps += 1
                report.examples += options.batch_size
                begin = index + 1
                track.advance(note=f"epoch {epoch + 1}")
                if partial is not None and time.monotonic() - saved >= options.checkpoint_seconds:
                    checkpoint()
                    saved = time.monotonic()
            mean = loss_sum.item() / len(batches)
            if not math.isfinite(mean):
                raise user_error(
                    "the loss is no longer a number",
                    place=f"{name}, epoch {epoch + 1}",
                    remedy="lower learning_rate or set clip_norm: 1.0",
                )
            epoch, begin = epoch + 1, 0
            loss_sum.zero_()
            if epoch % options.evaluate_every == 0 or epoch == options.epochs:
                metric = _validated(model, validate, processes, device)
                report.curves["epoch"].append(epoch)
                report.curves["loss"].append(mean)
                report.curves["valid_ndcg@10"].append(metric)
                if metric > report.best_metric:
                    report.best_metric, report.best_epoch = metric, epoch
                    best = {key: value.detach().clone() for key, value in model.state_dict().items()}
                track.advance(
                    0,
                    note=f"epoch {epoch}, loss {mean:.4f}"
                    + (
                        f", {metric_name} {metric:.4f} (best {report.best_metric:.4f})" if metric_name else ""
                    ),
                )
    if best is not None:
        model.load_state_dict(best)
    checkpoint()
    model.eval()
    return report


def _exhausted(report: TrainingReport, options: TrainingOptions) -> bool:
    """Whether the last `patience` validations all failed to improve on the best."""
    since_best = [e for e in report.curves["epoch"] if e > report.best_epoch]
    return report.best_epoch > 0 and len(since_best) >= options.patience


def _validated(
    model: nn.Module, validate: Callable[[nn.Module], float], processes: PartialState, device: str
) -> float:
    """The main process's metric, on every process: all stop at the same epoch."""
    model.eval()
    with torch.no_grad():
        metric = validate(model) if processes.is_main_process else 0.0
    if processes.num_processes == 1:
        return metric
    told = torch.tensor(metric, dtype=torch.float64, device=device)
    same_everywhere([told])
    return float(told)


def _share(batch: Batch, processes: PartialState) -> Batch:
    """This process's rows of a batch."""
    if processes.num_processes == 1:
        return batch
    return {key: share(value, processes) for key, value in batch.items()}


# --- steps --------------------------------------------------------------------------------------------------


def make_step(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
    device: str,
    processes: PartialState | None = None,
) -> Callable[[Batch], Tensor]:
    """A function that does one optimiser step and returns the detached loss."""
    on_cuda = device.startswith("cuda")
    bf16 = options.precision == "bf16" or (options.precision == "auto" and on_cuda)

    def eager(batch: Batch) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=bf16):
            value = loss(model, batch)
        value.backward()
        average_gradients(model)
        if options.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm, foreach=True)
        optimizer.step()
        return value.detach()

    alone = processes is None or processes.num_processes == 1
    return _CapturedStep(eager) if on_cuda and alone else eager


class _CapturedStep:
    """Replays a whole step (forward, backward, clipping, optimiser) as one CUDA graph for each batch shape.

    The first batch of a shape runs eagerly, as a real step that also warms up; the second is captured. Small
    models are bound by kernel launches, which a graph removes.
    """

    def __init__(self, eager: Callable[[Batch], Tensor]) -> None:
        self.eager = eager
        self.seen: set[Any] = set()
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}
        self.pool: Any = None

    def __call__(self, batch: Batch) -> Tensor:
        shape = tuple((key, tuple(value.shape)) for key, value in batch.items())
        if shape not in self.seen:
            self.seen.add(shape)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                value = self.eager(batch)
            torch.cuda.current_stream().wait_stream(stream)
            return value
        if shape not in self.graphs:
            inputs = {key: value.clone() for key, value in batch.items()}
            graph = torch.cuda.CUDAGraph()
            with capturing(graph, self.pool):
                output = self.eager(inputs)
            self.pool = self.pool or graph.pool()
            self.graphs[shape] = (graph, inputs, output)
        graph, inputs, output = self.graphs[shape]
        for key, value in batch.items():
            inputs[key].copy_(value)
        graph.replay()
        return output

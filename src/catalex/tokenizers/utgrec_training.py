"""Training of UTGRec: warm-up of the quantizer, then everything at once; fine-tuning to one domain.

Whatever is random at step s is seeded from (seed, s); with the last checkpoint a killed run ends at the
result of an uninterrupted one. With several processes (``accelerate launch``) each takes its share of every
batch, and losses and gradients are those of one process on the whole batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

from catalex.errors import user_error
from catalex.features.latents import LatentIndex
from catalex.features.trainable.base import Batch, ContentIndex
from catalex.progress import Track, say
from catalex.tokenizers.checkpoint import Curves, epoch_seed
from catalex.tokenizers.positives import Positives
from catalex.tokenizers.utgrec_network import TEXT_STEP, Losses, Step, Targets, UTGRecNetwork
from catalex.tokenizers.utgrec_options import UTGRecOptions
from catalex.training.checkpoint import load_checkpoint, save_checkpoint
from catalex.training.distributed import average_gradients, meet, same_everywhere, share
from catalex.training.optim import adam, learning_rate, set_learning_rate
from catalex.types import Ints

SAMPLE = 16384
"""Items that the k-means start looks at: more than ten for every code of a leaf codebook of 512 (10 K at
least)."""
REVIVE_SAMPLE = 2048
"""Items that decide which codes are unused."""
REVIVE_UNTIL = 0.8
"""Share of pre-training in which unused codes restart; later they settle."""
ROWS = 64
"""Items encoded at once without gradient; fixed, so that nothing depends on it."""


@dataclass(frozen=True)
class Material:
    """All items of the training domains, one domain after the other, read and tokenized.

    Attributes:
        index: What the encoder reads.
        positives: Neighbours in training sequences, and the items that occur in them.
        vectors: ``(N, D)`` frozen content vectors on the CPU.
        latents: Image latents; None without a visual decoder.
    """

    index: ContentIndex
    positives: Positives
    vectors: Tensor
    latents: LatentIndex | None = None

    def project(self, network: UTGRecNetwork, rows: Ints, device: str) -> Tensor:
        """See `project_rows`."""
        return project_rows(network, self.index, self.vectors, rows, device)

    def targets(self, rows: Ints, generator: torch.Generator) -> Targets:
        """What is to be reconstructed of items `rows` ``(B,)``, on the CPU."""
        tokens = keep = places = pictured = latents = present = None
        if self.index.text is not None:
            tokens, keep = _padded(self.index.text.tokens, self.index.text.offsets, rows)
            places = keep.flatten().nonzero().squeeze(1)
        if self.latents is not None:
            seen = np.flatnonzero(self.latents.present[rows])
            seen = seen if len(seen) else np.zeros(1, np.int64)
            pictured, latents = torch.from_numpy(seen), self.latents.batch(rows[seen], generator)
            present = torch.from_numpy(self.latents.present[rows[seen]].astype(np.float32))
        vectors = self.vectors[torch.from_numpy(rows)]
        return Targets(tokens, keep, places, pictured, latents, present, vectors)


def train_utgrec(
    network: UTGRecNetwork,
    material: Material,
    *,
    seed: int,
    device: str,
    partial: Path | None,
    name: str,
    fine_tune: bool = False,
    follow: Callable[[], None] | None = None,
) -> Curves:
    """Train `network` in place on `device`.

    Args:
        fine_tune: Use the rate, epochs and warm-up of fine-tuning, and no restart of codes; what is frozen
            (the code vectors C) is the caller's choice.
        follow: Called in fine-tuning when quantization begins: lets the codes follow H' to the domain.
        partial: Folder for checkpoints, or None.
        name: Shown beside the progress.

    Returns:
        Curves with a value an epoch (``total``, ``text``, ``image``, ``code``, ``alignment``,
        ``cooccurrence``), ``utilisation`` by level at the restarts of unused codes and the ``utilisation_at``
        steps, ``parameters``, ``trained_parameters``, ``items``, ``steps``.

    Raises:
        CatalexError: When there is nothing to train on, or too little for so many processes, or the loss
            stops being a number.
    """
    o = network.options
    processes = PartialState(cpu=not device.startswith("cuda"))
    network.to(device).train()
    # closed-form starts may round differently on another machine; training builds on equal weights
    same_everywhere(p for p in network.parameters() if p.requires_grad)
    rows = material.positives.trained
    if not len(rows):
        raise user_error("no item occurs in a training sequence", place=name, remedy="check the split")
    epochs = o.fine_tune_epochs if fine_tune else o.epochs
    plan = _Plan(rows, o.batch, epochs, seed)
    if plan.least < processes.num_processes:
        raise user_error(
            "a step has fewer items than there are processes",
            place=name,
            value=plan.least,
            allowed=f"at least {processes.num_processes}",
            remedy="raise tokenizer.batch, or start fewer processes",
        )
    peak = o.fine_tune_rate if fine_tune else o.learning_rate
    rising = round(o.warmup * plan.steps)
    warm = _unquantized_steps(o, plan.steps, fine_tune)
    optimizer = adam(network, peak, o.weight_decay, device, fast=network.decoders(), ratio=o.decoder_ratio)
    curves: Curves = {key: [] for key in Losses._fields}
    curves.update({"utilisation": [], "utilisation_at": []})
    sums, begin = torch.zeros(len(Losses._fields), dtype=torch.float64, device=device), 0
    changing = _Changing(network)
    restored = load_checkpoint(partial, changing, optimizer) if partial is not None else None
    if restored is not None:
        state = restored[0]
        begin, curves = state["step"], state["curves"]
        sums += torch.tensor(state["sums"], dtype=torch.float64, device=device)
        say(f"{name}: resuming at step {begin}")
    meet(device)  # nobody replaces the checkpoint while another reads it
    if restored is None:
        _estimate(network, material, plan, device, processes, name)
    saved = time.monotonic()

    def make(number: int) -> Step:
        return _step(network, material, plan.batch(number), seed, number, "cpu", processes)

    with ThreadPoolExecutor(1) as ahead, Track(f"train {name}", plan.steps, "steps", start=begin) as track:
        if begin < plan.steps:
            coming = ahead.submit(make, begin)  # while the device computes a step, the next is read
        for number in range(begin, plan.steps):
            if number == warm and fine_tune and follow is not None:
                follow()
                same_everywhere(network.codebooks.parameters())
            if number == warm and not fine_tune and o.kmeans_init:
                _place_codes(network, material, rows, seed, device)
            set_learning_rate(
                optimizer,
                learning_rate(number, peak=peak, total=plan.steps, warmup=rising, schedule="cosine"),
            )
            step = _step_to(coming.result(), device)
            if number + 1 < plan.steps:
                coming = ahead.submit(make, number + 1)
            torch.manual_seed(epoch_seed(seed, number, f"step of process {processes.process_index}"))
            losses = _backward(network, step, number >= warm, device)
            average_gradients(network)
            torch.nn.utils.clip_grad_norm_(network.parameters(), o.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            sums += torch.stack(losses).detach().double()
            done = number + 1
            if (
                not fine_tune
                and o.revive_every
                and warm < done <= REVIVE_UNTIL * plan.steps
                and done % o.revive_every == 0
            ):
                used = _revive(network, material, rows, seed, done, device)
                curves["utilisation"].append(used)
                curves["utilisation_at"].append(done)
            note = f"epoch {number // plan.each + 1}"
            if done % plan.each == 0:
                means = (sums / plan.each).tolist()
                sums.zero_()
                if not all(map(math.isfinite, means)):
                    raise user_error(
                        "the loss is no longer a number",
                        place=f"{name}, {note}",
                        remedy=f"lower tokenizer.{'fine_tune_rate' if fine_tune else 'learning_rate'}",
                    )
                for key, value in zip(Losses._fields, means, strict=True):
                    curves[key].append(value)
                note += ", " + ", ".join(
                    f"{key} {value:.4g}" for key, value in zip(Losses._fields, means, strict=True)
                )
            track.advance(note=note)
            if (
                partial is not None
                and processes.is_main_process
                and (done == plan.steps or time.monotonic() - saved >= o.checkpoint_seconds)
            ):
                state = {"step": done, "curves": curves, "sums": sums.tolist()}
                save_checkpoint(partial, changing, optimizer, None, state)
                saved = time.monotonic()
    network.eval()
    curves["parameters"] = sum(p.numel() for p in network.parameters())
    curves["trained_parameters"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    curves["items"], curves["steps"] = len(rows), plan.steps
    return curves


@torch.no_grad()
def project_rows(
    network: UTGRecNetwork,
    index: ContentIndex,
    vectors: Tensor,
    rows: Ints,
    device: str,
    track: Track | None = None,
) -> Tensor:
    """H' of items `rows`, ``(n, L, d_c)`` float32 on the CPU, in evaluation mode and full precision.

    `vectors` ``(N, D)`` are the frozen content vectors of all items of the index.
    """
    training = network.training
    network.eval()
    found = []
    for start in range(0, len(rows), ROWS):
        chosen = rows[start : start + ROWS]
        content = {key: value.to(device) for key, value in index.batch(chosen).items()}
        frozen = vectors[torch.from_numpy(chosen)].to(device)
        found.append(network.projected(network.hidden(content), frozen).cpu())
        if track is not None:
            track.advance(len(chosen))
    network.train(training)
    if not found:
        return torch.zeros(0, network.options.levels, network.options.code_width)
    return torch.cat(found)


class _Changing(nn.Module):
    """The network as checkpoints see it: without the frozen weights of a large encoder, which never change
    (and may be of a type that numpy does not know)."""

    def __init__(self, network: UTGRecNetwork) -> None:
        super().__init__()
        self.__dict__["network"] = network  # past nn.Module, which would register it

    def state_dict(self, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        network: UTGRecNetwork = self.__dict__["network"]
        return network.trained()

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        self.__dict__["network"].restore(dict(state_dict))


class _Plan:
    """Which items each step takes: every epoch all of them, in an order of its own, in steps of about equal
    size, so that no step is left with too few items for its negatives."""

    def __init__(self, rows: Ints, batch: int, epochs: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.each = math.ceil(len(rows) / batch)
        self.size, self.least = math.ceil(len(rows) / self.each), len(rows) // self.each
        self.steps = self.each * epochs
        self._parts: tuple[int, list[Ints]] = (-1, [])

    def batch(self, number: int) -> Ints:
        """Rows ``(B,)`` of one step, from `least` to `size`."""
        epoch, place = divmod(number, self.each)
        if self._parts[0] != epoch:
            shuffled = np.random.default_rng(epoch_seed(self.seed, epoch, "order")).permutation(self.rows)
            self._parts = (epoch, np.array_split(shuffled, self.each))
        return self._parts[1][place]


def _step(
    network: UTGRecNetwork,
    material: Material,
    rows: Ints,
    seed: int,
    number: int,
    device: str,
    processes: PartialState,
) -> Step:
    """This process's share of a step, on the device."""
    o = network.options
    positives = rows
    if o.needs_positives:
        drawn = np.random.default_rng(epoch_seed(seed, number, "positives"))
        positives = material.positives.draw(rows, drawn)
    rows, positives = share(rows, processes), share(positives, processes)
    generator = torch.Generator().manual_seed(
        epoch_seed(seed, number, f"images of process {processes.process_index}")
    )
    read = np.concatenate([rows, positives]) if o.alignment_weight > 0 else rows
    other = material.targets(positives, generator) if o.cooccurrence_weight > 0 else None
    made = Step(
        content=material.index.batch(read),
        rows=torch.from_numpy(rows),
        positive_rows=torch.from_numpy(positives),
        own=material.targets(rows, generator),
        positive=other,
        frozen=material.vectors[torch.from_numpy(read)],
    )
    return _step_to(made, device)


def _backward(network: UTGRecNetwork, step: Step, quantize: bool, device: str) -> Losses:
    kind = device.split(":")[0]
    precision = network.options.precision
    bf16 = precision == "bf16" or (precision == "auto" and kind == "cuda")
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=bf16):
        losses: Losses = network(step, quantize)
    losses.total.backward()
    return losses


def _sample(rows: Ints, count: int, seed: int) -> Ints:
    """At most `count` random ones of `rows`, ascending."""
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


def _place_codes(network: UTGRecNetwork, material: Material, rows: Ints, seed: int, device: str) -> None:
    """Start the codebooks by k-means on what the encoder says now."""
    chosen = _sample(rows, SAMPLE, epoch_seed(seed, 0, "k-means sample"))
    found = material.project(network, chosen, device)
    network.codebooks.initialise(found.to(device), epoch_seed(seed, 0, "k-means"))
    same_everywhere(network.codebooks.parameters())


def _revive(
    network: UTGRecNetwork,
    material: Material,
    rows: Ints,
    seed: int,
    number: int,
    device: str,
) -> list[float]:
    """Restart unused codes on a sample; their use before, level by level."""
    chosen = _sample(rows, REVIVE_SAMPLE, epoch_seed(seed, number, "revive sample"))
    found = material.project(network, chosen, device)
    used = network.codebooks.revive(found.to(device), epoch_seed(seed, number, "revive"))
    same_everywhere(network.codebooks.parameters())
    shares: list[float] = used.tolist()
    return shares


def _estimate(
    network: UTGRecNetwork, material: Material, plan: _Plan, device: str, processes: PartialState, name: str
) -> None:
    """Say how long and how large the run will be, from a step that changes nothing."""
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    every = sum(p.numel() for p in network.parameters())
    text = f"{name}: {every / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained; "
    text += f"{len(plan.rows):,} items, {plan.steps:,} steps of {plan.size}"
    if plan.steps >= 100:
        on_cuda = device.startswith("cuda")
        seconds = math.inf
        for _ in range(2):  # the first one also loads kernels
            began = time.monotonic()
            step = _step(network, material, plan.batch(0), plan.seed, 0, device, processes)
            _backward(network, step, True, device)
            if on_cuda:
                torch.cuda.synchronize()
            seconds = min(seconds, time.monotonic() - began)
        network.zero_grad(set_to_none=True)
        moments = 8 * trained  # AdamW keeps two float32 numbers a weight, from the first step on
        text += f"; about {_duration(seconds * plan.steps)}"
        if on_cuda:
            text += f" and {(torch.cuda.max_memory_allocated() + moments) / 2**30:.1f} GiB of GPU memory"
        else:
            text += f" and {(4 * every + 4 * trained + moments) / 2**30:.1f} GiB beside the activations"
    say(text)


def _unquantized_steps(o: UTGRecOptions, steps: int, fine_tune: bool) -> int:
    """Steps of warm-up, after which codes are placed and used."""
    if fine_tune:
        return math.floor(o.fine_tune_warmup * steps)
    return steps // 2 if o.quantizer_warmup is None else min(o.quantizer_warmup, steps // 2)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"


def _padded(tokens: Ints, offsets: Ints, rows: Ints) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, T)`` of texts `rows` and which are real ``(B, T)``."""
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    width = max(-(-int(lengths.max(initial=1)) // TEXT_STEP) * TEXT_STEP, TEXT_STEP)
    place = np.arange(width)
    keep = place < lengths[:, None]
    where = np.where(keep, starts[:, None] + place, 0)
    found = np.where(keep, tokens[where] if len(tokens) else 0, 0).astype(np.int64)
    return torch.from_numpy(found), torch.from_numpy(keep)


def _moved(batch: Batch, device: str) -> Batch:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def _step_to(step: Step, device: str) -> Step:
    """A step on `device`."""
    return Step(
        content=_moved(step.content, device),
        rows=step.rows.to(device, non_blocking=True),
        positive_rows=step.positive_rows.to(device, non_blocking=True),
        own=_targets_to(step.own, device),
        positive=None if step.positive is None else _targets_to(step.positive, device),
        frozen=None if step.frozen is None else step.frozen.to(device, non_blocking=True),
    )


def _targets_to(targets: Targets, device: str) -> Targets:
    moved = {
        field.name: None if value is None else value.to(device, non_blocking=True)
        for field in fields(targets)
        for value in [getattr(targets, field.name)]
    }
    return Targets(**moved)

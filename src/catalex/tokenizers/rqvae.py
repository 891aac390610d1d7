"""RQ-VAE: an autoencoder whose latent vector is residually quantized (TIGER, arXiv 2305.05065)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from catalex.options import Options, with_preset
from catalex.progress import Track
from catalex.quantize import in_blocks, reconstruct, residual_distances, residual_encoder
from catalex.quantize.vq import Reduction
from catalex.tokenizers.autoencoder import AutoencoderTokenizer
from catalex.tokenizers.base import CodeSpace, ResidualPart, TokenizerDomain
from catalex.tokenizers.checkpoint import Curves, epoch_seed, load_checkpoint, save_checkpoint
from catalex.tokenizers.folder import Training
from catalex.tokenizers.normalise import Normalisation, Normaliser
from catalex.tokenizers.rqvae_network import Losses, RQVAENetwork
from catalex.tokenizers.training_set import Balance, check_domains, pooled
from catalex.types import JSON, Codes, Floats

Objective = Callable[[Tensor], tuple[Tensor, ...]]
"""Losses, scalars, of a batch of items given by their rows ``(B,)``."""

DEFAULT_STEPS = 4000
"""Optimizer steps that `epochs: null` aims at."""

PRESETS: dict[str, dict[str, Any]] = {
    "tiger": {},
    "lcrec": {
        "levels": 4,
        "hidden": (2048, 1024, 512, 256, 128, 64),
        "reduction": "mean",
        "weight_decay": 1e-4,
    },
    "mtgrec": {
        "hidden": (2048, 1024, 512, 256, 128),
        "latent": 128,
        "normalise": "whiten",
        "components": 128,
        "decay": 0.99,
        "optimizer": "adagrad",
        "batch": 2048,
        "reduction": "mean",
    },
}
"""Published settings that differ from the defaults, which are TIGER's."""


class RQVAEOptions(Options):
    """Settings of the RQ-VAE. A preset fills in what is not given."""

    preset: Literal["tiger", "lcrec", "mtgrec"] = "tiger"
    """"tiger": the paper. "lcrec": LC-Rec's and LETTER's code. "mtgrec": MTGRec's official configuration."""
    levels: int = Field(3, ge=1, le=8)
    """L, codes an item. TIGER: 3."""
    codebook_size: int = Field(256, ge=2, le=65536)
    """K, codes a level. TIGER: 256."""
    hidden: tuple[int, ...] = (512, 256, 128)
    """Hidden widths of the encoder; the decoder mirrors them. TIGER: 512, 256, 128."""
    latent: int = Field(32, ge=1)
    """Width of the quantized vector. TIGER: 32."""
    beta: float = Field(0.25, ge=0)
    """Weight of the commitment loss. TIGER: 0.25."""
    decay: float | None = Field(None, gt=0, le=1)
    """Decay of moving-average codebooks; None learns them by gradient as TIGER does. MTGRec: 0.99."""
    reduction: Reduction = "sum"
    """"sum": squared norms as TIGER's formula has them; "mean": element-wise means as in LC-Rec's code."""
    normalise: Normalisation = "centre"
    """Ours: unit vectors have tiny entries, and a common mean would dominate the first codes."""
    components: int | None = Field(None, ge=1)
    """Principal components kept by `normalise: whiten`; None keeps all. MTGRec: 128."""
    balance: Balance = "proportional"
    """Weight of the domains: "proportional" to their items, or "equal"."""
    optimizer: Literal["adamw", "adagrad"] = "adamw"
    """Ours: AdamW needs hundreds of epochs where TIGER's Adagrad (rate 0.4) is given 20,000."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW 1e-3 (LC-Rec, LETTER); TIGER's Adagrad 0.4; MTGRec's Adagrad 1e-3."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW, on the MLPs only. LC-Rec: 1e-4."""
    batch: int = Field(1024, ge=1)
    """Items of a step. TIGER: 1024."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the items; None takes as many as give about 4,000 steps (ours). TIGER: 20,000."""
    kmeans_init: bool = True
    """Place the codebooks by k-means on the first batch (TIGER)."""
    revive_until: float = Field(0.8, ge=0, le=1)
    """After each epoch of this first share of the training, unused codes restart on random residuals (ours,
    against codebook collapse); 0 switches it off."""
    checkpoint_every: int = Field(20, ge=1)
    """Epochs between two checkpoints."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        return with_preset(values, PRESETS)

    def epochs_for(self, items: int) -> int:
        """Epochs of a training on `items` items."""
        if self.epochs is not None:
            return self.epochs
        return math.ceil(DEFAULT_STEPS / math.ceil(items / self.batch))


class RQVAE(AutoencoderTokenizer[RQVAENetwork]):
    """Codes of the latent vector of an autoencoder."""

    Options: ClassVar[type[Options]] = RQVAEOptions
    name: ClassVar[str] = "rqvae"
    title: ClassVar[str] = "RQ-VAE"
    losses: ClassVar[tuple[str, ...]] = Losses._fields
    """Names of what an epoch reports; the first is what it minimises."""

    def __init__(self, options: RQVAEOptions) -> None:
        super().__init__(options)
        self.options: RQVAEOptions = options

    @property
    def space(self) -> CodeSpace:
        """L levels of K codes, each with its own codebook."""
        return CodeSpace.of(self.options.levels, self.options.codebook_size)

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Train the autoencoder and its codebooks together.

        Returns:
            Curves, a value an epoch: ``total``, ``reconstruction``, ``quantization`` (mean losses) and
            ``utilisation`` (a list with the share of codes used at each level).
        """
        options = self.options
        width = check_domains(domains, options.codebook_size)
        vectors, weights = pooled(domains, options.balance)
        self.training = Training.of(domains, width)
        self.normaliser = Normaliser.fit(options.normalise, vectors, weights, options.components)
        inputs = self.normaliser(vectors).to(device)
        draws = None if options.balance == "proportional" else weights
        network = self._build(self.normaliser.width, seed).to(device)
        optimizer = self._optimizer(network)
        epochs, began = options.epochs_for(len(inputs)), 0
        curves: Curves = {name: [] for name in (*self.losses, "utilisation")}
        restored = load_checkpoint(partial, network, optimizer) if partial is not None else None
        if restored is not None:
            began, curves = restored
        elif options.kmeans_init:
            first = _order(len(inputs), draws, epoch_seed(seed, 0, "order"))[
                : max(options.batch, options.codebook_size)
            ]
            network.initialise(inputs[first.to(device)], epoch_seed(seed, 0, "init"))
        network.train()
        with Track(f"train {self.title}", epochs, "epochs", start=began) as track:
            for epoch in range(began, epochs):
                order = _order(len(inputs), draws, epoch_seed(seed, epoch, "order")).to(device)
                objective = self._objective(network, inputs, domains, epoch_seed(seed, epoch, "objective"))
                means = _epoch(objective, optimizer, order, options.batch)
                for name, value in zip(self.losses, means, strict=True):
                    curves[name].append(value)
                if epoch + 1 <= options.revive_until * epochs:
                    rows = order[: max(options.batch, options.codebook_size)]
                    used = network.revive(inputs[rows], epoch_seed(seed, epoch, "revive"))
                else:
                    used = network.utilisation()
                curves["utilisation"].append(used)
                track.advance(note=f"loss {means[0]:.4f}, codes used {min(used):.0%}")
                if partial is not None and (
                    (epoch + 1) % options.checkpoint_every == 0 or epoch + 1 == epochs
                ):
                    save_checkpoint(partial, epoch + 1, network, optimizer, curves)
        self.network = network.cpu().eval()
        return curves

    def _objective(
        self, network: RQVAENetwork, inputs: Tensor, domains: Sequence[TokenizerDomain], seed: int
    ) -> Objective:
        """What one epoch minimises: losses, in the order of `losses`, of the items ``rows (B,)``.

        Args:
            network: On the device.
            inputs: ``(N, D)`` normalised vectors of all domains, on the device.
            domains: What they were made of.
            seed: Of this epoch, for what is random in it.
        """
        return lambda rows: tuple(network(inputs[rows]))

    def _build(self, width: int, seed: int) -> RQVAENetwork:
        """An untrained network; the seed acts on nothing outside."""
        options = self.options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return RQVAENetwork(
                width,
                options.hidden,
                options.latent,
                options.levels,
                options.codebook_size,
                beta=options.beta,
                decay=options.decay,
                reduction=options.reduction,
            )

    def _optimizer(self, network: RQVAENetwork) -> torch.optim.Optimizer:
        """The optimizer; weight decay never pulls at code vectors or biases."""
        options = self.options
        if options.optimizer == "adagrad":
            return torch.optim.Adagrad(network.parameters(), lr=options.learning_rate)
        matrices = [p for m in (network.encoder, network.decoder) for p in m.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in network.parameters() if id(p) not in chosen]
        groups = [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=options.learning_rate)

    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, L)`` of vectors ``(N, D)``."""
        rows, network, normaliser = self._rows(vectors), *self._trained()

        with torch.no_grad():
            encode = residual_encoder(network.weights)
            return (
                in_blocks(lambda block: encode(network.encoder(normaliser(block))), rows)
                .numpy()
                .astype(np.int32)
            )

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` squared distances in the latent space at level l, given the prefix ``(N, l)``."""
        rows, network, normaliser = self._rows(vectors), *self._trained()
        before = torch.from_numpy(np.array(prefix, dtype=np.int64))

        def measure(block: Tensor, chosen: Tensor) -> Tensor:
            return residual_distances(network.encoder(normaliser(block)), chosen, network.weights)

        with torch.no_grad():
            distances: Floats = in_blocks(measure, rows, before).numpy()
        return distances

    def decode(self, codes: Codes) -> Floats:
        """``(N, D)`` output of the decoder, with the normalisation undone."""
        network, normaliser = self._trained()
        chosen = torch.from_numpy(np.array(codes, dtype=np.int64))
        with torch.no_grad():
            found = in_blocks(
                lambda rows: normaliser.invert(network.decoder(reconstruct(rows, network.weights))), chosen
            )
        vectors: Floats = found.numpy()
        return vectors

    def from_latents(self, latents: Tensor) -> Tensor:
        """``(N, D)`` output of the decoder, with the normalisation undone."""
        network, normaliser = self._trained()
        with torch.no_grad():
            return in_blocks(lambda block: normaliser.invert(network.decoder(block)), latents)

    def part_for(self, latents: Tensor) -> ResidualPart:
        """All codebooks, whatever the domain."""
        return ResidualPart(tuple(self._trained()[0].weights), (None,) * self.options.levels)


def _order(items: int, weights: Tensor | None, seed: int) -> Tensor:
    """``(N,)`` rows of one epoch: a permutation, or N draws in proportion to `weights`."""
    generator = torch.Generator().manual_seed(seed)
    if weights is None:
        return torch.randperm(items, generator=generator)
    return torch.multinomial(weights, items, replacement=True, generator=generator)


def _epoch(objective: Objective, optimizer: torch.optim.Optimizer, order: Tensor, batch: int) -> list[float]:
    """One pass that minimises the first of the losses; returns the mean of each over the items."""
    sums: Tensor | None = None
    for rows in torch.split(order, batch):
        losses = objective(rows)
        optimizer.zero_grad(set_to_none=True)
        losses[0].backward()
        optimizer.step()
        weighted = torch.stack(losses).detach().double() * len(rows)
        sums = weighted if sums is None else sums + weighted
    assert sums is not None
    means: list[float] = (sums / len(order)).tolist()
    return means

"""What UniSRec, VQ-Rec and MISSRec have in common: pre-trained on several domains by contrast, fine-tuned on
one.

``fit`` on several domains pre-trains; ``start_from`` and ``fit`` on one fine-tune; ``bind`` to a domain that
was never trained on ranks its items from their contents alone (zero-shot)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from catalex.data.histories import Histories
from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.content import ContrastiveModel
from catalex.options import Options, Positive, Rate
from catalex.recommenders.base import RecommenderDomain
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender
from catalex.training.distributed import global_mean, process_count
from catalex.training.loop import Batch, EpochPlan
from catalex.training.sequences import Prefixes, PrefixPlan
from catalex.types import JSON, Floats

Mode = Literal["auto", "pretrain", "transductive", "inductive"]


class TransferringOptions(SequentialOptions):
    """Size and training that the three share; sizes are those of their official settings."""

    hidden: Positive = 300
    """Width H."""
    layers: Positive = 2
    """Transformer blocks."""
    heads: Positive = 2
    """Attention heads; `hidden` is divisible by it."""
    inner: Positive = 256
    """Width inside the feed-forward parts."""
    dropout: Rate = 0.5
    """Share of activations dropped."""
    temperature: float = Field(default=0.07, gt=0)
    """Scores are cosines over this (UniSRec, section 3.1)."""
    mode: Mode = "auto"
    """`pretrain` learns from contents by in-batch contrast; `transductive` from contents and item ids, by the
    full softmax; `inductive` the same without ids, for catalogues that grow. `auto` pre-trains on several
    domains and is `transductive` on one. A saved recommender holds what was done."""
    freeze: bool = True
    """Fine-tuning leaves the pre-trained transformer as it is and trains what stands before it (the
    parameter-efficient way of all three papers)."""


class TransferringRecommender(SequentialRecommender):
    """Trains a `ContrastiveModel`; `build` reads the settled ``options.mode``."""

    Options: ClassVar[type[Options]] = TransferringOptions
    needs = frozenset({"vectors"})
    transfers = True
    alone: ClassVar[Mode] = "transductive"
    """What `auto` means on one domain."""

    def fit(
        self,
        domains: Sequence[RecommenderDomain],
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> Mapping[str, JSON]:
        if self.options.mode == "auto":
            self._set(mode="pretrain" if len(domains) > 1 else self.alone)
        return super().fit(domains, seed=seed, device=device, partial=partial)

    def bind(self, domain: RecommenderDomain) -> None:
        if not self.catalogue.is_of(domain):
            self._fitted()
            self._set(mode="inductive")  # ids of the other catalogue mean nothing here
        super().bind(domain)

    def plan(
        self, catalogue: Catalogue, training: Histories, seed: int, device: str
    ) -> Callable[[int], EpochPlan]:
        if self.options.mode != "pretrain":
            return super().plan(catalogue, training, seed, device)
        prefixes = Prefixes.build(training, self.options.max_history, catalogue.items, device)
        return lambda epoch: PrefixPlan(prefixes, self.options.batch_size, seed, epoch)

    def prepare(
        self,
        model: SequenceModel,
        catalogue: Catalogue,
        training: Histories,
        *,
        seed: int,
        device: str,
        partial: Path | None,
    ) -> Mapping[str, JSON]:
        assert isinstance(model, ContrastiveModel)
        if self.started and self.options.freeze and self.options.mode != "pretrain":
            for parameter in model.encoder_parameters():
                parameter.requires_grad_(False)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return {"mode": self.options.mode, "trained_parameters": trained}

    def loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        if self.options.mode != "pretrain":
            return super().loss(model, batch)
        assert isinstance(model, ContrastiveModel)
        if process_count() == 1:
            return model.contrast(batch)
        # negatives are those of the process's own rows
        return global_mean(model.contrast(batch, "sum"), (batch["targets"] >= 0).sum())

    def _set(self, **values: object) -> None:
        """Settle options that depend on what is trained, so that a saved recommender says what it is."""
        self.options = self.options.model_copy(update=values)


def tensor_of(vectors: Floats | None) -> Tensor:
    """A copy as a float32 tensor."""
    assert vectors is not None
    return torch.from_numpy(np.array(vectors, dtype=np.float32))

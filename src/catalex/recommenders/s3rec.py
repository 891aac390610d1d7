"""S3-Rec: self-supervised pre-training on items, attributes and segments of one domain, then SASRec (Zhou et
al. 2020, arXiv 2008.07873).

What differs from the official code: padding on one side in both stages, the full softmax in fine-tuning, a
fixed number of epochs of pre-training in place of the best of several checkpoints, segments of another user
of the batch as negatives, and negatives of masked items that may be elsewhere in the history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from catalex.data.histories import Histories
from catalex.models.sequential.attributes import AttributeLists
from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.s3rec import S3RecModel, Weights
from catalex.options import Options, Positive, Rate
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender
from catalex.training.loop import Batch
from catalex.training.moving import moved
from catalex.training.seeds import generator
from catalex.training.sequences import item_windows
from catalex.types import JSON, Ints


class S3RecOptions(SequentialOptions):
    """Size, tasks and training of S3-Rec; defaults of RecBole and the official code."""

    hidden: Positive = 64
    """Width H."""
    layers: Positive = 2
    """Transformer blocks."""
    heads: Positive = 2
    """Attention heads; `hidden` is divisible by it."""
    dropout: Rate = 0.5
    """Share of activations dropped."""
    pretrain_epochs: int = Field(default=100, ge=0)
    """Passes of pre-training (official: 300, with the best checkpoint chosen by fine-tuning from each)."""
    pretrain_batch_size: Positive = 256
    """Windows a step of pre-training (official: 100)."""
    pretrain_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of pre-training."""
    mask_ratio: Rate = 0.2
    """Share of items masked."""
    associated: float = Field(default=0.2, ge=0)
    """Weight of AAP: an item tells its attributes."""
    masked_item: float = Field(default=1.0, ge=0)
    """Weight of MIP: the context tells the masked item."""
    masked_attributes: float = Field(default=1.0, ge=0)
    """Weight of MAP: the context tells the masked item's attributes."""
    segment: float = Field(default=0.5, ge=0)
    """Weight of SP: the context tells the masked segment."""


class S3Rec(SequentialRecommender):
    """SASRec that has first learned what goes with what."""

    name = "s3rec"
    Options: ClassVar[type[Options]] = S3RecOptions
    needs = frozenset({"attributes"})

    def build(self, catalogue: Catalogue) -> S3RecModel:
        o = self.options
        assert catalogue.attributes is not None
        lists = AttributeLists(catalogue.attributes, max(catalogue.attribute_count, 1), further=2)
        return S3RecModel(catalogue.items, lists, o.max_history, o.hidden, o.layers, o.heads, o.dropout)

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
        """The four tasks."""
        o = self.options
        windows = item_windows(training, o.max_history, catalogue.items)
        if not o.pretrain_epochs or not len(windows):
            return {}
        weights = Weights(o.associated, o.masked_item, o.masked_attributes, o.segment)

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(module, S3RecModel)
            return module.pretraining_loss(batch, weights, o.mask_ratio)

        report = self.train_before(
            model,
            lambda epoch: _Windows(windows, o.pretrain_batch_size, seed, epoch, device),
            loss,
            name="self-supervised",
            seed=seed,
            device=device,
            partial=partial,
            epochs=o.pretrain_epochs,
            batch_size=o.pretrain_batch_size,
            learning_rate=o.pretrain_rate,
        )
        return {"pretrain_seconds": report.seconds, "pretrain_loss": report.curves["loss"]}


class _Windows:
    """Batches of windows in random order, every batch full."""

    def __init__(self, windows: Ints, batch_size: int, seed: int, epoch: int, device: str) -> None:
        self.windows, self.batch_size, self.device = windows, batch_size, device
        self.order = generator(seed, "self-supervised epoch", epoch).permutation(len(windows))

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        numbers = np.arange(index * self.batch_size, (index + 1) * self.batch_size) % len(self.windows)
        return {"windows": moved(self.windows[self.order[numbers]], self.device)}

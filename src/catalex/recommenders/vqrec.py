"""VQ-Rec: items as sets of codes of their text, whose embeddings move between domains (Hou et al. 2023, arXiv
2210.12316).

What differs from the official code: our own product quantization in place of Faiss; negatives with the same
target are left out of the softmax (there they still count 1); the permutation is learned with a
straight-through gradient, is one-to-one in the end, and is learned for a given number of epochs before
anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from catalex.data.histories import Histories
from catalex.errors import user_error
from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.vqrec import Alignment, VQRecModel
from catalex.options import Options, Positive, Rate
from catalex.quantize.opq import ProductQuantizer, optimized_product_quantizer
from catalex.recommenders.base import RecommenderDomain
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.transferring import TransferringOptions, TransferringRecommender, tensor_of
from catalex.training.distributed import global_mean, process_count
from catalex.training.loop import Batch
from catalex.training.seeds import generator, seed_torch
from catalex.types import JSON

SAMPLE = 256
"""Vectors a code that the quantizer learns from at most (Faiss)."""


class VQRecOptions(TransferringOptions):
    """Codes and their transfer; defaults of the official settings."""

    codes: Positive = 32
    """M, codes of an item (section 4.1.4); divides the width of the vectors."""
    codebook_size: int = Field(default=256, ge=2)
    """K, codes of a slice."""
    rounds: int = Field(default=20, ge=0)
    """Rounds of rotation and codebooks of the quantizer."""
    replaced: Rate = 0.75
    """Probability that a code of a semi-synthetic negative is random."""
    codebooks: Literal["own", "earlier"] = "own"
    """When fine-tuning starts from earlier weights: learn codebooks of the domain and align their code
    embeddings, or keep the earlier codebooks with the embeddings as they are."""
    align_epochs: int = Field(default=5, ge=0)
    """Epochs in which only the permutation is learned; 0 takes the embeddings in any order."""
    align_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the permutation."""
    sinkhorn: Positive = 3
    """Iterations that make the permutation doubly stochastic."""
    mode: Literal["auto", "pretrain", "inductive"] = "auto"
    """As in UniSRec; there are no item ids."""


class VQRec(TransferringRecommender):
    """A transformer over means of code embeddings, pre-trained on the histories of several domains."""

    name = "vqrec"
    Options: ClassVar[type[Options]] = VQRecOptions
    alone = "inductive"

    def __init__(self, options: VQRecOptions | None = None) -> None:
        super().__init__(options)
        self._quantizer: ProductQuantizer | None = None

    def start_from(self, folder: Path) -> None:
        super().start_from(folder)
        if self.options.codebooks == "earlier":
            self._quantizer = _quantizer_of(type(self).load(folder)._fitted())

    def fit(
        self,
        domains: Sequence[RecommenderDomain],
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> Mapping[str, JSON]:
        learnable = any((domain.training.lengths > 1).any() for domain in domains)
        if learnable and not (self.started and self._quantizer is not None):
            self._quantizer = self._learn(domains, seed, device)
        return super().fit(domains, seed=seed, device=device, partial=partial)

    def bind(self, domain: RecommenderDomain) -> None:
        self._quantizer = _quantizer_of(self._fitted())
        super().bind(domain)

    def build(self, catalogue: Catalogue) -> VQRecModel:
        o, vectors = self.options, tensor_of(catalogue.vectors)
        width, slices = vectors.shape[1], o.codes
        if self._quantizer is None:  # about to be read from a file
            codes = torch.zeros(len(vectors), slices, dtype=torch.int64)
            parts = (
                torch.zeros(width),
                torch.zeros(width, width),
                torch.zeros(slices, o.codebook_size, width // slices),
            )
        else:
            known = self._quantizer
            codes, parts = known.encode(vectors), (known.mean, known.rotation, known.codebooks)
        return VQRecModel(
            codes,
            o.codebook_size,
            dict(zip(("mean", "rotation", "codebooks"), parts, strict=True)),
            o.max_history,
            o.hidden,
            o.layers,
            o.heads,
            o.inner,
            o.dropout,
            o.temperature,
            replaced=o.replaced,
        )

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
        """Freeze, and learn the permutation where weights of other codebooks came in."""
        o = self.options
        facts = super().prepare(model, catalogue, training, seed=seed, device=device, partial=partial)
        moved = self.started and o.mode == "inductive" and o.codebooks == "own"
        if not moved or not o.align_epochs:
            return facts
        assert isinstance(model, VQRecModel)
        seed_torch(seed, self.name, "alignment")
        alignment = Alignment(model, o.sinkhorn, 0.7).to(device)
        thawed = [p for p in model.parameters() if p.requires_grad]
        for parameter in thawed:
            parameter.requires_grad_(False)
        model.train()
        report = self.train_before(
            alignment,
            self.plan(catalogue, training, seed, device),
            lambda module, batch: _alignment_loss(module, model, batch),
            name="alignment",
            seed=seed,
            device=device,
            partial=partial,
            epochs=o.align_epochs,
            learning_rate=o.align_rate,
            weight_decay=0.0,
        )
        with torch.no_grad():
            model.code_table.weight.copy_(alignment.table())
        for parameter in thawed:
            parameter.requires_grad_(True)
        return {**facts, "alignment_loss": report.curves["loss"]}

    def _learn(self, domains: Sequence[RecommenderDomain], seed: int, device: str) -> ProductQuantizer:
        """Rotation and codebooks from the items that have training interactions."""
        o = self.options
        catalogue, _, _ = Catalogue.join(domains, self.needs)
        vectors = tensor_of(catalogue.vectors)
        used = np.flatnonzero(catalogue.popularity)
        place = ", ".join(d.name for d in domains)
        if vectors.shape[1] % o.codes:
            raise user_error(
                "the width of the vectors cannot be cut into that many codes",
                place="vqrec.codes",
                value=o.codes,
                allowed=f"a divisor of {vectors.shape[1]}",
                remedy="set codes to one of its divisors",
            )
        if len(used) < o.codebook_size:
            raise user_error(
                "there are fewer items with training interactions than codes in a codebook",
                place=place,
                value=len(used),
                allowed=f"at least {o.codebook_size}",
                remedy="set codebook_size lower, or use a larger domain",
            )
        most = SAMPLE * o.codebook_size
        if len(used) > most:
            used = np.sort(generator(seed, "quantizer sample").choice(used, most, replace=False))
        rows = vectors[torch.from_numpy(used)].to(device)
        found = optimized_product_quantizer(rows, o.codes, o.codebook_size, seed=seed, rounds=o.rounds)
        return found.to("cpu")


def _alignment_loss(module: nn.Module, model: VQRecModel, batch: Batch) -> Tensor:
    assert isinstance(module, Alignment)
    if process_count() == 1:
        found: Tensor = module(model, batch)
        return found
    return global_mean(module(model, batch, "sum"), (batch["targets"] >= 0).sum())


def _quantizer_of(model: SequenceModel) -> ProductQuantizer:
    """The quantizer that a model keeps beside its weights, on the CPU."""
    state = model.state_dict()
    return ProductQuantizer(*(state[name].cpu() for name in ("mean", "rotation", "codebooks")))

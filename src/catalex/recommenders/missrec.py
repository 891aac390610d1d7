"""MISSRec: interests mined from texts and images guide a decoder over the history (Wang et al. 2023, arXiv
2308.11175).

What differs from the official code: clusters are found once, by k-means on the frozen vectors of each
modality (`catalex.models.sequential.missrec` says why that is enough), the regularisation is a mean over
users, and items are dropped from the second copy of a sequence instead of words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from catalex.models.sequential.missrec import MISSRecModel, Modality
from catalex.options import Options, Positive, Rate
from catalex.quantize import kmeans
from catalex.recommenders.base import RecommenderDomain
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.transferring import TransferringOptions, TransferringRecommender, tensor_of
from catalex.types import JSON, Floats

PRETRAIN_RATIO, RATIO = 0.02, 0.5
"""Interests a vector, in pre-training and in fine-tuning (official settings)."""
ITERATIONS = 10
"""Lloyd iterations; ours. Interests need no more than rough groups."""


class MISSRecOptions(TransferringOptions):
    """Interests and losses; defaults of the official settings."""

    layers: Positive = 1
    """Blocks of the encoder, and as many of the decoder (official: 2 together)."""
    heads: Positive = 4
    """Attention heads; `hidden` is divisible by it."""
    images: bool = False
    """Also use the vectors of images; items without one are scored by their text."""
    interest_ratio: float | None = Field(default=None, gt=0, le=1)
    """Clusters a vector; null for .02 in pre-training and .5 otherwise."""
    alike: float = Field(default=1e-3, ge=0)
    """Weight of the sequence-sequence task (lambda)."""
    drop: Rate = 0.2
    """Share of items dropped from the copy of a sequence."""
    apart: float = Field(default=0.05, ge=0)
    """Weight of the regularisation of interests. Official: 1e-4 of a sum over batches of 512; ours is a
    mean."""


class MISSRec(TransferringRecommender):
    """An encoder of interests and a decoder of histories, pre-trained on several domains. Text alone will
    do."""

    name = "missrec"
    Options: ClassVar[type[Options]] = MISSRecOptions
    examples = "prefixes"
    needs = frozenset({"vectors", "image_vectors"})

    def __init__(self, options: MISSRecOptions | None = None) -> None:
        super().__init__(options)
        if not self.options.images:
            self.needs = frozenset({"vectors"})  # type: ignore[misc]
        self._clusters: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def fit(
        self,
        domains: Sequence[RecommenderDomain],
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> Mapping[str, JSON]:
        if self.options.interest_ratio is None:
            pretraining = self.options.mode == "pretrain" or (
                self.options.mode == "auto" and len(domains) > 1
            )
            self._set(interest_ratio=PRETRAIN_RATIO if pretraining else RATIO)
        domains = self._same_width(domains)
        self._clusters = self._mine(domains, seed, device) if domains else None
        return super().fit(domains, seed=seed, device=device, partial=partial)

    def bind(self, domain: RecommenderDomain) -> None:
        if not self.catalogue.is_of(domain):
            self._fitted()
            domain = self._same_width([domain])[0]
            self._clusters = self._mine([domain], 0, self.device)
        super().bind(domain)

    def build(self, catalogue: Catalogue) -> MISSRecModel:
        o, modalities = self.options, []
        for number, vectors in enumerate(self._contents(catalogue)):
            if self._clusters is not None:
                centres, interests = self._clusters[number]
            else:  # about to be read from a file
                centres = torch.zeros(self._count(vectors), vectors.shape[1])
                interests = torch.zeros(len(vectors), dtype=torch.int64)
            modalities.append(Modality(tensor_of(vectors), centres, interests))
        model = MISSRecModel(
            modalities,
            o.max_history,
            o.hidden,
            o.layers,
            o.heads,
            o.inner,
            o.dropout,
            o.temperature,
            ids=o.mode == "transductive",
            apart=o.apart,
        )
        model.alike, model.drop = o.alike, o.drop
        return model

    def _same_width(self, domains: Sequence[RecommenderDomain]) -> list[RecommenderDomain]:
        """The domains with zeros of one width as image vectors of those that have no image."""
        if not self.options.images:
            return list(domains)
        known = [
            d.image_vectors.shape[1] for d in domains if d.image_vectors is not None and d.image_vectors.any()
        ]
        weights = self._start if self.model is None else self.model.state_dict()
        if weights is not None and "adaptors.1.weight" in weights:
            known = [weights["adaptors.1.weight"].shape[1]]
        return [
            replace(d, image_vectors=np.zeros((d.items, known[0]), np.float32))
            if known and d.image_vectors is not None and not d.image_vectors.any()
            else d
            for d in domains
        ]

    def _contents(self, catalogue: Catalogue) -> list[Floats]:
        found = [catalogue.vectors, catalogue.image_vectors if self.options.images else None]
        return [vectors for vectors in found if vectors is not None]

    def _count(self, vectors: Floats) -> int:
        """Interests of a modality."""
        present = int(vectors.any(axis=1).sum())
        return max(1, math.ceil(present * (self.options.interest_ratio or RATIO)))

    def _mine(
        self, domains: Sequence[RecommenderDomain], seed: int, device: str
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Centres ``(C, D)`` and the cluster ``(N,)`` of each item, by modality."""
        catalogue, _, _ = Catalogue.join(domains, self.needs)
        found = []
        for vectors in self._contents(catalogue):
            rows = tensor_of(vectors)
            present = rows.any(1)
            interests = torch.zeros(len(rows), dtype=torch.int64)
            centres = torch.zeros(1, rows.shape[1])
            if present.any():
                clusters = kmeans(
                    rows[present].to(device),
                    self._count(vectors),
                    seed=seed,
                    iterations=ITERATIONS,
                    init="sample",
                )
                centres = clusters.centroids.cpu()
                interests[present] = clusters.assignment.cpu()
            found.append((centres, interests))
        return found

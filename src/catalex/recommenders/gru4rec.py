"""GRU4Rec as a recommender (Hidasi et al. 2016, arXiv 1511.06939)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from catalex.models.sequential.gru4rec import GRU4RecModel
from catalex.options import Options
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender


class GRU4RecOptions(SequentialOptions):
    """Size of GRU4Rec; defaults of RecBole."""

    hidden: int = Field(default=64, ge=1)
    """Width H of embeddings."""
    inner: int = Field(default=128, ge=1)
    """Width of the recurrent state."""
    layers: int = Field(default=1, ge=1)
    """Recurrent layers (section 4.1: one is best)."""
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Share of the embeddings' components dropped."""


class GRU4Rec(SequentialRecommender):
    """A recurrent network over the items of one domain; the full softmax at every position."""

    name = "gru4rec"
    Options: ClassVar[type[Options]] = GRU4RecOptions
    losses = ("ce", "bce")

    def build(self, catalogue: Catalogue) -> GRU4RecModel:
        o = self.options
        return GRU4RecModel(catalogue.items, o.max_history, o.hidden, o.inner, o.layers, o.dropout)

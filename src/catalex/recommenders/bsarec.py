"""BSARec as a recommender (Shin et al. 2024, arXiv 2312.10325)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from catalex.models.sequential.bsarec import BSARecModel
from catalex.options import Options, Positive
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender


class BSARecOptions(SequentialOptions):
    """Size of BSARec; defaults of the paper's experiments (section 5.1) and official code.

    The paper reads 50 items; 20 is the common protocol here.
    """

    hidden: int = Field(default=64, ge=1)
    """Width H."""
    layers: int = Field(default=2, ge=1)
    """Blocks."""
    heads: int = Field(default=1, ge=1)
    """Attention heads; `hidden` is divisible by it (official command for Beauty)."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of activations dropped."""
    attention_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Share of attention weights dropped; null for `dropout`."""
    alpha: float = Field(default=0.7, ge=0.0, le=1.0)
    """Share of the frequency path (official command for Beauty); 0 leaves attention alone."""
    cutoff: int = Field(default=5, ge=0)
    """c: the lowest c // 2 + 1 frequencies are the low part (official command for Beauty)."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate (official command for Beauty)."""
    batch_size: Positive = 256
    """Prefixes a step."""


class BSARec(SequentialRecommender):
    """Attention and frequencies over the items of one domain; trained on prefixes with the full softmax."""

    name = "bsarec"
    Options: ClassVar[type[Options]] = BSARecOptions
    examples = "prefixes"

    def build(self, catalogue: Catalogue) -> BSARecModel:
        o = self.options
        return BSARecModel(
            catalogue.items,
            o.max_history,
            o.hidden,
            o.layers,
            o.heads,
            o.dropout,
            o.alpha,
            o.cutoff,
            o.attention_dropout,
        )

"""HSTU as a recommender (Zhai et al. 2024, arXiv 2402.17152), in the paper's sequential setting (4.1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from catalex.models.sequential.hstu import HSTUModel
from catalex.options import Options, Positive
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender
from catalex.types import JSON


class HSTUOptions(SequentialOptions):
    """Size of HSTU; defaults of MTandHJ/RecBoard for the Amazon data of 2014, where not said otherwise.

    The authors' own configurations (MovieLens, Amazon Books) are 4 to 16 blocks of 2 to 8 heads at a
    temperature of .05.
    """

    hidden: int = Field(default=64, ge=1)
    """Width H."""
    layers: int = Field(default=4, ge=1)
    """Blocks."""
    heads: int = Field(default=2, ge=1)
    """Heads of a block."""
    width: int = Field(default=4, ge=1)
    """Width of a head: queries, keys, values and gates."""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of the gated values dropped."""
    input_dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of the embeddings' components dropped."""
    temperature: float = Field(default=0.1, gt=0.0)
    """Cosines are divided by it before the softmax."""
    latest_first: bool = True
    """Whether positions are counted from the latest item, as MTandHJ/RecBoard does by padding on the left;
    false: from the oldest. Measured in docs/results/published.md."""
    negatives: Positive | None = None
    """Items sampled for each position in training (published: 512); null for the full softmax."""


class HSTU(SequentialRecommender):
    """Gated attention without softmax over the items of one domain, positions only."""

    name = "hstu"
    Options: ClassVar[type[Options]] = HSTUOptions
    earlier: ClassVar[Mapping[str, JSON]] = {"latest_first": False}

    def build(self, catalogue: Catalogue) -> HSTUModel:
        o = self.options
        return HSTUModel(
            catalogue.items,
            o.max_history,
            o.hidden,
            o.layers,
            o.heads,
            o.width,
            o.dropout,
            o.input_dropout,
            o.temperature,
            o.negatives,
            latest_first=o.latest_first,
        )

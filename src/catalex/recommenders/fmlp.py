"""FMLP-Rec as a recommender (Zhou et al. 2022, arXiv 2202.13556)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from catalex.models.sequential.fmlp import FMLPModel
from catalex.options import Options, Positive
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender


class FMLPOptions(SequentialOptions):
    """Size of FMLP-Rec. As published: ``loss: bce``, ``max_history: 50``."""

    hidden: int = Field(default=64, ge=1)
    """Width H (section 5.1.4)."""
    layers: int = Field(default=2, ge=1)
    """Filter blocks (section 5.1.4)."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of activations dropped (official code)."""
    batch_size: Positive = 256
    """Prefixes a step (section 5.1.4)."""


class FMLP(SequentialRecommender):
    """Learned filters over the items of one domain; trained on prefixes, because filters are not causal."""

    name = "fmlp"
    Options: ClassVar[type[Options]] = FMLPOptions
    examples = "prefixes"
    losses = ("ce", "bce")

    def build(self, catalogue: Catalogue) -> FMLPModel:
        o = self.options
        return FMLPModel(catalogue.items, o.max_history, o.hidden, o.layers, o.dropout)

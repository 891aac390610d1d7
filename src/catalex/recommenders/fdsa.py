"""FDSA: feature-level deeper self-attention beside the item level (Zhang et al., IJCAI 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

from catalex.models.sequential.attributes import AttributeLists
from catalex.models.sequential.fdsa import AttributeFeatures, FDSAModel, VectorFeatures
from catalex.options import Options, Positive, Rate
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender
from catalex.recommenders.transferring import tensor_of


class FDSAOptions(SequentialOptions):
    """Size of FDSA; defaults of RecBole, but for the loss over all positions."""

    hidden: Positive = 64
    """Width H (300 in the comparison of UniSRec)."""
    layers: Positive = 2
    """Blocks of each of the two streams."""
    heads: Positive = 2
    """Attention heads; `hidden` is divisible by it."""
    dropout: Rate = 0.5
    """Share of activations dropped."""
    features: Literal["vectors", "attributes"] = "vectors"
    """What the second stream reads: content vectors through a small network (as in the comparison of
    UniSRec), or attributes mixed by attention (as published)."""


class FDSA(SequentialRecommender):
    """Item ids and features of the history in two streams; candidates are item ids."""

    name = "fdsa"
    Options: ClassVar[type[Options]] = FDSAOptions
    needs = frozenset({"vectors", "attributes"})

    def build(self, catalogue: Catalogue) -> FDSAModel:
        o = self.options
        features: VectorFeatures | AttributeFeatures
        if o.features == "vectors":
            features = VectorFeatures(tensor_of(catalogue.vectors), o.hidden)
        else:
            assert catalogue.attributes is not None
            lists = AttributeLists(catalogue.attributes, max(catalogue.attribute_count, 1))
            features = AttributeFeatures(lists, o.hidden)
        return FDSAModel(catalogue.items, features, o.max_history, o.hidden, o.layers, o.heads, o.dropout)

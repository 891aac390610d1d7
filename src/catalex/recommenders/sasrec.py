"""SASRec as a recommender: the strong baseline over item ids (Kang & McAuley 2018, arXiv 1808.09781)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from catalex.models.sequential.sasrec import SASRecModel
from catalex.options import Options
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender


class SASRecOptions(SequentialOptions):
    """Size of SASRec; defaults without a source are those of the development runs.

    As published: ``loss: bce``, ``norm: pre``, ``hidden: 50``, ``heads: 1``, ``dropout: 0.5`` (sparse data).
    """

    hidden: int = Field(default=64, ge=1)
    """Width H (RecBole's SASRec; 64 in the tables of UniSRec and its successors)."""
    layers: int = Field(default=2, ge=1)
    """Transformer blocks (Kang & McAuley 2018, section 4.3)."""
    heads: int = Field(default=2, ge=1)
    """Attention heads; `hidden` is divisible by it (RecBole's SASRec)."""
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Share of activations dropped; .5 is common with sampled negatives, the full softmax wants less."""
    norm: Literal["post", "pre"] = "post"
    """Layer normalisation after (BERT, RecBole) or before each part of a block."""
    latest_first: bool = False
    """Whether positions are counted from the latest item, as published, where histories are padded on the
    left (section III-A); false: from the oldest, as RecBole does. On validation the former is a little
    better, on the test it is not (docs/results/published.md)."""


class SASRec(SequentialRecommender):
    """A causal transformer over the items of one domain.

    By default with the full softmax at every position, which beats the published loss by far on these data;
    ``loss: bce`` is the published one, equation 6: one negative a position, drawn anew in every epoch from
    the items that are not in the user's training sequence.
    """

    name = "sasrec"
    Options: ClassVar[type[Options]] = SASRecOptions
    losses = ("ce", "bce")

    def build(self, catalogue: Catalogue) -> SASRecModel:
        o = self.options
        return SASRecModel(
            catalogue.items,
            o.max_history,
            o.hidden,
            o.layers,
            o.heads,
            o.dropout,
            o.norm,
            latest_first=o.latest_first,
        )

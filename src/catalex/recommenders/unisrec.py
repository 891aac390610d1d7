"""UniSRec: sequence representations from item texts, across domains (Hou et al. 2022, arXiv 2206.05941)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from catalex.models.sequential.unisrec import UniSRecModel
from catalex.options import Options, Positive, Rate
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.transferring import TransferringOptions, TransferringRecommender, tensor_of


class UniSRecOptions(TransferringOptions):
    """The adaptor and the second task; defaults of the official settings."""

    experts: Positive = 8
    """Whitening experts of the adaptor (section 2.1.2)."""
    adaptor_dropout: Rate = 0.2
    """Dropout of the text vectors."""
    alike: float = Field(default=1e-3, ge=0)
    """Weight of the sequence-sequence task (lambda, equation 8); 0 leaves it out."""
    drop: Rate = 0.2
    """Share of items dropped from the copy of a sequence. The official code drops words instead in one of ten
    batches, for which it embeds every text a second time; ours always drops items."""


class UniSRec(TransferringRecommender):
    """A transformer over adapted text vectors, pre-trained on the histories of several domains."""

    name = "unisrec"
    Options: ClassVar[type[Options]] = UniSRecOptions

    def build(self, catalogue: Catalogue) -> UniSRecModel:
        o = self.options
        model = UniSRecModel(
            tensor_of(catalogue.vectors),
            o.max_history,
            o.hidden,
            o.layers,
            o.heads,
            o.inner,
            o.dropout,
            o.temperature,
            experts=o.experts,
            adaptor_dropout=o.adaptor_dropout,
            ids=o.mode == "transductive",
        )
        model.alike, model.drop = o.alike, o.drop
        return model

"""BERT4Rec as a recommender (Sun et al. 2019, arXiv 1904.06690).

Two traps of a widespread implementation are avoided: as many items are masked as the ratio says, however
short the window, and the first item of a window is masked as often as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from pydantic import Field

from catalex.data.histories import Histories
from catalex.models.sequential.bert4rec import BERT4RecModel
from catalex.options import Options, Positive
from catalex.recommenders.catalogue import Catalogue
from catalex.recommenders.sequential import SequentialOptions, SequentialRecommender
from catalex.training.loop import EpochPlan
from catalex.training.sequences import MaskPlan, item_windows
from catalex.types import JSON


class BERT4RecOptions(SequentialOptions):
    """Size and masking of BERT4Rec."""

    hidden: int = Field(default=64, ge=1)
    """Width H (section 4.4)."""
    layers: int = Field(default=2, ge=1)
    """Transformer blocks (section 4.3)."""
    heads: int = Field(default=2, ge=1)
    """Attention heads; `hidden` is divisible by it (section 4.3)."""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of activations dropped (RecBole)."""
    mask_ratio: float = Field(default=0.2, gt=0.0, le=1.0)
    """Share of masked items (RecBole; the paper tunes it by data set, .6 on Beauty)."""
    last_ratio: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of windows that mask only their last item, as recommending does (RecBole)."""
    tied: bool = True
    """Whether the output layer is the item table (equation 7)."""
    latest_first: bool = True
    """Whether positions are counted from the latest item, where the mask stands when recommending; false:
    from the oldest. Measured in docs/results/published.md."""

    epochs: Positive = 500
    """Passes at most: one in five items teaches, so it takes more than SASRec (MTandHJ/RecBoard: 500)."""
    patience: Positive = 30
    """Epochs without improvement; early ones improve slowly."""


class BERT4Rec(SequentialRecommender):
    """A bidirectional transformer over the items of one domain that fills in masked items."""

    name = "bert4rec"
    examples = "masks"
    Options: ClassVar[type[Options]] = BERT4RecOptions
    earlier: ClassVar[Mapping[str, JSON]] = {"latest_first": False}

    def build(self, catalogue: Catalogue) -> BERT4RecModel:
        o = self.options
        return BERT4RecModel(
            catalogue.items,
            o.max_history,
            o.hidden,
            o.layers,
            o.heads,
            o.dropout,
            tied=o.tied,
            latest_first=o.latest_first,
        )

    def plan(
        self, catalogue: Catalogue, training: Histories, seed: int, device: str
    ) -> Callable[[int], EpochPlan]:
        o = self.options
        # one more than a history, as in recommending: the mask has a place of its own
        windows = item_windows(training, o.max_history + 1, catalogue.items)
        return lambda epoch: MaskPlan(
            windows,
            catalogue.items,
            o.batch_size,
            seed,
            epoch,
            device,
            ratio=o.mask_ratio,
            last=o.last_ratio,
        )

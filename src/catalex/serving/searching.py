"""Requests of one catalogue, gathered into batches, each with a selection of items of its own."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch

from catalex.decoding.engine.batcher import Batcher, Request, padded
from catalex.models.t5 import PAD
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import Selection
from catalex.types import Bools

MASKS = 64
"""Masks of selections that are kept, latest used; a mask is a byte an item."""
EVERYTHING = -1


class SelectingBatcher(Batcher):
    """A `Batcher` whose requests may name a `Selection`.

    The masks are made when the batch is searched, while no item comes or goes, so that they always fit the
    trie; requests of equal selections share one.
    """

    def __init__(self, catalogue: LiveCatalogue, *, largest: int, patience: float) -> None:
        self.catalogue = catalogue
        self._numbers = itertools.count()
        self._selections: dict[int, Selection] = {}
        self._masks: OrderedDict[Selection, Bools] = OrderedDict()
        self._masks_of = -1
        """Revision of the catalogue that the masks are for."""
        super().__init__(catalogue.engine, largest=largest, patience=patience)

    def ask(
        self, history: Sequence[int], excluded: Sequence[int], selection: Selection
    ) -> Future[tuple[list[int], list[float]]]:
        """Numbers of items and scores for a history of tokens, best first; see `Batcher.submit`."""
        if not selection:
            return self.submit(history, excluded=excluded)
        number = next(self._numbers)
        self._selections[number] = selection
        try:
            answer = self.submit(history, excluded=excluded, filter=number)
        except BaseException:
            del self._selections[number]
            raise
        answer.add_done_callback(lambda _: self._selections.pop(number, None))
        return answer

    def _answer(self, batch: list[Request]) -> None:
        wanted = [self._selections.get(request.filter) for request in batch]
        if not any(wanted):
            super()._answer(batch)
            return
        pairs = [
            (request, selection)
            for request, selection in zip(batch, wanted, strict=True)
            if request.answer.set_running_or_notify_cancel()
        ]
        if not pairs:
            return
        tokens = padded([request.history for request, _ in pairs], PAD)
        excluded = padded([request.excluded for request, _ in pairs], -1)
        with self.catalogue.steady():
            masks = np.stack([self._mask(selection) for _, selection in pairs])
            found = self.engine.search(
                tokens,
                allowed=torch.from_numpy(masks),
                excluded=excluded if excluded.shape[1] else None,
            )
        self.batches += 1
        for (request, _), items, scores in zip(
            pairs, found.items.tolist(), found.scores.tolist(), strict=True
        ):
            count = sum(item >= 0 for item in items)
            request.answer.set_result((items[:count], scores[:count]))

    def _mask(self, selection: Selection | None) -> Bools:
        if selection is None:
            return np.ones(self.engine.trie.size, bool)
        if self._masks_of != self.catalogue.revision:
            self._masks.clear()
            self._masks_of = self.catalogue.revision
        if selection not in self._masks:
            self._masks[selection] = self.catalogue.allowed(selection)
            if len(self._masks) > MASKS:
                self._masks.popitem(last=False)
        self._masks.move_to_end(selection)
        return self._masks[selection]

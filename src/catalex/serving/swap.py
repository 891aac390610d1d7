"""Swapping the model without a failed request: load beside, compare, switch, roll back.

The next bundle has a store of its own. Before the switch all items that came, changed or went since are
carried over to it, then once more while writes wait for a moment, so that no change is lost on the way. After
the switch the model before stays loaded for rolling back, which carries over in the other direction.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from catalex.errors import user_error
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import Item, NewItem, UnknownItemError
from catalex.serving.service import Served, Service
from catalex.types import JSON

K = 10
"""Lists are compared at this length."""
PIECE = 256
"""Items that are carried over at a time."""


@dataclass
class Beside:
    """The models that do not answer."""

    next: Served | None = None
    before: Served | None = None


class Swap:
    """The models of one service. One change at a time; requests go on throughout."""

    def __init__(self, service: Service) -> None:
        self.service, self.beside = service, Beside()
        self._one = threading.Lock()

    def names(self) -> list[str]:
        """Bundles that may be loaded."""
        folder = self._folder()
        return sorted(p.name for p in folder.iterdir() if (p / "manifest.json").is_file())

    def state(self) -> dict[str, JSON]:
        """Who answers, who is beside, what may be loaded."""
        return {
            "present": self.service.present.name,
            "next": self.beside.next.name if self.beside.next else None,
            "before": self.beside.before.name if self.beside.before else None,
            "available": self.names(),
        }

    def load(self, name: str) -> dict[str, JSON]:
        """Load a bundle beside the present one; a bundle that was loaded and not switched to goes.

        Raises:
            CatalexError: When there is no such bundle, it is the present one, or it cannot be served.
        """
        with self._one:
            if name not in self.names():
                raise user_error("there is no such bundle", place="name", value=name, allowed=self.names())
            if name == self.service.present.name:
                raise user_error("this bundle answers already", place="name", value=name)
            if self.beside.before is not None and self.beside.before.name == name:
                raise user_error(
                    "this bundle is kept for rolling back", place="name", value=name, remedy="roll back to it"
                )
            if self.beside.next is not None:
                left, self.beside.next = self.beside.next, None
                left.close(self.service.options.drain_timeout)
            served = self.service.load(self._folder() / name)
            try:
                self._carry_over(self.service.present, served)
            except BaseException:
                served.close(0)
                raise
            self.beside.next = served
            return self.state()

    def compare(self) -> dict[str, JSON]:
        """How the next model's answers differ, over the latest histories that were asked for.

        ``overlap`` is the mean share of the first `K` recommendations that both have; ``recall`` of each
        model takes the last item of each history as the one to find after the others. ``moved`` is the share
        of items that both have whose identifier differs.

        Raises:
            CatalexError: When no model is beside, or no history was recorded.
        """
        with self._one:
            following, present = self._next(), self.service.present
            histories = [
                h
                for h in list(self.service.recorded)
                if all(following.catalogue.get(key) is not None for key in h)
            ]
            if not histories:
                raise user_error(
                    "no history was recorded to compare with", remedy="ask for recommendations first"
                )
            common = [
                (item.identifier, other.identifier)
                for item in present.catalogue
                if (other := following.catalogue.get(item.key)) is not None
            ]
            lists = [(_best(present, h), _best(following, h)) for h in histories]
            longer = [h for h in histories if len(h) > 1]
            return {
                "present": present.name,
                "next": following.name,
                "histories": len(histories),
                "overlap": float(np.mean([len({*a} & {*b}) / max(len(a), len(b), 1) for a, b in lists])),
                "same_first": float(np.mean([a[:1] == b[:1] for a, b in lists])),
                "recall": {
                    "present": _recall(present, longer),
                    "next": _recall(following, longer),
                    "histories": len(longer),
                },
                "items_in_common": len(common),
                "items_of_present_only": len(present.catalogue) - len(common),
                "items_of_next_only": len(following.catalogue) - len(common),
                "moved": float(np.mean([a != b for a, b in common])) if common else None,
            }

    def switch(self) -> dict[str, JSON]:
        """Let the next model answer; the one before stays for rolling back.

        Raises:
            CatalexError: When no model is beside, or a store cannot be reached; then nothing changed.
        """
        with self._one:
            following = self._next()
            before = self._put(following)
            if self.beside.before is not None:
                self.beside.before.close(self.service.options.drain_timeout)
            self.beside = Beside(next=None, before=before)
            return self.state()

    def roll_back(self) -> dict[str, JSON]:
        """Let the model before answer again; the one that goes stays as the next.

        Raises:
            CatalexError: When there is none before.
        """
        with self._one:
            if self.beside.before is None:
                raise user_error("no model was switched from", remedy="switch first")
            if self.beside.next is not None:
                self.beside.next.close(self.service.options.drain_timeout)
            going = self._put(self.beside.before)
            self.beside = Beside(next=going, before=None)
            return self.state()

    def close(self) -> None:
        """Let go of the models that do not answer."""
        for served in (self.beside.next, self.beside.before):
            if served is not None:
                served.close(self.service.options.drain_timeout)

    # --- parts ----------------------------------------------------------------------------------------------

    def _folder(self) -> Path:
        folder = self.service.options.models
        if folder is None:
            raise user_error(
                "no folder of models is set", remedy="start the service with --models and a folder of bundles"
            )
        return folder

    def _next(self) -> Served:
        if self.beside.next is None:
            raise user_error("no model is loaded beside the present one", remedy="load one first")
        return self.beside.next

    def _put(self, following: Served) -> Served:
        present = self.service.present
        self._carry_over(present, following)  # most of it, while others may write
        with self.service.changing:
            self._carry_over(present, following)  # the rest
            return self.service.put(following)

    def _carry_over(self, source: Served, target: Served) -> None:
        carry_over(source.catalogue, target.catalogue)


def carry_over(source: LiveCatalogue, target: LiveCatalogue) -> int:
    """Bring all that happened in `source` to `target`; returns the number of changes.

    Items that `target` lacks are encoded and tokenized by its own model and get identifiers of its own; those
    that were removed from `source` go; stock and attributes are taken over. Items that `source` never had,
    because `target`'s bundle is newer, stay.
    """
    source.poll()
    target.poll()
    missing = [item for item in source if target.get(item.key) is None]
    for start in range(0, len(missing), PIECE):
        target.add([_as_new(item, source) for item in missing[start : start + PIECE]])
    changed = 0
    for item in source:
        other = target.get(item.key)
        if other is not None and _shown(other) != _shown(item):
            gone = {name: None for name in other.attributes if name not in item.attributes}
            target.update(
                item.key,
                title=item.title,
                categories=item.categories,
                in_stock=item.in_stock,
                attributes={**item.attributes, **gone},
            )
            changed += 1
    gone_keys = [item.key for item in target if source.get(item.key) is None and _was_in(source, item.key)]
    for key in gone_keys:
        target.remove(key)
    return len(missing) + changed + len(gone_keys)


def _was_in(catalogue: LiveCatalogue, key: str) -> bool:
    """Whether the catalogue knows the key, be it of an item that was removed."""
    try:
        catalogue.tokens_of([key])
    except UnknownItemError:
        return False
    return True


def _as_new(item: Item, source: LiveCatalogue) -> NewItem:
    return NewItem(
        item.key,
        title=item.title,
        categories=item.categories,
        text=item.text or None,
        image=source.image(item.key),
        in_stock=item.in_stock,
        attributes=item.attributes,
    )


def _shown(item: Item) -> tuple[object, ...]:
    return item.title, item.categories, item.in_stock, dict(item.attributes)


def _best(served: Served, history: list[str]) -> list[str]:
    """Keys of the first `K` recommendations."""
    tokens = served.catalogue.tokens_of(history)
    numbers, _ = served.batcher.submit(tokens).result()
    items = [served.catalogue.numbered(number) for number in numbers[:K]]
    return [item.key for item in items if item is not None]


def _recall(served: Served, histories: list[list[str]]) -> float | None:
    if not histories:
        return None
    return float(np.mean([h[-1] in _best(served, h[:-1]) for h in histories]))

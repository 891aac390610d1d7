"""`LiveCatalogue`: the items of a bundle and those that came since, searchable while they change.

An item that is added is encoded and tokenized, given a free identifier by the conflict rule, stored durably,
and then grows into the trie in place; the next request can be answered with it. Identifiers and numbers that
were given never change, and numbers are never given again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from catalex.bundle import Bundle
from catalex.decoding.beam import Precision
from catalex.decoding.engine import Engine
from catalex.errors import user_error
from catalex.features import ItemContent
from catalex.recommenders.generative import Generative
from catalex.serving.items import Change, Item, KeyTakenError, NewItem, Selection, short, unknown
from catalex.serving.placing import place
from catalex.serving.reading import Reader
from catalex.serving.records import changed_item, draft_of, record_of, vectors_by_key
from catalex.serving.replica import Replica
from catalex.serving.seeding import seed
from catalex.serving.store import Store
from catalex.serving.titles import search
from catalex.types import Bools, Codes


class LiveCatalogue(Replica):
    """A catalogue that changes while it is served. Every method is safe to call from several threads.

    Beside those of `Replica`:

    Attributes:
        bundle: Model, tokenizer and first items.
        engine: Search over the trie of this catalogue; hand it to a `Batcher`.
        max_history: S, latest items of a history that the model reads.
    """

    def __init__(
        self, bundle: Bundle, store: Store, reader: Reader, *, beam: int, k: int, precision: Precision
    ) -> None:
        recommender = bundle.recommender
        assert isinstance(recommender, Generative)
        super().__init__(store, reader, recommender.vocabulary)
        self.bundle, self.max_history = bundle, recommender.options.max_history
        self.engine = Engine(recommender.model, self.trie, beam=beam, k=k, precision=precision)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        store: Store,
        *,
        device: str = "cpu",
        beam: int | None = None,
        k: int | None = None,
        precision: Precision = "fp32",
    ) -> LiveCatalogue:
        """Open the catalogue that `store` keeps; the first to open an empty store seeds it from `bundle`.

        Args:
            device: Of model, encoder and tokenizer.
            beam: Partial identifiers kept by the search; default: as the recommender was trained.
            k: Longest list that can be asked for; default: the beam.

        Raises:
            CatalexError: When the bundle's recommender does not write identifiers, or the store belongs to
                another catalogue.
            StoreUnavailableError: When the database does not answer.
        """
        recommender = bundle.recommender
        if not isinstance(recommender, Generative):
            raise user_error(
                "only recommenders that write identifiers can be served",
                place=bundle.folder,
                value=type(recommender).__name__,
            )
        recommender.to(device)
        recommender.model.eval()
        reader = Reader(bundle, device)
        seed(store, reader)
        beam = beam or recommender.options.beam
        return cls(bundle, store, reader, beam=beam, k=k or beam, precision=precision)

    # --- reading --------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Item]:
        """Every item, by number."""
        with self._state:
            return iter(list(self._shelf))

    def get(self, key: str) -> Item | None:
        """The item of a key; None when there is none."""
        with self._state:
            return self._shelf.get(key)

    def numbered(self, number: int) -> Item | None:
        """The item of a number, as the engine names it; None when it was removed."""
        with self._state:
            return self._shelf.numbered(number)

    def search(self, words: str, limit: int = 20) -> list[Item]:
        """Items whose title or key has every word, whatever the case; those that begin with the first word
        come first."""
        with self._state:
            blocks = self._shelf.titles.blocks()
        numbers = search(blocks, words, limit)  # the long part, while others go on
        found = [self.numbered(number) for number in numbers]
        return [item for item in found if item is not None]

    def under(self, prefix: Sequence[int], limit: int | None = None) -> list[Item]:
        """Items whose identifier begins with the codes of `prefix`: neighbours in the tree of codes."""
        with self._state:
            return self._shelf.items_under(prefix, limit)

    def branches(self, prefix: Sequence[int]) -> dict[int, int]:
        """Codes that follow `prefix` in the tree, ascending, with the number of items below each."""
        with self._state:
            return self._shelf.branches(prefix)

    def nearest(self, identifier: Sequence[int], limit: int = 10) -> list[Item]:
        """Items that share the longest beginnings with an identifier, those that share more first."""
        with self._state:
            return self._shelf.nearest(identifier, limit)

    def categories(self) -> dict[str, int]:
        """Names of all categories with the number of their items, the largest first."""
        with self._state:
            return self._shelf.categories()

    def attribute_counts(self) -> dict[str, int]:
        """Names of all attributes that an item has, with the number of their items, the largest first."""
        with self._state:
            return {name: count for name, count in self._shelf.attribute_counts().items() if count}

    def attribute_ranges(self) -> dict[str, tuple[float, float]]:
        """Names of all attributes that an item has, with the least and the largest value."""
        with self._state:
            return self._shelf.attribute_ranges()

    def image(self, key: str) -> bytes | None:
        """The image file of an item that was added with one."""
        item = self.get(key)
        return self.store.image(item.number) if item is not None and item.has_image else None

    # --- changing -------------------------------------------------------------------------------------------

    def add(self, new: Sequence[NewItem]) -> list[Item]:
        """Add items, all or none. When it returns they are durable, and recommendable by the next request.

        Items that are there already with the same content are given back as they are, so that a request can
        be repeated. Several items at once are placed together, as `conflicts.resolve` does it.

        Raises:
            KeyTakenError: When a key belongs to an item with other content, or occurs twice in `new`.
            CatalexError: When a key or value cannot be stored, an item has no content, the bundle has no
                tokenizer, or no identifier is left.
            StoreUnavailableError: When the database does not answer; repeat the request.
        """
        drafts = [draft_of(self.reader, one) for one in new]
        if len({draft.key for draft in drafts}) < len(drafts):
            raise KeyTakenError("a key occurs twice among the items to add.")
        images = {one.key: one.image for one in new if one.image is not None}
        fresh = [draft for draft in drafts if self.get(draft.key) is None]
        vectors = vectors_by_key(
            self.reader, fresh, images
        )  # the long part, before anybody waits for the lock
        with self._changing() as (writer, changed):
            missing = []
            for draft in drafts:
                old = self._shelf.get(draft.key)
                if old is None:
                    missing.append(draft)
                elif writer.digest(old.number) not in (draft.digest, "") or old.text != draft.text:
                    raise KeyTakenError(
                        f"item {short(draft.key)} exists with other content; update it, or remove it first."
                    )
            late = [draft for draft in missing if draft.key not in vectors]
            vectors.update(vectors_by_key(self.reader, late, images))
            if missing:
                rows = np.stack([vectors[draft.key] for draft in missing])
                codes = place(
                    self.reader.tokenizer, rows, self.reader.codes(rows), self.reader.method, self._shelf
                )
                placed = [
                    replace(draft, codes=tuple(own))
                    for draft, own in zip(missing, codes.tolist(), strict=True)
                ]
                with_image = {i: images[d.key] for i, d in enumerate(missing) if d.key in images}
                changed += writer.insert(placed, self.generation, with_image)
        found = [self.get(draft.key) for draft in drafts]
        return [item for item in found if item is not None]

    def update(
        self,
        key: str,
        *,
        title: str | None = None,
        categories: Sequence[str] | None = None,
        in_stock: bool | None = None,
        attributes: Mapping[str, float | None] | None = None,
    ) -> Item:
        """Change what is shown of an item or filtered by; None leaves a field as it is.

        The identifier and the text that it was made of stay.

        Args:
            attributes: Laid over those it has; a value of None takes one away.

        Raises:
            UnknownItemError: When there is no such item.
            CatalexError: When a value cannot be stored.
            StoreUnavailableError: When the database does not answer; repeat the request.
        """
        return self.change([Change(key, title, categories, in_stock, attributes)])[0]

    def change(self, changes: Sequence[Change]) -> list[Item]:
        """`update` of several items in one transaction, all or none; keys may not repeat."""
        if len({change.key for change in changes}) < len(changes):
            raise user_error("a key occurs twice among the items to change", place="changes")
        found = []
        with self._changing() as (writer, changed):
            for change in changes:
                old = self._shelf.get(change.key)
                if old is None:
                    raise unknown(change.key)
                new = changed_item(old, change)
                if new != old:
                    changed.append(writer.update(record_of(new)))
                found.append(new)
        return found

    def remove(self, key: str) -> bool:
        """Take an item out; whether it was there. Its identifier is free again, its number is not.

        Histories may go on naming it: `tokens_of` remembers what it was.
        """
        return self.remove_all([key]) == 1

    def remove_all(self, keys: Sequence[str]) -> int:
        """Take several items out in one transaction; how many of them were there."""
        if all(self.get(key) is None for key in keys):
            self.poll()
        with self._changing() as (writer, changed):
            for key in dict.fromkeys(keys):
                item = self._shelf.get(key)
                if item is not None:
                    changed.append(writer.remove(record_of(item)))
        return len(changed)

    # --- requests -------------------------------------------------------------------------------------------

    def tokenize(self, text: str, image: bytes | None = None) -> tuple[int, ...]:
        """The identifier that an item of this content would get now. Nothing is stored."""
        draft = NewItem("-", text=text, image=image)
        vectors = self.reader.vectors([ItemContent(self.reader.text_of(draft), image)])
        codes = self.reader.codes(vectors)
        with self._state:
            found = place(self.reader.tokenizer, vectors, codes, self.reader.method, self._shelf)
        return tuple(found[0].tolist())

    def tokens_of(self, keys: Sequence[str]) -> list[int]:
        """A history of items, oldest first, as the model reads it: the latest `max_history` and the end.

        Raises:
            UnknownItemError: When a key was never in the catalogue; names it.
        """
        return self.history_tokens(keys)

    def history_tokens_of_texts(
        self, texts: Sequence[str], images: Sequence[bytes | None] | None = None
    ) -> list[int]:
        """A history of items that were never seen before, by their texts (and images), oldest first.

        Nothing is stored. The model reads the codes nearest to each, whoever owns them.
        """
        pictures = images or [None] * len(texts)
        return self.history_tokens(
            [NewItem("-", text=text, image=image) for text, image in zip(texts, pictures, strict=True)]
        )

    def history_tokens(self, history: Sequence[str | NewItem]) -> list[int]:
        """A history of keys and of content never seen before, mixed, oldest first.

        Raises:
            UnknownItemError: When a key was never in the catalogue, wherever it stands; names it.
            CatalexError: When the history is empty.
        """
        if not history:
            raise user_error("the history is empty", place="history", remedy="give at least one item")
        known: dict[str, tuple[int, ...]] = {}
        with self._state:
            for one in history:
                if isinstance(one, str):
                    identifier = self._shelf.identifier(one)
                    if identifier is None:
                        raise unknown(one)
                    known[one] = identifier
        latest = history[-self.max_history :]
        unseen = [one for one in latest if isinstance(one, NewItem)]
        codes = iter(self._nearest_codes(unseen).tolist()) if unseen else iter(())
        rows = [known[one] if isinstance(one, str) else next(codes) for one in latest]
        found: list[int] = self.vocabulary.tokens(np.array(rows, np.int32)).ravel().tolist()
        return [*found, self.vocabulary.eos]

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Within it no item comes or goes, so that masks fit the trie. For milliseconds only."""
        with self._state:
            yield

    def allowed(self, selection: Selection) -> Bools:
        """``(size,)`` whether each number is wanted; as wide as the trie only within `steady`. Not to be
        written into."""
        with self._state:
            return self._shelf.allowed(selection, self.engine.trie.size)

    def recommend(
        self,
        tokens: Sequence[int],
        k: int = 10,
        *,
        selection: Selection | None = None,
        excluded: Sequence[str] = (),
    ) -> list[tuple[Item, float]]:
        """The `k` best items after a history of tokens, best first, with log-probabilities.

        For one request without a `Batcher`.

        Raises:
            CatalexError: When `k` is above the engine's.
        """
        if not 1 <= k <= self.engine.k:
            raise user_error(
                "the number of items is out of range", place="k", value=k, allowed=f"1 to {self.engine.k}"
            )
        with self.steady():
            items = [self._shelf.get(key) for key in excluded]
            numbers = [item.number for item in items if item is not None]
            found = self.engine.search(
                torch.tensor([list(tokens)]),
                allowed=torch.from_numpy(self.allowed(selection)) if selection else None,
                excluded=torch.tensor([numbers]) if numbers else None,
            )
            best = zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True)
            pairs = [(self._shelf.numbered(number), score) for number, score in best]
        return [(item, score) for item, score in pairs if item is not None][:k]

    # --- parts ----------------------------------------------------------------------------------------------

    def _nearest_codes(self, history: Sequence[NewItem]) -> Codes:
        """``(n, L)`` codes of content that is nobody's item; an appended digit is 0."""
        content = [ItemContent(self.reader.text_of(one), one.image) for one in history]
        for place_, one in enumerate(content):
            if not one.text and one.image is None:
                raise user_error("an item of the history has no content", place=f"history, item {place_}")
        codes = self.reader.codes(self.reader.vectors(content))
        missing = self.vocabulary.space.levels - codes.shape[1]
        return np.pad(codes, ((0, 0), (0, missing)))

"""`Replica`: the memory of one process, kept equal to the store that several share.

The store decides, memory follows: a change is chosen and stored inside one transaction that begins by reading
what other replicas committed, and is taken into memory once it is committed. What a crash leaves behind is
therefore always a state that was acknowledged, or was about to be.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from catalex.decoding.trie import Trie
from catalex.serving.following import Follower
from catalex.serving.reading import Reader
from catalex.serving.records import put_all
from catalex.serving.seeding import generation_of, settle, vectors_of
from catalex.serving.shelf import Shelf
from catalex.serving.store import Record, Store, Writer
from catalex.tokenizers.vocabulary import Vocabulary

SETTLED = 256
"""Items of another generation that are placed in one transaction: others wait for it."""


class Replica:
    """Items and trie of one generation, following a store.

    Attributes:
        store: Where every change is kept.
        reader: Encoder and tokenizer.
        vocabulary: Tokens of the identifiers.
        trie: Grows and shrinks in place. Nobody else may change it.
        generation: Whose identifiers these are.
    """

    def __init__(self, store: Store, reader: Reader, vocabulary: Vocabulary) -> None:
        self.store, self.reader, self.vocabulary = store, reader, vocabulary
        self.generation = generation_of(reader)
        self._revision, records = store.changes(self.generation, 0)
        self._shelf = Shelf(vocabulary.space.levels)
        put_all(self._shelf, records)
        placed = [r for r in records if r.live and r.codes is not None]
        codes = np.array([r.codes for r in placed], np.int32).reshape(-1, vocabulary.space.levels)
        self.trie = Trie(vocabulary.tokens(codes), np.array([r.number for r in placed], np.int64))
        self._strangers = {r.number: r for r in records if r.live and r.codes is None}
        self._writing = threading.Lock()  # taken before the store's; held while a change is made
        self._state = threading.RLock()  # taken last, for milliseconds: memory is read or changed
        self._follower: Follower | None = None
        self.adopt()

    @property
    def revision(self) -> int:
        """Grows with every acknowledged change, and is the same on all replicas."""
        return self._revision

    def __len__(self) -> int:
        """Items that can be recommended."""
        return len(self.trie)

    def poll(self) -> bool:
        """Take over what other replicas committed; whether there was anything. Costs one short query.

        Raises:
            StoreUnavailableError: When the database does not answer; the catalogue stays as it was.
        """
        if self.store.revision() == self._revision:
            self.adopt()
            return False
        if not self._writing.acquire(blocking=False):
            return False  # a change is being made here, which begins by taking over
        try:
            before = self._revision
            revision, records = self.store.changes(self.generation, before)
            self._take_over(records, revision)
        finally:
            self._writing.release()
        self.adopt()
        return self._revision != before

    def adopt(self) -> None:
        """Place items that a replica with another tokenizer has added; nothing where there are none."""
        if self._strangers and self.reader.can_place:
            with self._changing():
                pass

    def follow(self, seconds: float = 0.2) -> None:
        """Poll every so many seconds in a thread of its own, until `close`."""
        if self._follower is None:
            self._follower = Follower(self.poll, seconds)

    @property
    def trouble(self) -> str | None:
        """Why the last poll of `follow` failed; None when it did not."""
        return None if self._follower is None else self._follower.trouble

    def close(self) -> None:
        """End `follow` and let go of the store."""
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        self.store.close()

    @contextmanager
    def _changing(self) -> Iterator[tuple[Writer, list[Record]]]:
        """One change: what is put into the list inside the block is in memory after the commit."""
        changed: list[Record] = []
        settled: list[Record] = []
        with self._writing:
            while True:
                with self.store.writing() as writer:
                    if writer.before != self._revision:
                        others = writer.changes(self.generation, self._revision)
                        self._take_over(others, writer.before)
                    settled = self._settle(writer)  # in transactions of their own, until none is left
                    if not settled:
                        yield writer, changed
                self._take_over(settled or changed, writer.revision if settled or changed else 0)
                if not settled:
                    return

    def _take_over(self, records: Sequence[Record], revision: int) -> None:
        """Bring memory to the state of `revision`, where `records` have changed."""
        with self._state:
            gone = [r.number for r in records if not r.live and self._shelf.numbered(r.number) is not None]
            new = [
                r
                for r in records
                if r.live and r.codes is not None and self._shelf.numbered(r.number) is None
            ]
            if gone:
                self.trie.remove(gone)
            if new:
                tokens = self.vocabulary.tokens(np.array([r.codes for r in new], np.int32))
                self.trie.add(tokens, np.array([r.number for r in new], np.int64))
            put_all(self._shelf, records)
            for record in records:
                if record.live and record.codes is None:
                    self._strangers[record.number] = record
                else:
                    self._strangers.pop(record.number, None)
            self._revision = max(self._revision, revision)

    def _settle(self, writer: Writer) -> list[Record]:
        """Identifiers for some of the strangers."""
        if not self._strangers or not self.reader.can_place:
            return []
        some = list(self._strangers.values())[:SETTLED]
        vectors = vectors_of(self.store, self.reader, some)
        codes = settle(writer, self.reader, self.generation, self._shelf, vectors)
        return [replace(r, codes=codes[r.number], revision=writer.revision) for r in some]

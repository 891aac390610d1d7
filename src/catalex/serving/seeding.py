"""The first opening of a store, and the first opening by a bundle whose tokenizer the store has not met.

The identifiers of one tokenizer are a *generation*. A store seeded by one bundle can be served by another
of the same domain: items that the second bundle knows get its identifiers, items that came since are placed
by its conflict rule, items that only it knows are added, and what was removed stays removed. The identifiers
of the first generation are untouched, so that one can go back to it at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from catalex.data import columns as c
from catalex.features import ItemContent
from catalex.progress import say
from catalex.serving.items import LONGEST_KEY, Item, categories_of
from catalex.serving.placing import place
from catalex.serving.reading import Reader
from catalex.serving.shelf import Shelf
from catalex.serving.store import Record, Store, Writer, check_domain
from catalex.types import Codes, Floats


def generation_of(reader: Reader) -> str:
    """Names the identifiers of a bundle: its tokenizer's weights and the conflict method, by their hash."""
    return str(reader.bundle.manifest["identifier_version"])


def seed(store: Store, reader: Reader) -> None:
    """Make sure that the store has the bundle's catalogue, and identifiers of the bundle's generation.

    Raises:
        CatalexError: When the store keeps the catalogue of another domain.
    """
    domain, generation = str(reader.bundle.manifest["domain"]), generation_of(reader)
    check_domain(store.domain(), domain, store.place)
    if store.knows(generation):
        return
    own = bundled(reader)
    known = {record.key for record in own}
    strangers = [r for r in store.changes(generation, 0)[1] if r.live and r.key not in known]
    vectors = vectors_of(store, reader, strangers)  # before the lock is taken: it may take long
    with store.writing() as writer:
        check_domain(writer.domain, domain, store.place)
        if writer.domain is None:
            writer.seed(domain)
        _introduce(writer, store, reader, generation, own, vectors)
    reader.forget()


def bundled(reader: Reader) -> list[Record]:
    """The bundle's items, under its own numbers. Their keys are the source ids; an item without one, or with
    that of an item before it, is "#number", as `Bundle.item` reads it."""
    codes = reader.bundle.identifiers.of(reader.bundle.manifest["domain"]).tolist()
    first: dict[str, int] = {}
    for number, row in enumerate(reader.rows):
        first.setdefault(str(row[c.SOURCE_ID]), number)
    return [
        Record(
            number=number,
            key=_key(row[c.SOURCE_ID])
            if row[c.SOURCE_ID] and first[row[c.SOURCE_ID]] == number
            else f"#{number}",
            live=True,
            revision=0,
            title=reader.bundle.titles[number].replace("\0", ""),
            text=reader.catalogue_texts[number].replace("\0", ""),
            categories=categories_of(row[c.CATEGORIES]),
            codes=tuple(codes[number]),
        )
        for number, row in enumerate(reader.rows)
    ]


def _key(source: str) -> str:
    return source.replace("\0", "")[:LONGEST_KEY]


def vectors_of(store: Store, reader: Reader, records: Sequence[Record]) -> dict[int, Floats]:
    """Content rows ``(D',)`` by number of items that are to be placed; none where nobody can place any."""
    if not records or not reader.can_place:
        return {}
    wanted = reader.wants_images
    content = [
        ItemContent(r.text, store.image(r.number) if wanted and r.has_image else None) for r in records
    ]
    return dict(zip([r.number for r in records], reader.vectors(content), strict=True))


def settle(
    writer: Writer, reader: Reader, generation: str, shelf: Shelf, vectors: Mapping[int, Floats]
) -> dict[int, tuple[int, ...]]:
    """Give the items of `vectors` identifiers beside those that `shelf` holds, and store them."""
    if not vectors:
        return {}
    rows = np.stack(list(vectors.values()))
    found: Codes = place(reader.tokenizer, rows, reader.codes(rows), reader.method, shelf)
    codes = {number: tuple(own) for number, own in zip(vectors, found.tolist(), strict=True)}
    writer.identify(generation, codes, touch=True)
    return codes


def _introduce(
    writer: Writer,
    store: Store,
    reader: Reader,
    generation: str,
    bundled: Sequence[Record],
    vectors: Mapping[int, Floats],
) -> None:
    """Fill in a generation for every item of the store."""
    records = writer.changes(generation, 0)
    if any(record.codes is not None for record in records):
        return  # another process was faster
    latest = {record.key: record for record in records}  # by number: the live one, or the last removed
    new: list[Record] = []
    live: dict[int, tuple[int, ...]] = {}
    past: dict[int, tuple[int, ...]] = {}
    for own in bundled:
        assert own.codes is not None
        if own.key not in latest:
            new.append(own)
            continue
        known = latest[own.key]
        (live if known.live else past)[known.number] = own.codes
    writer.identify(generation, live, touch=True)
    writer.identify(generation, past, held=False)
    inserted = writer.insert(new, generation, {})
    unplaced = [r for r in records if r.live and r.number not in live]
    if not unplaced:
        return
    if not reader.can_place:
        if unplaced:
            say(f"warning: {len(unplaced):,} items of the store have no identifier in this bundle, which "
                "has no tokenizer; they are not recommended")  # fmt: skip
        return
    shelf = Shelf(reader.bundle.identifiers.space.levels)
    for number, codes in [*live.items(), *((r.number, r.codes) for r in inserted)]:
        assert codes is not None
        shelf.put(Item(f"#{number}", number, codes, "", ""))
    late = [r for r in unplaced if r.number not in vectors]
    known_vectors = {r.number: vectors[r.number] for r in unplaced if r.number in vectors}
    settle(writer, reader, generation, shelf, {**known_vectors, **vectors_of(store, reader, late)})

"""`Store`: a catalogue on disk, in SQLite or PostgreSQL, shared by any number of processes.

All writing goes through `Store.writing`: one transaction, one writer at a time over all processes (SQLite's
write lock; an advisory lock in PostgreSQL). A transaction that changed something gets the next revision,
so revisions are committed in their order: who has read revision r has read everything up to r.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Self

import sqlalchemy as sa

from catalex.errors import user_error
from catalex.serving.connection import MIGRATING, StoreUnavailableError, connect, explained
from catalex.serving.schema import IDENTIFIERS, IMAGES, ITEMS, STATE, migrate

__all__ = ["Record", "Store", "StoreUnavailableError", "Writer"]


@dataclass(frozen=True, slots=True)
class Record:
    """A row of `items`, with its identifier in one generation.

    Attributes:
        live: False once it was removed.
        revision: The one that changed it last.
        digest: Of the item as it was first brought, to tell a repeated request from another item.
        codes: Identifier; None where the generation has none for it yet.
    """

    number: int
    key: str
    live: bool
    revision: int
    title: str
    text: str
    categories: tuple[str, ...] = ()
    in_stock: bool = True
    attributes: Mapping[str, float] = field(default_factory=dict)
    has_image: bool = False
    digest: str = ""
    codes: tuple[int, ...] | None = None


class Store:
    """A durable store of one catalogue. Safe to use from several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a store, make its tables, or migrate those of an older version.

        Args:
            url: A path or ``sqlite:///path`` for SQLite; ``postgresql://user:password@host/name``.

        Raises:
            CatalexError: When the address is of another kind, or a newer catalex has written the store.
            StoreUnavailableError: When the database does not answer.
        """
        store = cls(connect(url))
        with store._transaction(writes=True) as connection:
            if store.engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATING)))
            migrate(connection)
        return store

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()

    @property
    def place(self) -> str:
        """Its address without a password."""
        return self.engine.url.render_as_string(hide_password=True)

    # --- reading --------------------------------------------------------------------------------------------

    def revision(self) -> int:
        """Of the latest change; 0 before the store is seeded."""
        with self._transaction() as connection:
            return connection.execute(sa.select(STATE.c.revision)).scalar() or 0

    def domain(self) -> str | None:
        """Name of the domain that it was seeded with; None before."""
        with self._transaction() as connection:
            return connection.execute(sa.select(STATE.c.domain)).scalar()

    def knows(self, generation: str) -> bool:
        """Whether items have identifiers of a generation."""
        with self._transaction() as connection:
            query = sa.select(IDENTIFIERS.c.number).where(IDENTIFIERS.c.generation == generation).limit(1)
            return connection.execute(query).first() is not None

    def changes(self, generation: str, since: int) -> tuple[int, list[Record]]:
        """The present revision, and the items that changed after `since`, by number."""
        with self._transaction() as connection:
            revision = connection.execute(sa.select(STATE.c.revision)).scalar() or 0
            return revision, _changes(connection, generation, since)

    def image(self, number: int) -> bytes | None:
        """Image file of an item."""
        with self._transaction() as connection:
            return _image(connection, number)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection whose queries all see one state."""
        with self._transaction() as connection:
            yield connection

    # --- writing --------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """One write transaction: committed, and on the disk, when the block ends; undone when it fails.

        Raises:
            StoreUnavailableError: When the database does not answer. A change may then be there or not:
                repeat it, or read again.
        """
        with self._transaction(writes=True) as connection:
            if connection.dialect.name == "postgresql":
                # the first transaction makes the row that later ones lock
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATING + 1)))
                connection.execute(sa.text("SET LOCAL synchronous_commit = on"))
            writer = Writer(connection)
            yield writer
            writer.finish()

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        with explained(self.engine), self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql" and not writes:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            else:
                connection = connection.execution_options(writes=writes)
            with connection.begin():
                yield connection


class Writer:
    """An open write transaction.

    Attributes:
        domain: Of the catalogue; None while the store is empty.
        before: The revision that the transaction began at.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        row = connection.execute(
            sa.select(STATE.c.domain, STATE.c.revision, STATE.c.next_number)
        ).one_or_none()
        self.domain: str | None = None if row is None else row.domain
        self.before: int = 0 if row is None else row.revision
        self.next_number: int = 0 if row is None else row.next_number
        self._dirty = False

    @property
    def revision(self) -> int:
        """The one that the changes of this transaction get."""
        return self.before + 1

    def seed(self, domain: str) -> None:
        """Make an empty store the store of a domain."""
        assert self.domain is None
        self._connection.execute(STATE.insert().values(id=1, domain=domain, revision=0, next_number=0))
        self.domain, self._dirty = domain, True

    def changes(self, generation: str, since: int) -> list[Record]:
        """Items that changed after `since`, as of now; nobody else can change them before the end."""
        return _changes(self._connection, generation, since)

    def digest(self, number: int) -> str:
        """Of an item as it was first brought; empty for an item of a bundle."""
        query = sa.select(ITEMS.c.digest).where(ITEMS.c.number == number)
        return str(self._connection.execute(query).scalar_one())

    def insert(self, records: Sequence[Record], generation: str, images: Mapping[int, bytes]) -> list[Record]:
        """Store new items under the next numbers; returns them with number and revision.

        Args:
            images: Image files by place in `records`.
        """
        first = self.next_number
        found = [
            replace(record, number=first + place, revision=self.revision, has_image=place in images)
            for place, record in enumerate(records)
        ]
        if not found:
            return found
        self._connection.execute(ITEMS.insert(), [_values(record) for record in found])
        if images:
            rows = [{"number": first + place, "data": data} for place, data in images.items()]
            self._connection.execute(IMAGES.insert(), rows)
        self.identify(generation, {r.number: r.codes for r in found if r.codes is not None})
        self.next_number, self._dirty = first + len(found), True
        return found

    def identify(
        self, generation: str, codes: Mapping[int, Sequence[int]], *, held: bool = True, touch: bool = False
    ) -> None:
        """Give items their identifiers of a generation; with `touch`, for all replicas to see."""
        rows = [
            {"generation": generation, "number": number, "codes": _written(own), "held": held}
            for number, own in codes.items()
        ]
        if rows:
            self._connection.execute(IDENTIFIERS.insert(), rows)
            self._dirty = True
        if touch and rows:
            self._connection.execute(
                ITEMS.update().where(ITEMS.c.number == sa.bindparam("own")).values(revision=self.revision),
                [{"own": number} for number in codes],
            )

    def update(self, record: Record) -> Record:
        """Store an item anew; its number, key, text and identifiers stay. Returns it with its revision."""
        found = replace(record, revision=self.revision)
        values = {
            k: v for k, v in _values(found).items() if k not in ("number", "key", "text", "digest", "live")
        }
        self._connection.execute(ITEMS.update().where(ITEMS.c.number == found.number).values(values))
        self._dirty = True
        return found

    def remove(self, record: Record) -> Record:
        """Take an item out, and free its identifiers in every generation."""
        found = replace(record, revision=self.revision, live=False)
        number = record.number
        self._connection.execute(
            ITEMS.update().where(ITEMS.c.number == number).values(live=False, revision=self.revision)
        )
        self._connection.execute(
            IDENTIFIERS.update().where(IDENTIFIERS.c.number == number).values(held=False)
        )
        self._connection.execute(IMAGES.delete().where(IMAGES.c.number == number))
        self._dirty = True
        return found

    def fill(self, table: sa.Table, rows: Sequence[Mapping[str, object]]) -> None:
        """Rows of a snapshot, as they were; the revision is then that of the snapshot."""
        if rows:
            self._connection.execute(table.insert(), [dict(row) for row in rows])

    def finish(self) -> None:
        """Write revision and next number, where anything changed."""
        if self._dirty:
            self._connection.execute(
                STATE.update().values(revision=self.revision, next_number=self.next_number)
            )


def check_domain(found: str | None, domain: str, place: str) -> None:
    """Refuse a store that was seeded from a bundle of another domain."""
    if found not in (None, domain):
        raise user_error(
            "the store keeps the catalogue of another domain",
            place=place,
            value=found,
            allowed=domain,
            remedy="name another store for this bundle",
        )


def _changes(connection: sa.Connection, generation: str, since: int) -> list[Record]:
    joined = ITEMS.outerjoin(
        IDENTIFIERS,
        sa.and_(IDENTIFIERS.c.number == ITEMS.c.number, IDENTIFIERS.c.generation == generation),
    )
    query = sa.select(ITEMS, IDENTIFIERS.c.codes).select_from(joined).where(ITEMS.c.revision > since)
    return [_record(row) for row in connection.execute(query.order_by(ITEMS.c.number)).mappings()]


def _image(connection: sa.Connection, number: int) -> bytes | None:
    found = connection.execute(sa.select(IMAGES.c.data).where(IMAGES.c.number == number)).scalar()
    return None if found is None else bytes(found)


def _record(row: sa.RowMapping) -> Record:
    return Record(
        row["number"],
        row["key"],
        row["live"],
        row["revision"],
        row["title"],
        row["text"],
        _names(row["categories"]),
        row["in_stock"],
        json.loads(row["attributes"]) if row["attributes"] != "{}" else {},
        row["has_image"],
        row["digest"],
        None if row["codes"] is None else tuple(map(int, row["codes"].split())),
    )


@lru_cache(maxsize=10_000)
def _names(written: str) -> tuple[str, ...]:
    """Categories; many items have the same."""
    return tuple(json.loads(written))


def _values(record: Record) -> dict[str, object]:
    return {
        "number": record.number,
        "key": record.key,
        "live": record.live,
        "revision": record.revision,
        "title": record.title,
        "text": record.text,
        "categories": json.dumps(record.categories, ensure_ascii=False),
        "in_stock": record.in_stock,
        "attributes": json.dumps(dict(record.attributes), ensure_ascii=False),
        "has_image": record.has_image,
        "digest": record.digest,
    }


def _written(codes: Sequence[int]) -> str:
    return " ".join(str(int(code)) for code in codes)

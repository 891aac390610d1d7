"""The tables of a store, and the forward migrations that bring an older store up to them.

============== =====================================================================================
table          one row
============== =====================================================================================
catalex_schema the number of migrations that the store has seen
state          the catalogue: its domain, its revision, the next free number
items          an item, also one that was removed (``live`` false): histories may still name it
images         the image file of an item that came with one
identifiers    the codes that an item has in a generation: the identifiers of one tokenizer. Bundles of
               different tokenizers can serve one store, each with its own generation
============== =====================================================================================

Every item carries the revision that changed it last, so "what is new since revision r" is one indexed query
and needs no log that would have to be cut. Two rules of the service are rules of the database: of the items
that are live no two have one key, and none share an identifier of one generation.

A migration is a function from a connection to nothing, run in one transaction with the number that counts it.
They are only ever appended to `MIGRATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from catalex.errors import user_error

METADATA = sa.MetaData()

VERSION = sa.Table("catalex_schema", METADATA, sa.Column("version", sa.Integer, nullable=False))

STATE = sa.Table(
    "state",
    METADATA,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("domain", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("next_number", sa.Integer, nullable=False),
)

ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("categories", sa.Text, nullable=False),  # JSON list of names
    sa.Column("in_stock", sa.Boolean, nullable=False),
    sa.Column("attributes", sa.Text, nullable=False),  # JSON object of numbers
    sa.Column("has_image", sa.Boolean, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),  # of the item as it was first brought; empty: from a bundle
)
sa.Index(
    "live_keys",
    ITEMS.c.key,
    unique=True,
    sqlite_where=ITEMS.c.live.is_(True),
    postgresql_where=ITEMS.c.live.is_(True),
)

IMAGES = sa.Table(
    "images",
    METADATA,
    sa.Column("number", sa.Integer, sa.ForeignKey("items.number"), primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

IDENTIFIERS = sa.Table(
    "identifiers",
    METADATA,
    sa.Column("generation", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, sa.ForeignKey("items.number"), primary_key=True, autoincrement=False),
    sa.Column("codes", sa.Text, nullable=False),  # decimal, with spaces between
    sa.Column("held", sa.Boolean, nullable=False),  # false once the item is removed: free for others
)
sa.Index(
    "held_identifiers",
    IDENTIFIERS.c.generation,
    IDENTIFIERS.c.codes,
    unique=True,
    sqlite_where=IDENTIFIERS.c.held.is_(True),
    postgresql_where=IDENTIFIERS.c.held.is_(True),
)

TABLES = (STATE, ITEMS, IMAGES, IDENTIFIERS)
"""What a snapshot holds, in an order that foreign keys allow."""


def _first(connection: sa.Connection) -> None:
    METADATA.create_all(connection, list(TABLES), checkfirst=False)


MIGRATIONS: list[Callable[[sa.Connection], None]] = [_first]
"""Migration i takes a store from version i to i + 1."""


def migrate(connection: sa.Connection) -> None:
    """Bring the store of an open write transaction up to the newest version.

    Raises:
        CatalexError: When a newer catalex has written it.
    """
    METADATA.create_all(connection, [VERSION])
    found = connection.execute(sa.select(VERSION.c.version)).scalar()
    version = found or 0
    if version > len(MIGRATIONS):
        raise user_error(
            "the store was written by a newer catalex",
            place="store",
            value=f"version {version}",
            allowed=f"up to version {len(MIGRATIONS)}",
            remedy="serve it with that version, or restore a snapshot that is older",
        )
    for step in MIGRATIONS[version:]:
        step(connection)
    if found is None:
        connection.execute(VERSION.insert().values(version=len(MIGRATIONS)))
    elif version < len(MIGRATIONS):
        connection.execute(VERSION.update().values(version=len(MIGRATIONS)))

"""Opening a database so that what was acknowledged survives any crash, and its errors in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from catalex.errors import CatalexError, require, user_error

WAIT = 30.0
"""Seconds that a writer waits for the others before it gives up."""
MIGRATING = 0x63617461
"""Key of PostgreSQL's advisory lock while tables are made ("cata")."""


class StoreUnavailableError(CatalexError):
    """The database cannot be reached or did not answer in time; the same request may succeed later."""


def connect(url: str) -> sa.Engine:
    """An engine for ``sqlite:///path``, ``postgresql://..``, or a bare path of a SQLite file.

    SQLite: write-ahead log, ``synchronous=FULL`` (a commit returns when it is on the disk). PostgreSQL: the
    psycopg driver; connections are tried before use, so that a restarted database is no error.

    Raises:
        CatalexError: When the address is of another kind, or psycopg is missing.
    """
    if "://" not in url:
        url = f"sqlite:///{url}"
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise user_error("this is no address of a store", place="store", value=_hidden(url)) from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise user_error(
                "a store in memory would not survive", place="store", value=url, remedy="name a file"
            )
        return _sqlite(parsed)
    if kind in ("postgresql", "postgres"):
        require("psycopg", "postgres")
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_timeout=WAIT,
            connect_args={"connect_timeout": 5, "options": f"-c lock_timeout={int(WAIT * 1000)}"},
        )
    raise user_error(
        "this kind of database is not supported",
        place="store",
        value=parsed.render_as_string(hide_password=True),
        allowed="a path, sqlite:///path, postgresql://user@host/name",
    )


def _sqlite(url: sa.URL) -> sa.Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise user_error(
            f"the folder of the store cannot be made ({error.strerror})", place=path.parent
        ) from None
    engine = sa.create_engine(url, connect_args={"timeout": WAIT, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver would open transactions by itself, too late
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # a writer takes the lock before it reads: nothing that it saw can change under it
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def explained(engine: sa.Engine) -> Iterator[None]:
    """Errors of the database as one sentence, without SQL or passwords."""
    place = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        reason = " ".join(str(cause).split())[:200]
        raise StoreUnavailableError(f"{place}: the store cannot be used now ({reason}).") from error
    except exc.DatabaseError as error:
        if error.connection_invalidated:
            raise StoreUnavailableError(f"{place}: the connection to the store was lost.") from error
        if isinstance(error.orig, Exception) and "not a database" in str(error.orig):
            raise user_error(
                "this file is no store", place=place, remedy="name another file, or move this one away"
            ) from None
        raise


def _hidden(url: str) -> str:
    """An address that could not be read, without what may be a password."""
    return url.split("://")[0] + "://..."

"""A private PostgreSQL cluster in a folder of its own, for tests and scripts; gone when it is closed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def binaries() -> Path | None:
    """Folder of ``initdb`` and ``postgres``: on the path, or where Debian puts them; None without any."""
    found = shutil.which("initdb")
    if found is not None and shutil.which("postgres") is not None:
        return Path(found).resolve().parent  # where its companions are
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").is_file()), None)


class Cluster:
    """A running server that listens on a socket in its folder only; use as a context manager.

    PostgreSQL refuses to run as root, so root starts it as ``nobody``.
    """

    def __init__(self) -> None:
        found = binaries()
        assert found is not None, "no PostgreSQL here"
        self._bin = found
        self._as: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="catalex-pg-"))
        if self._as:
            os.chown(self.folder, pwd.getpwnam("nobody").pw_uid, -1)
        self._data = self.folder / "data"
        self._run("initdb", "-D", str(self._data), "-U", "catalex", "-A", "trust", "--no-instructions")
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = 0
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Of the first database."""
        return self._url("postgres")

    def fresh(self) -> str:
        """Address of a new, empty database."""
        self._databases += 1
        name = f"catalex{self._databases}"
        self._run("createdb", "-h", str(self.folder), "-U", "catalex", name)
        return self._url(name)

    def start(self) -> float:
        """Start the server; seconds until it answers (after a crash it recovers first)."""
        began = time.monotonic()
        log = (self.folder / "log").open("ab")
        self._server = subprocess.Popen(
            [str(self._bin / "postgres"), "-D", str(self._data), "-k", str(self.folder), "-h", ""],
            stdout=log,
            stderr=log,
            cwd=self.folder,
            **self._as,
        )
        log.close()
        for _ in range(600):
            ready = subprocess.run(
                [str(self._bin / "pg_isready"), "-q", "-h", str(self.folder), "-U", "catalex"], check=False
            )
            if ready.returncode == 0:
                return time.monotonic() - began
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def kill(self) -> None:
        """SIGKILL to the server, as a crash of the machine would end it; its backends follow."""
        assert self._server is not None
        self._server.send_signal(signal.SIGKILL)
        self._server.wait()
        self._server = None

    def stop(self) -> None:
        """A fast, orderly end."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait()
            self._server = None

    def close(self) -> None:
        """Stop, and remove the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _url(self, name: str) -> str:
        return f"postgresql://catalex@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._bin / program), *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._as,
        )

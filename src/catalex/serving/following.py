"""`Follower`: a thread that keeps asking the store for what other replicas committed."""

from __future__ import annotations

import threading
from collections.abc import Callable

from catalex.progress import say


class Follower:
    """Calls `poll` every `seconds`; while the database is away it says so once, and goes on asking.

    Attributes:
        trouble: Why the last poll failed; None when it did not.
    """

    def __init__(self, poll: Callable[[], bool], seconds: float) -> None:
        self.trouble: str | None = None
        self._poll, self._seconds = poll, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalex-follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._poll()
                if self.trouble is not None:
                    say("the store answers again")
                self.trouble = None
            except Exception as error:  # whatever it was, a thread that ended would never catch up
                if self.trouble is None:
                    say(f"warning: {error}")
                self.trouble = str(error)

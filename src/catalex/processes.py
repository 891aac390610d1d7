"""Several processes of one run, as ``accelerate launch`` and torchrun start them: who is who, and waiting.

Process 0 is the *main* one: it alone speaks, decides and writes. The others take part in training and
otherwise wait for its word. Words go through the key-value store that the launcher offers, not through
collective operations: giving one never blocks, so that a main process that fails can tell so at any moment,
and waiting for one costs nothing, for days if need be.

A run of one process is told from the environment alone; torch is not imported for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from catalex.errors import EXIT_CODE

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

GRACE = 5.0
"""Seconds that a process leaves to the main one to say what is wrong; launchers end all after the first."""

PATIENCE = timedelta(days=30)
"""How long one process waits for another in a collective operation. A process that *died* is noticed by the
launcher, which ends the others; slow work (a validation, a checkpoint) must not be mistaken for death."""

DONE, FAILED = "done", "failed"

_POLL = 0.2
"""Longest pause in seconds between two looks for a word."""

_words = 0
"""Words that this process has given or waited for; all processes count alike."""
_store: Store | None = None


def count() -> int:
    """P, as the launcher told; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """This process's number, from 0 to P - 1."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def local_index() -> int:
    """Its number on this machine: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that speaks, decides and writes."""
    return index() == 0


def start() -> None:
    """Let the processes meet, on CPU and CUDA tensors alike; nothing if they have met, or for one process.

    accelerate, whose `PartialState` the training loops use, finds the group that is made here.
    """
    global _store
    if count() == 1 or _store is not None:
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, processes = next(rendezvous("env://"))
    _store = PrefixStore("catalex/words", store)
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("catalex/group", store),
            rank=rank,
            world_size=processes,
            timeout=PATIENCE,
        )


def end() -> None:
    """Part as friends, the last act of a program that went well: the main process leaves last, because the
    store may live in it."""
    global _store
    if _store is None:
        return
    import torch.distributed as dist

    _store.set(f"end/{index()}", DONE)
    if is_main():
        _read([f"end/{other}" for other in range(count())])
    _store = None
    if dist.is_initialized():
        dist.destroy_process_group()


def decided(choose: Callable[[], bool]) -> bool:
    """What the main process chooses, on every process. The others do not choose, but wait for it.

    Raises:
        SystemExit: In the others, when the main process failed.
    """
    if count() == 1:
        return choose()
    if is_main():
        with _failure_told():
            choice = choose()
        _tell(str(choice))
        return choice
    return _hear() == str(True)


@contextmanager
def led(*, together: bool = False) -> Iterator[bool]:
    """A piece of work that is over for all processes when it is over for the main one.

    >>> with led() as mine:                                                    # doctest: +SKIP
    ...     if mine:
    ...         write_json(path, found)

    Args:
        together: All processes take part, as long as they like. Otherwise the main process works alone, and
            the others should do nothing.

    Yields:
        Whether this process works.

    Raises:
        SystemExit: In the others, when the main process failed. If another process fails, it breaks the
            collective operations of the rest; launchers then end them all.
    """
    if count() == 1:
        yield True
    elif is_main():
        with _failure_told():
            yield True
        _tell(DONE)
    else:
        try:
            yield together
        except Exception:
            if _main_failed():  # a consequence, which needs no traceback of its own
                _leave()
            raise
        _hear()


@contextmanager
def _failure_told() -> Iterator[None]:
    """Tell the others when the main process fails within."""
    try:
        yield
    except BaseException:
        _tell(FAILED)
        raise


def _leave() -> NoReturn:
    """End this process after the main one has failed, and has said why."""
    time.sleep(GRACE)
    raise SystemExit(EXIT_CODE)


def _tell(word: str) -> None:
    """Give the next word to all; never waits."""
    global _words
    start()
    assert _store is not None
    _words += 1
    _store.set(f"{_words}", word)


def _hear() -> str:
    """Wait for the next word."""
    global _words
    start()
    _words += 1
    try:
        word = _read([f"{_words}"])
    except RuntimeError:  # the store was lost, and with it the main process or the launcher
        word = FAILED
    if word == FAILED:
        _leave()
    return word


def _main_failed() -> bool:
    """Whether the main process has told so, or has ended (and the store with it); does not wait."""
    assert _store is not None
    word = f"{_words + 1}"
    try:
        return _store.check([word]) and _store.get(word).decode() == FAILED
    except RuntimeError:
        return True


def _read(keys: list[str]) -> str:
    """The first of `keys` as soon as all are there. Looks again and again, so that Ctrl-C is heard."""
    assert _store is not None
    pause = 0.002
    while not _store.check(keys):
        time.sleep(pause)
        pause = min(1.5 * pause, _POLL)
    return _store.get(keys[0]).decode()

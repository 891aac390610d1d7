"""Who the main process is, and how the others wait for its word: two copies of the module in two threads."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from torch.distributed import HashStore

from catalex import processes
from catalex.errors import EXIT_CODE

Work = Callable[[ModuleType], Any]


@pytest.fixture
def pair() -> list[ModuleType]:
    """The module as process 0 and as process 1 see it; they share a store."""
    store, found = HashStore(), []
    for rank in range(2):
        spec = importlib.util.find_spec("catalex.processes")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.count, module.index = lambda: 2, lambda rank=rank: rank
        module._store, module.GRACE = store, 0.0
        found.append(module)
    return found


def both(pair: list[ModuleType], main: Work, other: Work) -> list[Any]:
    """What two processes return, or the exceptions that end them."""
    results: list[Any] = [None, None]

    def run(rank: int, work: Work) -> None:
        try:
            results[rank] = work(pair[rank])
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=pair_of) for pair_of in enumerate((main, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive(), "a process hangs"
    return results


def test_one_process_decides_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # without LOCAL_RANK these are the words of somebody else
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (processes.count(), processes.index(), processes.local_index()) == (1, 0, 0)
    assert processes.is_main()
    assert processes.decided(lambda: True)
    assert not processes.decided(lambda: False)
    for together in (True, False):
        with processes.led(together=together) as works:
            assert works
    processes.start()
    processes.end()
    assert processes._store is None


def test_the_environment_of_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert (processes.count(), processes.index(), processes.local_index()) == (4, 3, 1)
    assert not processes.is_main()


@pytest.mark.parametrize("choice", [True, False])
def test_the_main_process_chooses(pair: list[ModuleType], choice: bool) -> None:
    def never() -> bool:
        raise AssertionError

    assert both(pair, lambda m: m.decided(lambda: choice), lambda m: m.decided(never)) == [choice, choice]


def test_others_wait_until_the_work_is_over_and_words_keep_their_order(pair: list[ModuleType]) -> None:
    done = [threading.Event() for _ in range(3)]

    def work(module: ModuleType) -> list[bool]:
        found = []
        for number, event in enumerate(done):
            with module.led(together=number == 2) as works:
                found.append(works)
                if module.is_main():
                    event.wait(0.05)
                    event.set()
            assert event.is_set(), number
            found.append(module.decided(lambda number=number: number == 1))
        return found

    assert both(pair, work, work) == [
        [True, False, True, True, True, False],
        [False, False, False, True, True, False],
    ]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_when_the_main_process_fails_all_end(
    pair: list[ModuleType], together: bool, error: BaseException
) -> None:
    def work(module: ModuleType) -> None:
        with module.led(together=together):
            if module.is_main():
                raise error

    main, other = both(pair, work, work)
    assert main is error
    assert isinstance(other, SystemExit)
    assert other.code == EXIT_CODE


def test_a_failing_choice_ends_all(pair: list[ModuleType]) -> None:
    def fail() -> bool:
        raise OSError("disk")

    main, other = both(pair, lambda m: m.decided(fail), lambda m: m.decided(fail))
    assert isinstance(main, OSError)
    assert isinstance(other, SystemExit)


def test_a_consequence_of_the_main_failure_is_not_shown(pair: list[ModuleType]) -> None:
    """A broken collective operation raises in the others as well."""
    failed = threading.Event()

    def main(module: ModuleType) -> None:
        try:
            with module.led(together=True):
                raise ValueError
        finally:
            failed.set()

    def other(module: ModuleType) -> None:
        with module.led(together=True):
            failed.wait(5)
            raise RuntimeError("connection closed by peer")

    assert isinstance(both(pair, main, other)[1], SystemExit)


def test_a_failure_of_another_process_is_shown(pair: list[ModuleType]) -> None:
    def alone(module: ModuleType) -> None:
        with module.led(together=True):
            raise RuntimeError("my own memory is full")

    found = both(pair, lambda m: None, alone)[1]
    assert isinstance(found, RuntimeError)
    assert "my own memory" in str(found)


def test_a_lost_store_ends_the_others(pair: list[ModuleType]) -> None:
    class Lost:
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("connection reset by peer")

    pair[1]._store = Lost()

    def work(module: ModuleType) -> None:
        with module.led():
            pass

    assert isinstance(both(pair, lambda m: None, work)[1], SystemExit)


def test_the_main_process_leaves_last(pair: list[ModuleType]) -> None:
    left: list[int] = []

    def other(module: ModuleType) -> None:
        threading.Event().wait(0.05)
        left.append(1)
        module.end()

    def main(module: ModuleType) -> None:
        module.end()
        left.append(0)

    assert both(pair, main, other) == [None, None]
    assert left == [1, 0]

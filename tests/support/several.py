"""Run commands of catalex in several processes each, as a launcher would.

    python several.py < commands.json > outcomes.json

A command is ``{"folder": .., "arguments": [..], "die_at": null}``, an outcome one list for each key:
``codes``, ``printed`` and ``said`` (standard output and error) of the processes. Processes are forks of this
one, which has imported everything, so a command costs what its work costs. With ``die_at`` the main process
kills itself at that write. Nobody else ends a process that goes on alone: after `LIMIT` seconds it counts as
hanging, and its code is that of SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import sklearn.utils.extmath  # noqa: F401 - as the next: imported once, not in each fork
import torch

import catalex.data.prepare
import catalex.pipelines.run  # noqa: F401
from catalex import cli, processes

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.die_at_write import die_at

COUNT = 2
LIMIT = 60.0


def outcome(folder: str, arguments: list[str], die_at: int | None = None) -> dict[str, list[Any]]:
    """Run one command in `COUNT` processes."""
    os.makedirs(folder, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, port, folder, arguments, die_at) for rank in range(COUNT)]
    began, status = time.monotonic(), dict.fromkeys(children, 0)
    running = set(children)
    while running:
        for child in list(running):
            ended, code = os.waitpid(child, os.WNOHANG)
            if ended:
                status[child] = os.waitstatus_to_exitcode(code)
                running.remove(child)
            elif time.monotonic() - began > LIMIT:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    streams = {
        name: [Path(folder, f"{name}.{rank}").read_text(encoding="utf-8") for rank in range(COUNT)]
        for name in ("printed", "said")
    }
    return {"codes": [status[child] for child in children], **streams}


def _fork(rank: int, port: int, folder: str, arguments: list[str], number: int | None) -> int:
    """The number of a new process that runs the command."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    for name, stream in (("printed", 1), ("said", 2)):
        os.dup2(os.open(f"{name}.{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    os.environ.update(
        WORLD_SIZE=str(COUNT),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    if rank == 0 and number is not None:
        die_at(number, before=number % 2 == 0)
    sys.argv = ["catalex", *arguments]
    processes.GRACE = 0.5  # there is no launcher that would end it
    code: Any = 1
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump([outcome(**command) for command in json.load(sys.stdin)], sys.stdout)

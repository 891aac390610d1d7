"""`serve`: a bundle behind uvicorn, from the open socket to the graceful end.

On SIGTERM the service first says that it is not ready and goes on for `drain` seconds; then it takes no new
connections, answers what is under way for `drain_timeout` seconds at most, and ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from catalex.errors import CatalexError, user_error
from catalex.pipelines.recipe import Recipe
from catalex.progress import say
from catalex.serving.app import build_app
from catalex.serving.front import FrontDoor
from catalex.serving.keys import Keys
from catalex.serving.service import Service, check_folder
from catalex.serving.settings import ServeOptions
from catalex.serving.swap import Swap
from catalex.serving.timed_http import timed_protocol


def serve(bundle: Path, options: ServeOptions, *, started: Callable[[str], None] | None = None) -> None:
    """Serve a bundle until SIGTERM or Ctrl-C.

    Args:
        started: Told the address once requests are answered.

    Raises:
        CatalexError: When the bundle, the key file, the store or the address cannot be used.
    """
    keys = Keys.read(options.api_key_file)
    if options.models is not None:
        check_folder(options.models)
    with bound(options.host, options.port) as listening:
        _log_to_stderr()
        say(f"loading {bundle} ...")
        service = Service(bundle, options)
        swap = Swap(service)
        server = make_server(build_app(service, keys, swap).state.front, options)
        try:
            asyncio.run(_answer(server, listening, service, started, open_to_all=not keys.needed))
        finally:
            say("ending: the last requests were answered")
            swap.close()
            service.close()


async def _answer(
    server: uvicorn.Server,
    listening: socket.socket,
    service: Service,
    started: Callable[[str], None] | None,
    *,
    open_to_all: bool,
) -> None:
    """Answer requests until a signal, the first of which ends gracefully and the next at once."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        if service.ready and service.options.drain:
            service.ready = False
            loop.call_later(service.options.drain, end)
        else:
            server.force_exit = server.should_exit
            service.ready, server.should_exit = False, True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    host, port = listening.getsockname()[:2]
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "::1") else host
    listening.listen(2048)
    say(f"catalex answers at http://{shown}:{port} (Ctrl-C ends it)")
    if open_to_all and host not in ("127.0.0.1", "::1"):
        say("warning: everyone who can connect may change the catalogue; see --api-key-file")
    if started is not None:
        started(f"http://{shown}:{port}")
    await server.serve([listening])


def make_server(front: FrontDoor, options: ServeOptions) -> uvicorn.Server:
    """The server of an application, with the limits of its connections."""
    config = uvicorn.Config(
        front,
        http=timed_protocol(options.head_timeout, options.max_connections),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(max(1, options.keep_alive)),
        timeout_graceful_shutdown=int(max(1, options.drain_timeout)),
    )
    return _Server(config)


def serve_recipe(recipe: Recipe) -> None:
    """Serve the bundle of the first evaluated domain that has one, at any port where the usual one is taken:
    nobody chose it, and hours may have gone into the run.

    Raises:
        CatalexError: When the recipe's recommender does not go into bundles.
    """
    folders = [recipe.folder / "bundle" / name for name in recipe.evaluate_domains]
    made = [folder for folder in folders if folder.is_dir()]
    if not made:
        raise user_error(
            "the run made no bundle to serve",
            place=recipe.folder,
            remedy="use recommender t5 over identifiers",
        )
    options = ServeOptions()
    try:
        bound(options.host, options.port).close()
    except CatalexError:
        options = ServeOptions(port=0)
    serve(made[0], options)


class _Server(uvicorn.Server):
    """Leaves signals to `serve`, which may have to wait before it ends."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound(host: str, port: int) -> socket.socket:
    """A bound socket, before long work, so that a port in use is told at once."""
    made: socket.socket | None = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio turns Nagle's algorithm off, 40 ms an answer, only where the protocol is named
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        return made
    except (OSError, OverflowError, UnicodeError) as error:
        if made is not None:
            made.close()
        raise user_error(
            f"the service cannot listen here ({getattr(error, 'strerror', None) or error})",
            place=f"{host}:{port}",
            remedy="choose another --port (0 for any free one) or --host",
        ) from None


def _log_to_stderr() -> None:
    """One line a request: time, id, method, route, status, milliseconds. Nothing of what was asked."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("catalex.serving")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("uvicorn.error").handlers[:] = [handler]
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)

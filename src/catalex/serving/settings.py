"""`ServeOptions`: where the service listens, who may call it, and how much it takes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from catalex.errors import user_error
from catalex.options import Options, Positive

Seconds = Annotated[float, Field(gt=0)]
MIB = 2**20


class ServeOptions(Options):
    """Settings of the service. The defaults suit one process on a small machine behind nothing."""

    host: str = "127.0.0.1"
    """Address to listen on. This machine alone may connect until another one is named."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes any free port."""
    store: str | None = None
    """URL of the durable store; by default an SQLite file beside the bundle."""
    api_key_file: Path | None = None
    """One key a line, see `keys`. Without it everyone who can connect may do everything but swap models."""
    models: Path | None = None
    """Folder whose subfolders are bundles that may be swapped in, by name; without it nothing can be."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the service from a browser; none by default."""

    device: str = "auto"
    """"auto" takes the GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model's products; bf16 is for GPUs."""
    threads: Positive = 4
    """That encode texts and look up neighbours, beside the one that searches and the one that writes."""

    max_body: Positive = 8 * MIB
    """Bytes of a request. A picture of a shop is some 100 kB; base64 makes it a third longer."""
    max_image_bytes: Positive = 4 * MIB
    """Bytes of one picture, decoded from base64."""
    max_image_pixels: Positive = 16_000_000
    """Width times height; looked up in the file's head, before anything is unpacked."""
    max_history: Positive = 1000
    """Items of a history; the model reads the latest ones only."""
    max_items: Positive = 100
    """Items of one request that adds, and requests of one batch."""
    max_k: Positive = 50
    """Recommendations of one request; the beam is as wide (UTGRec: 50)."""

    max_queue: Positive = 64
    """Requests at work or waiting; one more is answered 429. At 10 ms each the last waits some 0.6 s."""
    max_connections: Positive = 512
    """Open connections; one more is answered 503."""
    newcomers: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of every list that is kept for items that came since the bundle was made, see `newcomers`; 0.1 is
    one place in ten (TIGER's epsilon). 0 leaves all places to the model."""
    timeout: Seconds = 10.0
    """For an answer, from the arrival of the whole request."""
    body_timeout: Seconds = 10.0
    """For the whole body of a request to arrive, after its head."""
    head_timeout: Seconds = 10.0
    """For the whole head of a request to arrive, after the connection or the answer before."""
    keep_alive: Seconds = 30.0
    """Idle connections are closed after this."""
    batch_size: Positive = 64
    """Requests that are searched together, at most."""
    batch_wait: Annotated[float, Field(ge=0)] = 0.002
    """The latency budget of batching: how long a request waits for others, seconds. Requests that arrive
    while a batch is searched gather without any wait."""
    poll: Seconds = 0.25
    """How often changes by other replicas are looked for; they have to be seen within a second."""
    stale: Seconds = 30.0
    """Without the store the service goes on recommending what it knew, and refuses changes; after so long
    ``/ready`` says 503, so that callers go where the catalogue is up to date. A database restarts in less."""
    drain: Annotated[float, Field(ge=0)] = 0.0
    """After SIGTERM: how long to go on as before, but not ready, so that load balancers turn away."""
    drain_timeout: Seconds = 20.0
    """After that: how long requests under way may take. Below the 30 s that Kubernetes waits by default."""
    sample: int = Field(default=200, ge=0)
    """Histories that are remembered, in memory only, for comparing the next model with the present one."""


def parse_options(values: Mapping[str, Any], settings: Sequence[str]) -> ServeOptions:
    """Options from the command line: those that were given, then ``NAME=VALUE`` settings.

    Raises:
        CatalexError: Names the first setting that is unknown or out of range.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise user_error(
                "a setting is NAME=VALUE", place="--set", value=setting, remedy="write e.g. --set timeout=5"
            )
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise user_error("the value cannot be read", place=f"--set {name}", value=value) from None
    return ServeOptions.parse(given, "serve")

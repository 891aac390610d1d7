"""Routes that tell how the service is, and those that swap its model."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response

import catalex
from catalex.artifacts import read_parquet
from catalex.data import columns as c
from catalex.serving import wire
from catalex.serving.items import Selection
from catalex.serving.problem import busy
from catalex.serving.service import Served, Service
from catalex.serving.swap import Swap

MOST = 500
"""Categories and attributes that the page offers, the most frequent ones."""


def state_routes(service: Service) -> APIRouter:
    """Routes about one service."""
    routes = APIRouter(tags=["state"])
    told: dict[str, tuple[int, dict[str, Any]]] = {}

    @routes.get("/health", summary="Whether the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive", "catalex": catalex.__version__}

    @routes.get("/ready", summary="Whether requests should be sent here")
    async def ready() -> dict[str, Any]:
        if not service.ready:
            raise busy("The service is starting or ending.", 503)
        silence = service.silence()
        if silence >= service.options.stale:
            raise busy(f"The store has not answered for {silence:.0f} s; items may be out of date.", 503)
        return {
            "status": "ready",
            "model": service.present.name,
            "store": "away" if silence else "answers",
        }

    @routes.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def metrics() -> Response:
        service.observe()
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/v1/about", summary="What is served, and the limits of requests")
    async def about() -> dict[str, Any]:
        with service.using() as served:
            revision = served.catalogue.revision
            if told.get(served.name, (-1, {}))[0] != revision:
                told.clear()
                told[served.name] = revision, await service.read(lambda: _about(served))
            o = service.options
            limits = {
                name: getattr(o, name)
                for name in ("max_k", "max_history", "max_items", "max_body", "max_image_bytes", "timeout")
            }
            return {**told[served.name][1], "limits": limits}

    @routes.get("/v1/health", summary="How evenly the identifiers use their codes")
    async def tokenizer_health() -> dict[str, Any]:
        with service.using() as served:
            return await service.read(lambda: _identifier_health(served))

    return routes


def model_routes(service: Service, swap: Swap) -> APIRouter:
    """Routes for the operator. No request names a path: bundles are chosen by name from one folder."""
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models", summary="Who answers, who is beside, what can be loaded")
    async def models() -> dict[str, Any]:
        return await service.read(swap.state)

    @routes.post("/v1/models/load", status_code=202, summary="Load a bundle beside the present one")
    async def load(request: wire.ModelName) -> dict[str, Any]:
        return await service.begin(lambda: swap.load(request.name))

    @routes.post("/v1/models/compare", summary="Compare the next model on recorded histories")
    async def compare() -> dict[str, Any]:
        return await service.begin(swap.compare)

    @routes.post("/v1/models/switch", summary="Let the next model answer")
    async def switch() -> dict[str, Any]:
        return await service.begin(swap.switch)

    @routes.post("/v1/models/rollback", summary="Let the model before answer again")
    async def rollback() -> dict[str, Any]:
        return await service.begin(swap.roll_back)

    return routes


def _about(served: Served) -> dict[str, Any]:
    catalogue = served.catalogue
    return {
        "model": served.name,
        "domain": catalogue.bundle.manifest["domain"],
        "catalex": catalex.__version__,
        "items": len(catalogue),
        "revision": catalogue.revision,
        "levels": list(catalogue.vocabulary.space.sizes),
        "new_items": (catalogue.bundle.folder / "tokenizer").is_dir(),
        "categories": sorted(islice(catalogue.categories(), MOST)),
        "attributes": sorted(islice(catalogue.attribute_counts(), 20)),
    }


def _identifier_health(served: Served) -> dict[str, Any]:
    """Counted over the live catalogue. ``perplexity`` is the exponential of the entropy of a level's use."""
    items, counts, groups = served.neighbourhood.usage()
    sizes = served.catalogue.vocabulary.space.sizes
    levels = []
    for level in counts:
        shares = level[level > 0] / max(level.sum(), 1)
        levels.append(
            {
                "size": len(level),
                "used": int((level > 0).sum()),
                "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
                "counts": level.tolist(),
            }
        )
    depths = [
        {
            "depth": depth,
            "prefixes": len(group),
            "items_per_prefix": items / max(len(group), 1),
            "largest": int(group.max(initial=0)),
        }
        for depth, group in enumerate(groups, 1)
    ]
    first = len(read_parquet(served.catalogue.bundle.folder / c.ITEMS_FILE, [c.ITEM_ID]))
    added = int(served.catalogue.allowed(Selection())[first:].sum())
    room = items / float(np.prod(np.array(sizes, float)))
    return {"items": items, "added": added, "room": room, "levels": levels, "depths": depths}

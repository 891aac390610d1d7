"""Routes of the live catalogue: search, look, add, change, remove."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response

from catalex.serving import wire
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import LONGEST_KEY, NewItem
from catalex.serving.pictures import picture
from catalex.serving.problem import ProblemError
from catalex.serving.routes_answers import known, levels
from catalex.serving.service import Service

KeyInPath = Annotated[str, Path(min_length=1, max_length=LONGEST_KEY, description="The item's id.")]
KeyInQuery = Annotated[str, Query(min_length=1, max_length=LONGEST_KEY, description="The item's id.")]

KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"RIFF": "image/webp"}
"""Media types by the first bytes. Nothing else is given out, so that no stored file is run by a browser."""


def item_routes(service: Service) -> APIRouter:
    """The routes of one service."""
    routes = APIRouter(tags=["items"])
    o = service.options

    @routes.get("/v1/items", summary="Items whose title or id has all words")
    async def search_items(
        search: Annotated[str, Query(max_length=200, description="Words; none for the first items.")] = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 20,
    ) -> wire.Items:
        with service.using() as served:
            catalogue = served.catalogue
            found = await service.read(lambda: catalogue.search(search, limit))
            return wire.Items.of(found, catalogue.revision)

    @routes.post(
        "/v1/items", status_code=201, summary="Add items, all or none; they can be recommended at once"
    )
    async def add_items(request: wire.AddRequest) -> wire.Items:
        if len(request.items) > o.max_items:
            raise ProblemError(
                413, f"items: {len(request.items)} items are too many; allowed: {o.max_items}."
            )

        def read() -> list[NewItem]:
            return [
                one.new(picture(one.image, max_bytes=o.max_image_bytes, max_pixels=o.max_image_pixels))
                for one in request.items
            ]

        new = await service.read(read)
        return await service.write(lambda c: wire.Items.of(c.add(new), c.revision))

    @routes.get("/v1/items/{key:path}", summary="An item")
    async def get_item(key: KeyInPath) -> wire.WholeItem:
        with service.using() as served:
            item = known(served, key)
            found: wire.WholeItem = wire.WholeItem.of(item, text=item.text)
            return found

    @routes.patch("/v1/items/{key:path}", summary="Change title, categories, stock or attributes")
    async def update_item(key: KeyInPath, request: wire.UpdateRequest) -> wire.WholeItem:
        item = await service.write(
            lambda c: c.update(
                key,
                title=request.title,
                categories=request.categories,
                in_stock=request.in_stock,
                attributes=request.attributes,
            )
        )
        found: wire.WholeItem = wire.WholeItem.of(item, text=item.text)
        return found

    @routes.delete("/v1/items/{key:path}", summary="Remove an item; histories may go on naming it")
    async def remove_item(key: KeyInPath) -> wire.Removed:
        def work(catalogue: LiveCatalogue) -> wire.Removed:
            removed = catalogue.remove(key)
            return wire.Removed(removed=removed, revision=catalogue.revision)

        return await service.write(work)

    @routes.get("/v1/path", summary="An item's identifier as a path in the code tree, and who is beside it")
    async def path(key: KeyInQuery) -> wire.Path:
        with service.using() as served:
            item = known(served, key)
            found = await service.read(lambda: levels(served.neighbourhood.path(item.identifier)))
            return wire.Path(item=wire.WholeItem.of(item, text=item.text), levels=found)

    @routes.get(
        "/v1/picture",
        summary="An item's picture",
        response_class=Response,
        responses={200: {"content": {kind: {} for kind in sorted(KINDS.values())}}},
    )
    async def get_picture(key: KeyInQuery) -> Response:
        with service.using() as served:
            known(served, key)
            data = await service.read(lambda: served.catalogue.image(key))
        kind = next((kind for head, kind in KINDS.items() if data and data.startswith(head)), None)
        if data is None or kind is None:
            raise ProblemError(404, "The item has no picture.")
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    return routes

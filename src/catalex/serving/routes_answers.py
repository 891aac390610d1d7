"""Routes that answer from the model: recommend, similar, tokenize."""

from __future__ import annotations

import asyncio
import math

from fastapi import APIRouter

from catalex.serving import wire
from catalex.serving.items import Item, NewItem, UnknownItemError
from catalex.serving.nearest import Beside
from catalex.serving.pictures import picture
from catalex.serving.problem import ProblemError
from catalex.serving.service import Answer, Served, Service


def answer_routes(service: Service) -> APIRouter:
    """The routes of one service."""
    routes = APIRouter(tags=["answers"])
    o = service.options

    def check(request: wire.RecommendRequest) -> None:
        if len(request.history) > o.max_history:
            raise ProblemError(
                422, f"history: {len(request.history)} items are too many; allowed: {o.max_history}."
            )
        _check_k(request.k, o.max_k)

    async def answer(served: Served, request: wire.RecommendRequest) -> wire.Recommendations:
        revision = served.catalogue.revision
        found = await service.recommend(
            served,
            [one if isinstance(one, str) else NewItem("", text=one.text) for one in request.history],
            request.k,
            excluded=request.exclude,
            selection=request.filter.selection(),
            explain=request.explain,
        )
        return wire.Recommendations(
            items=[_recommended(one) for one in found], model=served.name, revision=revision
        )

    @routes.post("/v1/recommend", summary="The next items after a history")
    async def recommend(request: wire.RecommendRequest) -> wire.Recommendations:
        check(request)
        with service.using() as served:
            return await answer(served, request)

    @routes.post("/v1/recommend/batch", summary="The next items after each of several histories")
    async def recommend_batch(batch: wire.BatchRequest) -> wire.Batch:
        if len(batch.requests) > o.max_items:
            raise ProblemError(
                413, f"requests: {len(batch.requests)} requests are too many; allowed: {o.max_items}."
            )
        for request in batch.requests:
            check(request)
        with service.using() as served:
            answers = await asyncio.gather(*(answer(served, request) for request in batch.requests))
            return wire.Batch(answers=list(answers))

    @routes.post("/v1/similar", summary="The items nearest to an item or a text, by content")
    async def similar(request: wire.SimilarRequest) -> wire.Similar:
        with service.using() as served:
            selection = request.filter.selection()
            if request.item is not None:
                item = known(served, request.item)
                found = await service.read(lambda: served.neighbourhood.of_item(item, request.k, selection))
            else:
                text = request.text or ""
                found = await service.read(
                    lambda: served.neighbourhood.of_content(text, None, request.k, selection)
                )
            return wire.Similar(items=near(found), revision=served.catalogue.revision)

    @routes.post("/v1/tokenize", summary="The identifier that a content would get; nothing is stored")
    async def tokenize(request: wire.TokenizeRequest) -> wire.Tokenized:
        with service.using() as served:

            def work() -> wire.Tokenized:
                image = picture(request.image, max_bytes=o.max_image_bytes, max_pixels=o.max_image_pixels)
                text = request.text or ""
                identifier = served.catalogue.tokenize(text, image)
                nearest = served.neighbourhood.of_content(text, image, request.k, wire.Filter().selection())
                return wire.Tokenized(
                    identifier=list(identifier),
                    levels=levels(served.neighbourhood.path(identifier)),
                    nearest=near(nearest),
                    revision=served.catalogue.revision,
                )

            return await service.read(work)

    return routes


def known(served: Served, key: str) -> Item:
    """The item of a key.

    Raises:
        UnknownItemError: When there is none.
    """
    item = served.catalogue.get(key)
    if item is None:
        shown = key if len(key) <= 80 else key[:77] + "..."
        raise UnknownItemError(f"the catalogue has no item {shown!r}.")
    return item


def near(found: list[tuple[Item, float]]) -> list[wire.Near]:
    """Items with their cosines, as they are told."""
    return [wire.Near.of(item, cosine=cosine) for item, cosine in found]


def levels(path: list[Beside]) -> list[wire.Level]:
    """A path, as it is told."""
    return [
        wire.Level(
            code=depth.code,
            size=depth.size,
            items=depth.items,
            used=depth.used,
            neighbours=[wire.ItemOut.of(item) for item in depth.neighbours],
        )
        for depth in path
    ]


def _recommended(answer: Answer) -> wire.Recommended:
    path = None
    if answer.steps is not None:
        pairs = zip(answer.item.identifier, answer.steps, strict=True)
        path = [wire.Step(code=code, probability=math.exp(step)) for code, step in pairs]
    found: wire.Recommended = wire.Recommended.of(
        answer.item,
        newcomer=answer.newcomer,
        score=answer.score,
        probability=math.exp(answer.score),
        path=path,
    )
    return found


def _check_k(k: int, largest: int) -> None:
    if k > largest:
        raise ProblemError(422, f"k: the list is too long (found {k}; allowed: 1 to {largest}).")

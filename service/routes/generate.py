"""POST /generate, /generate/hashtags, /generate/category: for a text that need not be stored."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from model.note import Wanted
from service.dependencies import GENERATED_HASHTAGS, ServiceDep, StrictJsonRoute, bounded_note, while_connected
from service.problems import documented
from service.schemas import (
    CategoryIn,
    CategoryOut,
    CategoryPrediction,
    GenerateOut,
    HashtagOut,
    HashtagsIn,
    HashtagsOut,
    TaggedText,
    UsageOut,
)

router = APIRouter(
    tags=["generate"],
    route_class=StrictJsonRoute,
    dependencies=[Depends(bounded_note)],
    responses=documented(400, 413, 422, 429, 503, 504),
)


@router.post("/generate/hashtags")
async def hashtags(body: HashtagsIn, request: Request, service: ServiceDep) -> HashtagsOut:
    """Hashtags for a text, best first; an empty list says why."""
    work = service.recommender.read(body.as_note(), Wanted(hashtags=body.count))
    return HashtagsOut.of(await while_connected(request, service, work), service.recommender.engine.name)


@router.post("/generate/category")
async def category(body: CategoryIn, request: Request, service: ServiceDep) -> CategoryPrediction:
    """The category of a text out of a closed set, with the exact probability of each."""
    categories = tuple(dict.fromkeys(body.categories)) or service.recommender.engine.categories
    work = service.recommender.read(body.as_note(), Wanted(categories=categories))
    return CategoryPrediction.of(await while_connected(request, service, work), service.recommender.engine.name)


@router.post("/generate")
async def everything(body: TaggedText, request: Request, service: ServiceDep) -> GenerateOut:
    """Vector, hashtags and category of one text, from one prefill."""
    engine = service.recommender.engine
    work = service.recommender.read(body.as_note(), Wanted(GENERATED_HASHTAGS, engine.categories))
    reading = await while_connected(request, service, work)
    return GenerateOut(
        embedding=reading.vector.tolist(),
        hashtags=[HashtagOut.of(h) for h in reading.hashtags or ()],
        reason=reading.hashtags_reason,
        category=CategoryOut.of((reading.categories or ())[0]),
        model=engine.name,
        usage=UsageOut.of(reading.usage),
    )

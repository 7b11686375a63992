"""FastAPI dependencies: parameters that handlers share.

All are coroutines, though they wait for nothing: FastAPI would run each plain function in a thread.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Header, Request

from service.adding import Generate
from service.container import Service
from service.errors import FieldError, InvalidInput
from service.recommender import Recommender

GENERATED_HASHTAGS = 5
"""Hashtags that are generated for `?generate=hashtags`, which has no count."""


async def get_service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def get_recommender(request: Request) -> Recommender:
    return (await get_service(request)).recommender


async def get_generate(generate: str = "") -> Generate:
    """Parse `?generate=hashtags,category`."""
    names = {part.strip() for part in generate.split(",")} - {""}
    if unknown := names - {"hashtags", "category"}:
        raise InvalidInput([FieldError("/query/generate", f"knows hashtags and category, not {sorted(unknown)}")])
    return Generate(GENERATED_HASHTAGS if "hashtags" in names else 0, "category" in names)


async def get_if_match(
    if_match: Annotated[str | None, Header(description='"<log_position>", or *')] = None,
) -> str | None:
    """Log position that the note must be at; None for any."""
    return None if if_match is None or if_match.strip() == "*" else if_match.strip().removeprefix("W/").strip('"')


ServiceDep = Annotated[Service, Depends(get_service)]
RecommenderDep = Annotated[Recommender, Depends(get_recommender)]
GenerateDep = Annotated[Generate, Depends(get_generate)]
IfMatch = Annotated[str | None, Depends(get_if_match)]

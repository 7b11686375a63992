"""GET /openapi.json: the API for programs; GET /docs: the API for people, shown by Swagger UI, whose files come from a
Python package, so that the page needs no internet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Header, HTTPException, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse

from service.api.access import open_to_all
from service.api.bodies import JSON, SLICE_BYTES
from service.api.strict_route import StrictRoute

router = APIRouter(include_in_schema=False, route_class=StrictRoute)
STATIC = Path(str(files("fastapi_standalone_docs"))) / "static"
ASSETS = {
    "swagger-ui-bundle.js": (STATIC / "swagger" / "swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": (STATIC / "swagger" / "swagger-ui.css", "text/css"),
    "favicon.png": (STATIC / "fastapi" / "favicon.png", "image/png"),
}
ASSETS_ETAG = f'"{version("fastapi-standalone-docs")}"'
"""ETag of each file: it changes only with the package."""


@router.get("/")
@open_to_all()
async def root() -> RedirectResponse:
    """Redirect people to the documentation."""
    return RedirectResponse("/docs", 307)


@router.get("/openapi.json")
@open_to_all()
async def openapi(request: Request) -> Response:
    """Return the API's description. It is rendered in a thread, for the first request, and the bytes are kept:
    rendering takes a fifth of a second, and anyone may ask for it without a key."""
    state = request.app.state
    if state.openapi_json is None:
        state.openapi_json = await asyncio.to_thread(render, request.app)
    return Response(state.openapi_json, media_type=JSON)


def render(app: FastAPI) -> bytes:
    """Return the API's description as bytes of JSON."""
    return bytes(JSONResponse(app.openapi()).body)


@router.get("/docs")
@open_to_all()
async def docs(request: Request) -> HTMLResponse:
    """Return the page. Its URLs are relative, so that it also works behind a path prefix."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title=request.app.title,
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
        swagger_ui_parameters={"validatorUrl": None},
    )


@router.get("/docs/{asset}")
@open_to_all()
async def docs_asset(asset: str, if_none_match: Annotated[str, Header()] = "") -> Response:
    """Return a file of the page, sent in pieces, so that only one piece waits for a slow caller. Browsers keep the
    file, and ask each time whether their copy is current."""
    if asset not in ASSETS:
        raise HTTPException(404)
    headers = {"ETag": ASSETS_ETAG, "Cache-Control": "no-cache", "Accept-Ranges": "none"}
    known = {etag.strip().removeprefix("W/") for etag in if_none_match.split(",")}
    if not known.isdisjoint((ASSETS_ETAG, "*")):
        return Response(status_code=304, headers=headers)
    content, (_, media_type) = read_asset(asset), ASSETS[asset]
    headers["Content-Length"] = str(len(content))
    return StreamingResponse(pieces(content), headers=headers, media_type=media_type)


@cache
def read_asset(asset: str) -> bytes:
    """Return the content of a file of the page. It is kept, 1.8 MB for all: a file that is open until a slow caller has
    its end would let callers without a key use up the process's file descriptors."""
    return ASSETS[asset][0].read_bytes()


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """Yield the content in pieces of SLICE_BYTES."""
    for start in range(0, len(content), SLICE_BYTES):
        yield content[start : start + SLICE_BYTES]

"""POST /v1/embeddings: the model's vectors, for clients of OpenAI's API."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.access.principal import Scope
from service.admission import Urgency
from service.api.access import needs, spends_tokens
from service.api.connection import while_connected
from service.api.dependencies import RequestedUrgencyDep, ServiceDep
from service.api.openai_route import OpenAIRoute
from service.api.problems import documented
from service.api.schemas.embeddings import EmbeddingsIn, EmbeddingsOut
from service.errors import FieldError, InvalidInput
from service.interfaces import Engine

router = APIRouter(tags=["generate"], route_class=OpenAIRoute)


@router.post(
    "/v1/embeddings",
    summary="Embed texts, in the form of OpenAI's API",
    responses=documented(400, 413, 415, 422, 429, 503, 504),
)
@needs(Scope.GENERATE)
@spends_tokens
async def embeddings(
    body: EmbeddingsIn, request: Request, service: ServiceDep, requested: RequestedUrgencyDep
) -> EmbeddingsOut:
    """Embed texts, in the form of OpenAI's API. The texts are not stored; their vectors can be compared with those of
    stored notes."""
    check_model(body, service.engine)
    urgency: Urgency = (
        requested.for_note(service.settings) if len(body.input) == 1 else requested.for_list(service.settings)
    )
    outputs = await while_connected(request, urgency, service.generator.embed(body.as_notes(), urgency))
    return EmbeddingsOut.of(outputs, service.engine.name, body.encoding_format)


def check_model(body: EmbeddingsIn, engine: Engine) -> None:
    """Refuse a model other than the one that serves, and a vector length other than its own. Raises InvalidInput."""
    errors = []
    if body.model != engine.name:
        errors.append(FieldError("/model", f"must be {engine.name!r}, the serving model"))
    if body.dimensions not in (None, engine.dimension):
        problem = f"must be {engine.dimension} or omitted: shortened vectors could not be compared with stored ones"
        errors.append(FieldError("/dimensions", problem))
    if errors:
        raise InvalidInput(errors)

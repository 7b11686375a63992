"""The body of every error: application/problem+json (RFC 9457)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FieldProblem(BaseModel):
    pointer: str = Field(description="JSON pointer: /title in the body, /query/k in the query")
    detail: str


class Problem(BaseModel):
    """RFC 9457. `detail` says what the caller can do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = Field(None, description="the request's id")
    errors: list[FieldProblem] | None = None

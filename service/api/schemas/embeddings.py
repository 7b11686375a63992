"""POST /v1/embeddings: vectors of texts, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from model.generation import GenerationOutput
from model.note import Note, is_blank
from service.api.schemas.collection import VectorForm, encode_vector
from service.api.schemas.common import ModelName, Wire

MAX_EMBEDDED = 256
"""Bound on the texts of one request, published at GET /limits."""


def _as_texts(value: Any) -> Any:
    """Return a text as a list of one. Refuse tokens, as other services take them."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int | float | list):
        raise PydanticCustomError("tokens", "must be a text or a list of texts: lists of tokens are not supported")
    return [value] if isinstance(value, str) else value


def _check_not_blank(text: str) -> str:
    if is_blank(text):
        raise PydanticCustomError("empty", "must not be empty")
    return text


InputText = Annotated[str, AfterValidator(_check_not_blank)]


class EmbeddingsIn(Wire):
    """Texts to embed. Each is read as the content of a note without a title."""

    input: Annotated[
        list[InputText],
        Field(
            min_length=1,
            max_length=MAX_EMBEDDED,
            description="a text, or a list of texts; none may be blank",
            examples=["Three days in Kyoto on a small budget"],
        ),
        BeforeValidator(_as_texts, json_schema_input_type=str | list[str]),
    ]
    model: Annotated[str, StringConstraints(max_length=256)] = Field(
        description="name of the serving model; any other name is refused"
    )
    encoding_format: VectorForm = Field(
        "float",
        description="float: numbers; base64: little-endian 32-bit floats, a quarter of the bytes",
    )
    dimensions: int | None = Field(
        None, ge=1, description="must equal the length of the model's vectors, which cannot be shortened"
    )
    user: Annotated[str, StringConstraints(max_length=256)] | None = Field(None, description="accepted and ignored")

    def as_notes(self) -> list[Note]:
        return [Note(content=text) for text in self.input]


class EmbeddingOut(BaseModel):
    """Vector of one text."""

    object: Literal["embedding"] = Field("embedding", description="constant, as in OpenAI's API")
    index: int = Field(description="index of the text in `input`, starting at 0")
    embedding: list[float] | str = Field(description="vector of unit length, in the form of `encoding_format`")
    truncated: bool = Field(
        False,
        description="true if the text is longer than the model reads; omitted otherwise",
        exclude_if=lambda truncated: not truncated,
    )


class EmbeddingsUsage(BaseModel):
    """Tokens of all texts together."""

    prompt_tokens: int = Field(description="tokens that the model read")
    total_tokens: int = Field(description="same as `prompt_tokens`, since nothing is generated")


class EmbeddingsOut(BaseModel):
    """Vectors of texts, in the form of OpenAI's API."""

    object: Literal["list"] = Field("list", description="constant, as in OpenAI's API")
    data: list[EmbeddingOut] = Field(description="one vector for each text, in request order")
    model: ModelName
    usage: EmbeddingsUsage

    @classmethod
    def of(cls, outputs: Sequence[GenerationOutput], model: str, form: VectorForm) -> Self:
        data = [
            EmbeddingOut(index=index, embedding=encode_vector(output.vector, form), truncated=output.truncated)
            for index, output in enumerate(outputs)
        ]
        tokens = sum(output.usage.prompt_tokens for output in outputs)
        return cls(data=data, model=model, usage=EmbeddingsUsage(prompt_tokens=tokens, total_tokens=tokens))

"""Request bodies: which media types are taken, and JSON that is read without holding the event loop for long.

A parser holds the interpreter until it is done, in a thread as well. So a list is taken apart into its items before any
of it is parsed, and what is parsed at once is bounded: in bytes by its caller, in containers here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import orjson
from starlette.datastructures import Headers

from service.errors import FieldError, InvalidInput, MalformedBody, UnsupportedMediaType

JSON = "application/json"
NDJSON = "application/x-ndjson"
MAX_CONTAINERS = 64
"""Bound on lists and objects of one JSON value, itself included, and so on its depth. A note has three. Half a megabyte
of empty lists takes a parser a fifth of a second, and nesting that a parser reads a writer may refuse."""
SLICE_BYTES = 65_536
"""Bytes of a body that are worked on before other requests get their turn: about a millisecond."""
LIST_START = re.compile(rb"[ \t\n\r]*+\[")
STRING = re.compile(rb'"[^"]*+"')
"""In JSON without escapes."""
QUOTE, COMMA = b'",'
STEPS = np.zeros(256, np.int8)
"""How much deeper each character leads outside of a string."""
STEPS[list(b"[{")] = 1
STEPS[list(b"]}")] = -1


class Turns:
    """Lets the event loop run once after each SLICE_BYTES of work."""

    def __init__(self) -> None:
        self._left = SLICE_BYTES

    async def work(self, size: int) -> None:
        """Count `size` bytes as worked on."""
        self._left -= size
        if self._left <= 0:
            self._left = SLICE_BYTES
            await self.give()

    async def give(self) -> None:
        await asyncio.sleep(0)


def media_type(headers: Headers) -> str:
    """The body's media type without its parameters, in lower case; "" where none is given."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media_type(headers: Headers, *others: str) -> None:
    """Refuse a body that is neither JSON nor one of `others`, or is packed. Raises UnsupportedMediaType; MalformedBody
    where no type is given: a web page may send such a body to any address without asking the service first."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType("Content-Encoding", encoding, "identity")
    given = media_type(headers)
    if not given:
        raise MalformedBody(f"send it with Content-Type: {JSON}")
    is_json = given == JSON or (given.startswith("application/") and given.endswith("+json"))
    if not is_json and given not in others:
        raise UnsupportedMediaType("Content-Type", given, ", ".join((JSON, *others)))


def parse_json(raw: bytes, pointer: str = "") -> Any:
    """Strict JSON: UTF-8, no NaN, no lone surrogates. Raises MalformedBody, and InvalidInput at `pointer`."""
    check_containers(raw, pointer)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(str(error)) from error


def check_containers(raw: bytes, pointer: str = "") -> None:
    """Refuse JSON of more than MAX_CONTAINERS lists and objects, before it is parsed. Raises InvalidInput."""
    # Brackets in strings are none; they are looked for only where there are many.
    if _brackets(raw) > MAX_CONTAINERS and _brackets(STRING.sub(b"", _unescaped(raw))) > MAX_CONTAINERS:
        raise InvalidInput([FieldError(pointer, f"must not hold more than {MAX_CONTAINERS} lists and objects")])


def _brackets(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


def _unescaped(raw: bytes) -> bytes:
    """The same length, with no backslash before a quotation mark but one that escapes what is behind `raw`."""
    return raw.replace(b"\\\\", b"__").replace(b'\\"', b"__")


def is_list(body: bytes) -> bool:
    """Whether it begins as a JSON list does."""
    return LIST_START.match(body) is not None


async def list_items(body: bytes, turns: Turns) -> AsyncGenerator[bytes]:
    """The items of a JSON list, as they were sent and not parsed: an item may still be malformed. Raises MalformedBody
    where the list itself is.

    The body is read in slices by array operations, whose time depends on the slice's length and on nothing else.
    """
    begin = LIST_START.match(body)
    if begin is None:
        raise MalformedBody("it is no list")
    at = item = begin.end()
    depth, quoted = 1, False
    while at < len(body):
        window = _unescaped(body[at : at + SLICE_BYTES])
        if len(window) > 1 and window.endswith(b"\\"):  # it belongs to the character behind it
            window = window[:-1]
        characters = np.frombuffer(window, np.uint8)
        inside = np.logical_xor.accumulate(characters == QUOTE) ^ quoted
        depths = depth + np.cumsum(np.where(inside, 0, STEPS[characters]), dtype=np.int32)
        closing = np.flatnonzero(depths == 0)
        end = int(closing[0]) if closing.size else len(window)
        commas = np.flatnonzero((characters[:end] == COMMA) & ~inside[:end] & (depths[:end] == 1))
        for comma in (at + commas).tolist():
            yield body[item:comma]
            item = comma + 1
        if closing.size:
            last = body[item : at + end]
            if item > begin.end() or last.strip():
                yield last
            if body[at + end + 1 :].strip():
                raise MalformedBody("more follows the list")
            return
        at, depth, quoted = at + len(window), int(depths[-1]), bool(inside[-1])
        await turns.work(len(window))
    raise MalformedBody("the list has no end")

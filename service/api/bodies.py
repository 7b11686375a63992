"""Request bodies: their media types, and JSON parsing that does not hold the event loop for long.

A parser holds the GIL until it is done, even in a thread. So a list is split into its items before any is parsed, and
the JSON parsed by one call is bounded: its bytes by the caller, its lists and objects here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
import orjson
from starlette.datastructures import Headers

from service.errors import FieldError, InvalidInput, LimitExceeded, MalformedBody, UnsupportedMediaType

T = TypeVar("T")
JSON = "application/json"
NDJSON = "application/x-ndjson"
PATCH_TYPES = frozenset({"application/merge-patch+json", "application/json-patch+json"})
"""Media types of patch formats (RFC 7396, RFC 6902) whose rules PATCH does not follow: it takes application/json."""
MAX_CONTAINERS = 64
"""Bound on the lists and objects of one JSON value, including itself, and thus on its depth. A note has three.

The parser takes a fifth of a second for half a megabyte of empty lists, and deep nesting can be parsed but not
serialised."""
MAX_SEARCH_CONTAINERS = 600
"""Bound on the lists and objects of a search: its examples, each with hashtags, boosts, and nested filters."""
SLICE_BYTES = 65_536
"""Bytes of a body that are processed between two checks of TimeSlices: at most a millisecond of work."""
SLICE_SECONDS = 0.001
"""Time that a request may work before the event loop runs other tasks."""
LIST_START = re.compile(rb"[ \t\n\r]*+\[")
STRING = re.compile(rb'"[^"]*+"')
"""A JSON string, in text processed by `_unescaped`."""
QUOTE, COMMA, CLOSING_BRACKET = b'",]'
DEPTH_CHANGE = np.zeros(256, np.int8)
"""Change in nesting depth at each byte outside of a string."""
DEPTH_CHANGE[list(b"[{")] = 1
DEPTH_CHANGE[list(b"]}")] = -1


class TimeSlices:
    """Lets the event loop run other tasks after each SLICE_SECONDS of a request's work.

    It measures time and does not count items or bytes: on a Zen 3 a note with twenty unknown fields takes a
    millisecond, a valid one 0.07.
    """

    def __init__(self) -> None:
        self._ends = time.perf_counter() + SLICE_SECONDS

    async def check(self) -> None:
        """Let other tasks run if this time slice has lasted SLICE_SECONDS. Call it after each item, or each slice of a
        body."""
        if time.perf_counter() >= self._ends:
            await asyncio.sleep(0)
            self._ends = time.perf_counter() + SLICE_SECONDS


def one_list_or_stream(schema: str, noun: str) -> dict[str, Any]:
    """Return the OpenAPI request body for one object of a schema, a JSON list of them, or NDJSON. `noun`: what one
    object is called."""
    one = {"$ref": f"#/components/schemas/{schema}"}
    description = f"list of {noun}s; an invalid {noun} gets a problem as its result"
    many = {"type": "array", "description": description, "items": one}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"anyOf": [one, many]}},
            **lines(f"one {noun} per line"),
        },
    }


def lines(description: str) -> dict[str, Any]:
    """Return the OpenAPI `content` of an NDJSON body. `description`: what its lines are."""
    return {NDJSON: {"schema": {"type": "string", "description": description}}}


def has_body(headers: Headers) -> bool:
    """Return whether a request with these headers has a body that is not empty, as far as they say."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def media_type(headers: Headers) -> str:
    """Return the body's media type without parameters, in lower case; "" where the header is missing."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media_type(headers: Headers, *others: str) -> None:
    """Refuse a body that is compressed, or neither JSON nor one of `others`. Raises UnsupportedMediaType, also for a
    body without a type: browsers let any web page send one without a preflight."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType("Content-Encoding", encoding, "identity")
    body_type = media_type(headers)
    is_json = body_type == JSON or (body_type.startswith("application/") and body_type.endswith("+json"))
    if body_type in PATCH_TYPES or (not is_json and body_type not in others):
        raise UnsupportedMediaType("Content-Type", body_type, ", ".join((JSON, *others)))


def parse_json(raw: bytes, pointer: str = "", max_containers: int = MAX_CONTAINERS) -> Any:
    """Parse strict JSON: UTF-8, no NaN, no lone surrogates. Raises MalformedBody, and InvalidInput at `pointer`."""
    check_not_empty(raw)
    check_containers(raw, pointer, max_containers)
    check_members(raw)
    try:
        return load_json(raw)
    except json.JSONDecodeError as error:
        raise MalformedBody(str(error)) from error


def check_members(raw: bytes) -> None:
    """Raise MalformedBody for an object that has two members with one name, of which all but the last would be ignored.
    A body that is no JSON passes."""
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(raw, object_pairs_hook=_refuse_repeated, parse_int=float)  # int() refuses long numbers


def _refuse_repeated(members: list[tuple[str, Any]]) -> None:
    counts = Counter(name for name, _ in members)
    if len(counts) < len(members):
        name = counts.most_common(1)[0][0]
        raise MalformedBody(f"the member {name[:40]!r} is given twice in one object")


def load_json(raw: bytes) -> Any:
    """Parse JSON as orjson does, but raise JSONDecodeError at the byte that is not UTF-8, where orjson names the first
    one."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError("not valid UTF-8", "", error.start) from error
        raise


def check_not_empty(raw: bytes) -> None:
    """Raise MalformedBody for a body that is empty or only white space."""
    if not raw or raw.isspace():
        raise MalformedBody("it is empty")


def check_containers(raw: bytes, pointer: str = "", max_containers: int = MAX_CONTAINERS) -> None:
    """Refuse JSON of more than `max_containers` lists and objects, before it is parsed. Raises InvalidInput."""
    # Brackets within strings do not count. Strings are removed only where the cheap count is too high.
    if _brackets(raw) > max_containers and _brackets(STRING.sub(b"", _unescaped(raw))) > max_containers:
        raise InvalidInput([FieldError(pointer, f"must not contain more than {max_containers} lists and objects")])


async def body_lines(body: bytes, slices: TimeSlices) -> AsyncGenerator[bytes]:
    """Yield the lines of a body that are not blank."""
    begin = 0
    while begin < len(body):
        end = body.find(b"\n", begin + SLICE_BYTES - 1)
        end = len(body) if end < 0 else end
        for line in body[begin:end].split(b"\n"):
            if line.strip():
                yield line
        await slices.check()
        begin = end + 1


def _brackets(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


def _unescaped(raw: bytes) -> bytes:
    """Replace escaped backslashes and quotation marks, keeping the length, so that each remaining quotation mark begins
    or ends a string. A backslash at the end may still escape the character after `raw`."""
    return raw.replace(b"\\\\", b"__").replace(b'\\"', b"__")


def is_list(body: bytes) -> bool:
    """Return whether a body begins like a JSON list."""
    return LIST_START.match(body) is not None


async def read_list(
    body: bytes,
    slices: TimeSlices,
    limit: tuple[str, int],
    read: Callable[[bytes, str], T],
    reject: Callable[[MalformedBody], T],
) -> list[T]:
    """Return the results of `read` for the items of a JSON list, each called with the item's bytes and its JSON
    pointer.

    `limit`: name and number of the bound on items. `reject`: makes the result of an item for which `read` raises
    MalformedBody, if the bytes are certainly one item. Raises LimitExceeded, what list_items raises, and MalformedBody
    if the body cannot be split into items with certainty.
    """
    results: list[T] = []
    async with aclosing(_bounded_items(body, slices, limit)) as items:
        async for raw in items:
            try:
                results.append(read(raw, f"/{len(results)}"))
            except MalformedBody as error:
                if not _is_whole_value(raw):
                    raise MalformedBody(f"item {len(results)} of the list: {error.detail}") from error
                results.append(reject(error))
            await slices.check()
    return results


async def count_list(body: bytes, slices: TimeSlices, limit: tuple[str, int]) -> int:
    """Return the number of items of a JSON list, without parsing them. Raises LimitExceeded, and what list_items
    raises."""
    async with aclosing(_bounded_items(body, slices, limit)) as items:
        return len([None async for _ in items])


async def _bounded_items(body: bytes, slices: TimeSlices, limit: tuple[str, int]) -> AsyncGenerator[bytes]:
    """Yield the items of list_items up to the bound. Raises LimitExceeded if there are more."""
    name, max_items = limit
    count = 0
    async with aclosing(list_items(body, slices)) as items:
        async for raw in items:
            if count == max_items:
                raise LimitExceeded(name, max_items)
            count += 1
            yield raw


def _is_whole_value(raw: bytes) -> bool:
    """Return whether a text is one JSON value, apart from the content of its strings and numbers: invalid UTF-8, lone
    surrogates, control characters, NaN, numbers beyond a float. If not, a quotation mark, comma or bracket may be
    missing or extra, so that the text may be several items of a list."""
    try:
        # int() refuses long numbers, float() takes any.
        json.loads(raw.decode(errors="replace"), strict=False, parse_int=float)
    except ValueError:
        return False
    return True


async def list_items(body: bytes, slices: TimeSlices) -> AsyncGenerator[bytes]:
    """Yield the items of a JSON list as sent, without parsing them: an item may still be malformed.

    Raises MalformedBody for a body that is empty, has no end, or continues after it, and InvalidInput for one that is
    not a list.

    The body is scanned in slices by array operations, so that the time for a slice depends only on its length.
    """
    opening = LIST_START.match(body)
    if opening is None:
        check_not_empty(body)
        raise InvalidInput([FieldError("", "must be a list")])
    window_begin = item_begin = opening.end()
    depth, quoted = 1, False
    while window_begin < len(body):
        window = _unescaped(body[window_begin : window_begin + SLICE_BYTES])
        if len(window) > 1 and window.endswith(b"\\"):  # it escapes the first character of the next slice
            window = window[:-1]
        characters = np.frombuffer(window, np.uint8)
        inside = np.logical_xor.accumulate(characters == QUOTE) ^ quoted
        depths = depth + np.cumsum(np.where(inside, 0, DEPTH_CHANGE[characters]), dtype=np.int32)
        closing = np.flatnonzero(depths == 0)
        end = int(closing[0]) if closing.size else len(window)
        commas = np.flatnonzero((characters[:end] == COMMA) & ~inside[:end] & (depths[:end] == 1))
        for comma in (window_begin + commas).tolist():
            yield body[item_begin:comma]
            item_begin = comma + 1
        if closing.size:
            if characters[end] != CLOSING_BRACKET:
                raise MalformedBody("the list must end with ]")
            last = body[item_begin : window_begin + end]
            if item_begin > opening.end() or last.strip():
                yield last
            if body[window_begin + end + 1 :].strip():
                raise MalformedBody("there is more after the end of the list")
            return
        window_begin += len(window)
        depth, quoted = int(depths[-1]), bool(inside[-1])
        await slices.check()
    raise MalformedBody("the end of the list is missing")

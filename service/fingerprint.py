"""Fingerprints of requests, the same in every process: a cursor is matched by them to the list that it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import orjson

MIN_JSON_INTEGER, MAX_JSON_INTEGER = -(2**63), 2**64 - 1
"""Range of the integers that orjson writes; a bound of a filter may lie outside."""


def fingerprint(value: Any, size: int = 16) -> str:
    """Return a digest of `size` bytes, in hexadecimal digits: the same in every process, and different for different
    values. A value consists of dataclasses, tuples, frozensets of strings, and JSON types."""
    return hashlib.blake2b(orjson.dumps(_canonical(value)), digest_size=size).hexdigest()


def _canonical(value: Any) -> Any:
    """Return JSON that is equal for equal values only: dataclasses become lists with their type's name, sets are
    sorted."""
    if is_dataclass(value):
        return [type(value).__name__, *(_canonical(getattr(value, field.name)) for field in fields(value))]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return list(map(_canonical, value))
    if isinstance(value, int) and not MIN_JSON_INTEGER <= value <= MAX_JSON_INTEGER:
        return ["int", str(value)]
    return dict(value) if isinstance(value, Mapping) else value

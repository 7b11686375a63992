"""Fingerprints of requests: pages of one list are recognised by them, in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import orjson

MIN_JSON_INTEGER, MAX_JSON_INTEGER = -(2**63), 2**64 - 1
"""Integers that orjson writes; a bound of a filter may be any."""


def fingerprint(value: Any, size: int = 16) -> str:
    """Return a digest of a value, `size` bytes in hexadecimal digits: the same in every process, and equal for equal
    values only. A value consists of dataclasses, tuples, frozensets of strings, and what JSON has."""
    return hashlib.blake2b(orjson.dumps(_canonical(value)), digest_size=size).hexdigest()


def _canonical(value: Any) -> Any:
    """Return a value as JSON that is equal for equal values only: objects with their types, sets in a fixed order."""
    if is_dataclass(value):
        return [type(value).__name__, *(_canonical(getattr(value, field.name)) for field in fields(value))]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return list(map(_canonical, value))
    if isinstance(value, int) and not MIN_JSON_INTEGER <= value <= MAX_JSON_INTEGER:
        return ["int", str(value)]
    return dict(value) if isinstance(value, Mapping) else value

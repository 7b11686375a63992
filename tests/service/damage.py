"""Ways to damage a note in the store so that it cannot be decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import redis

from service.store.redis_keys import NOTE

Damage = Callable[[redis.Redis, str], object]
SECRET = "temples before eight"
"""Text of the damaged notes, which no log line and no problem may contain."""


def changed(**fields: Any) -> Damage:
    """Change fields of the document; a field whose value is `...` is removed."""

    def damage(admin: redis.Redis, note_id: str) -> None:
        document = json.loads(admin.hget(NOTE + note_id, "document")) | fields
        kept = {name: value for name, value in document.items() if value is not ...}
        admin.hset(NOTE + note_id, "document", json.dumps(kept))

    return damage


def field(name: str, value: bytes | str) -> Damage:
    """Overwrite a field of the hash."""
    return lambda admin, note_id: admin.hset(NOTE + note_id, name, value)


def lost(name: str) -> Damage:
    """Remove a field of the hash."""
    return lambda admin, note_id: admin.hdel(NOTE + note_id, name)


def other_type(admin: redis.Redis, note_id: str) -> None:
    """Replace the hash by a string."""
    admin.set(NOTE + note_id, SECRET)


GENERATED = {"hashtags": None, "category": None}
DAMAGES: dict[str, Damage] = {
    "title missing": changed(title=...),
    "generated missing": changed(generated=...),
    "generated without category": changed(generated={"hashtags": None}),
    "newer version": changed(version=2),
    "version a text": changed(version="1"),
    "hashtags a text": changed(hashtags="kyoto"),
    "hashtags of numbers": changed(hashtags=[1]),
    "title a number": changed(title=7),
    "created_at a bool": changed(created_at=True),
    "expires_at a text": changed(expires_at="tomorrow"),
    "created_at of no calendar": changed(created_at=1e300),
    "attributes a list": changed(attributes=[SECRET]),
    "attribute an object": changed(attributes={"a": {}}),
    "generated hashtags of texts": changed(generated=GENERATED | {"hashtags": [SECRET]}),
    "generated hashtags a number": changed(generated=GENERATED | {"hashtags": 3}),
    "generated category without name": changed(generated=GENERATED | {"category": {"probability": 0.5}}),
    "generated category a text": changed(generated=GENERATED | {"category": SECRET}),
    "not JSON": field("document", f'{{"title": "{SECRET}"'),
    "not UTF-8": field("document", b'{"title": "\xff"}'),
    "document a list": field("document", "[]"),
    "document empty": field("document", ""),
    "document gone": lost("document"),
    "space not UTF-8": field("space", b"\xff\xfe"),
    "space gone": lost("space"),
    "vector of another length": field("vector", b"\0" * 12),
    "vector of half numbers": field("vector", b"\0" * 7),
    "vector empty": field("vector", ""),
    "vector gone": lost("vector"),
    "revision a word": field("revision", "first"),
    "revision too large": field("revision", "9" * 400),
    "revision gone": lost("revision"),
    "position a word": field("position", "here"),
    "position gone": lost("position"),
    "not a hash": other_type,
}

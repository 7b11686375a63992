"""The notes in a data set, counted by the prefix of their keys, with their log positions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from service.records import ORIGIN
from service.store.backup.manifest import NotesEntry
from service.store.redis_keys import TENANT_PATTERN

PREFIX = rb"(\{[^}]*\}:" + TENANT_PATTERN + rb")"
"""Prefix of the keys of one tenant, with any hash tag: another version of the service may use another one."""
NOTE_KEY = re.compile(PREFIX + b"note:")
LOG_KEY = re.compile(PREFIX + b"log")
IDENTITY_KEY = re.compile(PREFIX + b"identity")
BOOKKEEPING = b"snapshots|purged|purging|purge:(?:compression|cut|failed|failing|canary:[0-9a-f]+)"
BOOKKEEPING_KEY = re.compile(PREFIX + b"(" + BOOKKEEPING + b")")
"""Keys of a note, of a change log, of the identity of a store, and of what the replicas and purges of one server keep
there: their snapshots, and which purges they have made."""
SCANNED_KEYS = 1000
"""Keys that one SCAN looks at."""
NO_EXPIRY = -1


def notes_of(client: Any) -> tuple[NotesEntry, ...]:
    """Return the notes of a database, counted by prefix."""
    spaces: defaultdict[str, Counter[str]] = defaultdict(Counter)
    expiring: Counter[str] = Counter()
    positions: dict[str, str] = {}
    for keys in pages(client):
        for key in keys:
            if match := LOG_KEY.fullmatch(key):
                last = client.xinfo_stream(key)["last-generated-id"]
                positions[match[1].decode()] = last.decode() if isinstance(last, bytes) else last
        notes = [(key, match[1].decode()) for key in keys if (match := NOTE_KEY.match(key))]
        pipeline = client.pipeline(transaction=False)
        for key, _ in notes:
            pipeline.hget(key, "space").pttl(key)
        answers = pipeline.execute(raise_on_error=False)  # a damaged note may be of another type
        for (_, prefix), space, left in zip(notes, answers[::2], answers[1::2], strict=True):
            spaces[prefix][space.decode(errors="replace") if isinstance(space, bytes) else ""] += 1
            expiring[prefix] += left != NO_EXPIRY
    return tuple(
        NotesEntry(
            prefix=prefix,
            position=positions.get(prefix, ORIGIN),
            notes=spaces[prefix].total(),
            expiring=expiring[prefix],
            spaces=dict(sorted(spaces[prefix].items())),
        )
        for prefix in sorted(positions.keys() | spaces.keys())
    )


def pages(client: Any) -> Iterator[list[bytes]]:
    """Yield the keys of a database that nobody changes, page by page, each once: SCAN may repeat a key."""
    cursor: int | None = None
    seen: set[bytes] = set()
    while cursor != 0:
        cursor, keys = client.scan(cursor or 0, count=SCANNED_KEYS)
        yield [key for key in dict.fromkeys(keys) if key not in seen]
        seen.update(keys)

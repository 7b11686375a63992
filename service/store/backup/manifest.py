"""Manifest of a backup: what it contains, the time of the data, and the digests of its files.

A backup is valid only with its manifest, which is written last. The manifest has a digest of its own, so that one that
was truncated or changed is refused.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

FORMAT = 1
"""Version of manifest and files: raise it when older versions of this service could not restore them."""
MANIFEST = "manifest.json"
DATABASES = 16
"""Default number of databases of a server."""


class BackupError(RuntimeError):
    """A backup cannot be made or restored; the message says why, and what to do."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEntry(_Record):
    """A file of the backup. `sha256` is hexadecimal."""

    name: str
    size: int
    sha256: str


class NotesEntry(_Record):
    """The notes under one key prefix, as they were at the log position `position`.

    `notes` counts all of them, `expiring` those that have a time of expiry: fewer of these may be left when they are
    restored. `spaces` counts notes by vector space, of which each model has its own.
    """

    prefix: str
    position: str
    notes: int
    expiring: int
    spaces: dict[str, int]


class Manifest(_Record):
    """Contents of a backup. `version` is that of the service, `server` the name and version of the Redis server,
    `database` the number of the database that holds the notes, `databases` how many the server has, as far as it tells;
    `created_at` is the time of the data."""

    format: int
    version: str
    server: str
    created_at: datetime
    database: int
    databases: int = DATABASES
    notes: tuple[NotesEntry, ...]
    files: tuple[FileEntry, ...]

    def encode(self) -> bytes:
        """Return the manifest as JSON, with its digest."""
        body = self.model_dump(mode="json")
        return orjson.dumps({"body": body, "sha256": _digest_of(body)}, option=orjson.OPT_INDENT_2)

    @classmethod
    def decode(cls, content: bytes) -> Manifest:
        """Read a manifest. Raises BackupError where it is damaged, or of a newer format."""
        try:
            document = orjson.loads(content)
            body, digest = dict(document["body"]), document["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise BackupError("the manifest of the backup cannot be read: it was truncated or changed") from error
        if digest != _digest_of(body):
            raise BackupError("the manifest of the backup is damaged: its digest differs")
        if type(format_ := body.get("format")) is int and format_ > FORMAT:
            raise BackupError(
                f"the backup has format {format_}, but this version reads formats up to {FORMAT}: upgrade first"
            )
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise BackupError(f"the manifest of the backup is not valid for this service: {error}") from error


def _digest_of(body: Any) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()

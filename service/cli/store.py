"""The store that the settings name, for commands that need no running service."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from service.cli.terminal import err
from service.settings import Settings
from service.store.embedded_redis import FILES, EmbeddedRedisError


@contextlib.contextmanager
def store_url(settings: Settings, *, existing: bool = False) -> Iterator[str]:
    """Yield the URL of the store. The embedded server is started if no service runs it, and ends with the command; if a
    service has joined it meanwhile, a message says that the service starts it again. Raises EmbeddedRedisError for a
    data folder of another user and, with `existing`, for one without a store: a new, empty one would be backed up, or
    purged, in its place.
    """
    if settings.redis_url:
        yield settings.redis_url.get_secret_value()
        return
    from service.store.embedded_redis import EmbeddedRedis
    from service.store.known_position import is_in_use

    _refuse_other_user(settings.data_dir)
    if existing and not (settings.data_dir / FILES).is_dir():
        raise EmbeddedRedisError(
            f"there is no store in {settings.data_dir}: run the command as the user of the service, or with its "
            "NOTELLM_DATA_DIR"
        )
    server = EmbeddedRedis(settings.data_dir, max_memory=settings.store_memory_bytes)
    try:
        server.start()
        yield server.url
    finally:
        joined = server.pid is not None and is_in_use(settings.data_dir)
        server.stop()
        if joined:
            err.print(
                "A service started using the store while this command ran. The store's server stops with this command; "
                "the service restarts it, and returns 503 to requests that need it until its data is loaded.",
                soft_wrap=True,
            )


def _refuse_other_user(folder: Path) -> None:
    """Raise EmbeddedRedisError where the store in `folder` has another owner than the files of this process, as with
    root: the service could not read what this process or its server writes there. Raises OSError."""
    if not (folder / FILES).is_dir():
        return
    with tempfile.TemporaryFile(dir=folder) as file:  # some file systems give files another owner than their process
        owner, own = (folder / FILES).stat().st_uid, os.fstat(file.fileno()).st_uid
    if owner != own:
        raise EmbeddedRedisError(
            f"the store in {folder} belongs to user {owner}: run the command as that user, not as user {own}"
        )


def describe_store(settings: Settings) -> str:
    """Return where the store is: its folder, or its URL without user, password and options, and the database there."""
    if not settings.redis_url:
        return str(settings.data_dir)
    from service.store.clients import database_of

    address = settings.redis_url.get_secret_value()
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}, database {database_of(address)}"

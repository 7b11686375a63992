"""The store of the settings, for commands that need no running service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

from service.settings import Settings


@contextlib.contextmanager
def store_url(settings: Settings) -> Iterator[str]:
    """Yield the address of the store; the embedded server is started where no service runs it."""
    if settings.redis_url:
        yield settings.redis_url.get_secret_value()
        return
    from service.store.embedded_redis import EmbeddedRedis

    server = EmbeddedRedis(settings.data_dir, max_memory=settings.store_memory_bytes)
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


def describe_store(settings: Settings) -> str:
    """Say where the store is: its folder, or its URL without user, password and options, and the database there."""
    if not settings.redis_url:
        return str(settings.data_dir)
    from service.store.clients import database_of

    address = settings.redis_url.get_secret_value()
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}, database {database_of(address)}"

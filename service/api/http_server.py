"""HTTP server of a process: uvicorn's configuration with this service's protocol, and the bound on open files."""

from __future__ import annotations

import resource
import ssl

from fastapi import FastAPI

from service.api.connection_bounds import FILES_OF_TENANT, IDLE_SECONDS, MAX_CONNECTIONS, SPARE_FILES
from service.api.protocol import BoundedProtocol, HttpConfig


def http_config(app: FastAPI, shutdown_seconds: int, tls: ssl.SSLContext | None = None) -> HttpConfig:
    """Return uvicorn's configuration. `tls`: for HTTPS. WebSockets are off: an upgrade is ignored, as HTTP allows."""
    config = HttpConfig(
        app,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=shutdown_seconds,
    )
    config.early = app.state.early
    config.admin_port = app.state.admin_port
    config.refused = app.state.telemetry.refused_connections
    config.ended = app.state.telemetry.ended_connections
    return config


def allow_open_files(max_tenants: int, readers: int, *, is_reader_process: bool = False) -> None:
    """Raise this process's limit on open files as far as it may, and bound the connections by the room that it leaves.
    A reader process gets an equal share of the room: a request that it forwards opens a second file in this process,
    and one in the process with the model, whose limit is the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare, processes = SPARE_FILES + FILES_OF_TENANT * max_tenants, 1 + readers
    needed = BoundedProtocol.needed_files = MAX_CONNECTIONS * processes + spare
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    room = MAX_CONNECTIONS
    if soft != resource.RLIM_INFINITY:
        room = min(MAX_CONNECTIONS, (soft - spare) // (processes if is_reader_process else 1))
    BoundedProtocol.max_connections = max(1, room)

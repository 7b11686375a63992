"""Address of a service: its URL, and the sockets that listen there."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Address at which a client reaches a service that listens on all addresses."""

BACKLOG = 2048
"""Connections that may wait to be accepted: uvicorn's default."""


class AddressUnavailable(Exception):
    """Nothing can listen at this address; the message names the settings to change."""


def http_url(host: str, port: int, tls: bool) -> str:
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def local_url(host: str, port: int, tls: bool) -> str:
    """Return the URL by which this machine reaches a service that listens on `host`."""
    return http_url(LOOPBACK.get(host, host), port, tls)


def listen(host: str, port: int, setting: str = "NOTELLM_PORT", *, shared: bool = False) -> list[socket.socket]:
    """Open the sockets that the service will use: connections wait from now on. Raises AddressUnavailable, which names
    the port's `setting`.

    A host with several addresses gets a socket for each, all on one port. `shared`: bind_shared may bind the same port.
    """
    if shared:  # tried without sharing first: below, a port shared by another service is no error
        free = _open(host, port, setting)
        port = free[0].getsockname()[1]
        close_all(free)
    return _open(host, port, setting, shared=shared)


def bind_shared(host: str, port: int) -> list[socket.socket]:
    """Bind sockets like `listen`, on a port that another process shares. The system spreads connections over all
    listening sockets of the port; these do not listen yet. Raises AddressUnavailable."""
    return _open(host, port, shared=True, listening=False)


def _open(
    host: str, port: int, setting: str = "NOTELLM_PORT", *, shared: bool = False, listening: bool = True
) -> list[socket.socket]:
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise AddressUnavailable(f"NOTELLM_HOST is {host!r}; it must be an address of this machine") from error
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        try:
            listener = _bind(family, kind, protocol, (address[0], port, *address[2:]), shared, listening)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressUnavailable(
                    f"{setting} is {port}, but another process already listens on this port of {host}; "
                    "it must be a free port, or 0 for any free one"
                ) from error
            failure = error  # one of several addresses, for example ::1 of localhost, may not exist here
        else:
            listeners.append(listener)
            port = listeners[0].getsockname()[1]  # the free port chosen for 0
    if failure and not listeners:
        raise AddressUnavailable(
            f"NOTELLM_HOST is {host!r} and {setting} {port}; they must be an address and a port that this "
            f"process may listen on: {failure.strerror}"
        ) from failure
    return listeners


def close_all(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach a listener."""
    return ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _bind(
    family: int, kind: int, protocol: int, address: tuple[object, ...], shared: bool, listening: bool
) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        if listening:
            bound.listen(BACKLOG)
        bound.set_inheritable(False)
    except OSError:
        bound.close()
        raise
    return bound

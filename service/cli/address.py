"""The address of a service: its URL, and whether a process can listen there."""

from __future__ import annotations

import errno
import socket

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a client reaches a service that listens on all addresses."""


class AddressUnavailable(Exception):
    """Nothing can listen at this address; the message names the settings to change."""


def http_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def local_url(host: str, port: int) -> str:
    """URL by which this machine reaches a service that listens on `host`."""
    return http_url(LOOPBACK.get(host, host), port)


def check_available(host: str, port: int) -> None:
    """Try to listen where the service will, as asyncio does. Raises AddressUnavailable."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise AddressUnavailable(f"NOTELLM_HOST is {host!r}; it must be an address of this machine") from error
    for family, kind, protocol, _, address in addresses:
        try:
            _bind(family, kind, protocol, address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressUnavailable(
                    f"NOTELLM_PORT is {port}, on which another process of {host} listens; it must be a free port, "
                    "or 0 for any free one"
                ) from error
            if len(addresses) == 1:  # of several, for example ::1 of localhost, one may not exist here
                raise AddressUnavailable(
                    f"NOTELLM_HOST is {host!r} and NOTELLM_PORT {port}; they must be an address and a port that this "
                    f"process may listen on: {error.strerror}"
                ) from error


def _bind(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> None:
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)

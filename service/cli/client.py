"""HTTP requests of the commands to a running service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.request import getproxies

import httpx2
import orjson
import typer

from service.cli.address import local_url
from service.cli.terminal import FAILED, complain, read_settings

VISIBLE = re.compile("[!-~]+")
"""Matches what an Authorization header can hold."""
TIMEOUT_SECONDS = 120.0
"""Bound on an answer; the service itself ends a request after NOTELLM_REQUEST_SECONDS."""
DIRECT = {f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")}
"""Names of this machine. They are reached without a proxy, even if the environment names one, as Docker may do in every
container."""


def default_url() -> str:
    """Return the URL of the service that `notellm serve` would start with the same settings."""
    settings = read_settings()
    return local_url(settings.host, settings.port, tls=settings.tls_certificate is not None)


def default_admin_url() -> str:
    """Return the URL of the admin port of the service that `notellm serve` would start; of its only port if it has
    none."""
    settings = read_settings()
    return local_url(settings.host, settings.admin_port or settings.port, tls=settings.tls_certificate is not None)


def checked_url(url: str) -> str:
    """Return a URL without trailing slashes, since paths are appended to it. One that no request can be sent to ends
    the command, as does a proxy of the environment that httpx2 cannot use."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise typer.BadParameter(str(error)) from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise typer.BadParameter("must begin with http:// or https://, and name a host")
    for scheme, proxy in getproxies().items():
        if scheme in ("http", "https", "all") and proxy.startswith("socks"):
            variable = f"{scheme.upper()}_PROXY"
            raise typer.BadParameter(f"{variable} names a SOCKS proxy: unset it, or name one that speaks HTTP")
    return url.rstrip("/")


def checked_key(key: str | None) -> str | None:
    """Return an API key without the white space around it, such as the line end of a file. One that no header can hold
    ends the command, without being shown."""
    key = key and key.strip()
    if key and not VISIBLE.fullmatch(key):
        raise typer.BadParameter("is not an API key: it has spaces, or characters that are not ASCII")
    return key or None


Url = Annotated[
    str,
    typer.Option(
        envvar="NOTELLM_URL",
        callback=checked_url,
        default_factory=default_url,
        show_default="from NOTELLM_HOST and NOTELLM_PORT",
        help="URL of the service.",
    ),
]
AdminUrl = Annotated[
    str,
    typer.Option(
        envvar="NOTELLM_URL",
        callback=checked_url,
        default_factory=default_admin_url,
        show_default="from NOTELLM_HOST and NOTELLM_ADMIN_PORT, or NOTELLM_PORT",
        help="URL of the service; with its admin port if it has one.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="NOTELLM_API_KEY",
        callback=checked_key,
        show_default=False,
        help="API key, if the service requires one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the response as JSON.")]


def bearer(key: str | None) -> dict[str, str]:
    """Return the headers of a request with an API key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def explain(answer: Any, status: int, separator: str = "\n  ") -> str:
    """Return the text of a problem: its detail, then each of its field errors after a separator. An answer that is not
    a problem, such as a proxy's, is described by its status."""
    if not isinstance(answer, dict) or "detail" not in answer:
        return f"The response with status {status} is not from a NoteLLM service."
    errors = [f"{error['pointer']}: {error['detail']}" for error in answer.get("errors") or ()]
    return separator.join([str(answer["detail"]), *errors])


def explain_body(body: bytes, status: int) -> str:
    """Return what `explain` does for a body that may not be JSON, such as a proxy's error page."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    return explain(answer, status)


def open_client(url: str, headers: Mapping[str, str], timeout: float = TIMEOUT_SECONDS) -> httpx2.Client:
    """Return a client of a service, which sends `headers` with each request."""
    return httpx2.Client(base_url=url, headers=headers, timeout=timeout, mounts=DIRECT)


def call(
    url: str,
    method: str,
    path: str,
    *,
    key: str | None,
    params: Any = None,
    body: Any = None,
    accept: tuple[int, ...] = (200,),
    timeout: float = TIMEOUT_SECONDS,
) -> Any:
    """Return the JSON of an answer; None for an empty one. A problem, or no answer, ends the command with its
    detail."""
    try:
        with open_client(url, bearer(key), timeout) as client:
            response = client.request(method, path, params=params, json=body)
        answer: Any = response.json() if response.content else None
    except (httpx2.HTTPError, ValueError) as error:
        complain(f"{url} does not respond like a NoteLLM service: {error}")
        raise typer.Exit(FAILED) from error
    if response.status_code not in accept:
        complain(explain(answer, response.status_code))
        raise typer.Exit(FAILED)
    return answer

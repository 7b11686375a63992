"""`notellm keys`: the API keys of a running service. It needs a key with the scope keys.manage."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.table import Column

from service.access.principal import Scope
from service.cli.client import AdminUrl, AsJson, Key, call
from service.cli.terminal import out, show

PREFIX = re.compile("[A-Za-z0-9]+")
app = typer.Typer(no_args_is_help=True, help="Manage the API keys of a running service.")


def prefix_of_key(prefix: str) -> str:
    """Return the prefix of a key. A whole key ends the command, since its secret must not be in a URL, as does anything
    that would make another path of it."""
    if prefix.startswith("nlm_"):
        raise typer.BadParameter("is a whole key: give its prefix alone, the part between nlm_ and the secret")
    if not PREFIX.fullmatch(prefix):
        raise typer.BadParameter("is no prefix of a key: it has letters and digits alone")
    return prefix


Prefix = Annotated[
    str, typer.Argument(callback=prefix_of_key, help="Prefix of the key: the part between nlm_ and the secret.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key, to tell what it is used for.")],
    *,
    scope: Annotated[list[Scope], typer.Option(help="Scope of the key; may be repeated.")],
    tenant: Annotated[str | None, typer.Option(help="Tenant of the key; by default that of your own key.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until the key expires; never by default.")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Maximum requests per minute; unlimited by default.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Maximum model tokens per minute; unlimited by default.")
    ] = None,
    url: AdminUrl,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it. It cannot be displayed again."""
    try:
        expires_at = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    except (ValueError, OverflowError) as error:  # nan, or a year after 9999
        raise typer.BadParameter("no date is that many days from now", param_hint="--days") from error
    quota = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    body = {"name": name, "scopes": scope, "tenant": tenant, "expires_at": expires_at, "quota": quota}
    show_new(call(url, "POST", "/keys", key=api_key, body=body, accept=(201,)), as_json)


@app.command("list")
def list_keys(*, url: AdminUrl, api_key: Key = None, as_json: AsJson = False) -> None:
    """List the keys, without their secrets."""
    answer = call(url, "GET", "/keys", key=api_key)
    columns = (Column("prefix", no_wrap=True), "name", "tenant", "scopes", "created (UTC)", "expires", "last used")
    times = ("created_at", "expires_at", "last_used_at")
    rows = [
        (key["prefix"], key["name"], key["tenant"], " ".join(key["scopes"]), *(shown_time(key[time]) for time in times))
        for key in answer["keys"]
    ]
    show(answer, as_json, columns, rows)


@app.command()
def rotate(
    prefix: Prefix,
    *,
    overlap: Annotated[float, typer.Option(min=0, help="Seconds for which the old secret remains valid.")] = 3600,
    url: AdminUrl,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Replace the secret of a key and print the new key. It cannot be displayed again."""
    body = {"overlap_seconds": overlap}
    show_new(call(url, "POST", f"/keys/{prefix}/rotate", key=api_key, body=body), as_json)


@app.command()
def revoke(prefix: Prefix, *, url: AdminUrl, api_key: Key = None) -> None:
    """Revoke a key permanently."""
    call(url, "DELETE", f"/keys/{prefix}", key=api_key, accept=(204,))


def show_new(answer: Any, as_json: bool) -> None:
    """Write a new secret on a line of its own, so that a script can read it."""
    if as_json:
        show(answer, as_json, (), ())
    else:
        out.print(answer["key"], highlight=False, markup=False, soft_wrap=True)


def shown_time(time: str | None) -> str:
    """Return day and minute of a time of the API, in UTC as there."""
    return "never" if time is None else time[:16].replace("T", " ")

"""Load scenarios, which are the files of deploy/load, and the clients that run one against a service.

A file has the number of clients, the length of the load, and the requests by kind. In a path `{id}` stands for the id
of a stored note, in a body `{text}` for a note's text.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx2

from benchmarks import ROOT

FOLDER = ROOT / "deploy" / "load"
TIMEOUT = 75.0
"""Seconds that a client waits for an answer: more than the longest deadline of a request."""


@dataclass(frozen=True, slots=True)
class Request:
    """One kind of request. `rate`: requests per second, sent at random times. `times_possible`: the rate as a multiple
    of what the service can take. With neither, a client sends the next request once it has the answer to the last."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    rate: float | None = None
    times_possible: float | None = None

    def filled(self, text: str, note_id: str) -> tuple[str, Any]:
        """Return the path and the body for a note's text and a stored note's id."""
        body = self.body and {key: text if value == "{text}" else value for key, value in self.body.items()}
        return self.path.replace("{id}", note_id), body


@dataclass(frozen=True, slots=True)
class Scenario:
    """The requests of a load and its clients. `rounds`: requests of each kind by each client. `seconds`: length of a
    load without rounds. `patience`: seconds after which a client gives up on an answer."""

    clients: int
    requests: Mapping[str, Request]
    rounds: int | None = None
    seconds: float | None = None
    patience: float = TIMEOUT

    @classmethod
    def load(cls, name: str) -> Self:
        """Read a scenario by the name of its file. Raises TypeError for an unknown field."""
        fields = tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))
        requests = {kind: Request(**request) for kind, request in fields.pop("requests").items()}
        return cls(requests=requests, **fields)


class Load:
    """The clients of a scenario. They send `texts` and ask for the note ids in `stored`, each in turn.

    `seconds`: how long each request of the last `run` took, by kind.
    """

    def __init__(self, url: str, scenario: Scenario, texts: Sequence[str], stored: Sequence[str]) -> None:
        limits = httpx2.Limits(max_connections=scenario.clients)
        key = os.environ.get("NOTELLM_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else None
        self.client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=scenario.patience, limits=limits)
        self.scenario = scenario
        self.texts = texts
        self.stored = stored
        self.seconds: dict[str, list[float]] = {}

    async def run(self, kinds: Sequence[str]) -> float:
        """Run every client and return the seconds until all are done. Clients send the kinds of requests in turn, each
        beginning with another. Raises httpx2.HTTPStatusError for a status of 400 or more."""
        self.seconds = defaultdict(list)
        started = time.perf_counter()
        until = started + (self.scenario.seconds or float("inf"))
        await asyncio.gather(*(self._run_client(number, kinds, until) for number in range(self.scenario.clients)))
        return time.perf_counter() - started

    async def _run_client(self, number: int, kinds: Sequence[str], until: float) -> None:
        rounds = self.scenario.rounds
        turns = itertools.count() if rounds is None else range(rounds * len(kinds))
        # With rounds, clients begin at different texts; kinds with a body share one sequence, so neighbours overlap.
        texts = itertools.count(number * rounds if rounds else number)
        for turn in turns:
            if time.perf_counter() >= until:
                break
            kind = kinds[(turn + number) % len(kinds)]
            text = next(texts) if self.scenario.requests[kind].body else 0
            await self._send(kind, self.texts[text % len(self.texts)], self.stored[(number + turn) % len(self.stored)])

    async def _send(self, kind: str, text: str, note_id: str) -> None:
        request = self.scenario.requests[kind]
        path, body = request.filled(text, note_id)
        started = time.perf_counter()
        answer = await self.client.request(request.method, path, json=body)
        answer.raise_for_status()
        self.seconds[kind].append(time.perf_counter() - started)

"""Admission to the engine's queue: how soon a caller needs its answer, and how long it would have to wait.

The queue is measured in seconds. A caller that would wait for longer than it can is refused at once, with the time
after which it should come again; work that nobody waits for any more never reaches the model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from model.generation import GenerationRequest
from service.access.principal import DEFAULT_TENANT

FIRST_ESTIMATE = 0.05
"""Engine seconds of a note before one was measured: about one of 100 tokens on two cores (docs/benchmarks.md)."""
NEW_WEIGHT = 0.2
"""Weight of the newest note in the running mean of engine seconds: ten notes replace what was known before them."""
WAITING_SHARE = 0.5
"""Share of a caller's time that its notes may wait. The rest is for the engine, the store and the estimate's error."""


class Lane(StrEnum):
    """Priority of a note in the model's queue: `interactive`, for requests that a person waits for, goes before `bulk`,
    for lists and streams."""

    INTERACTIVE = "interactive"
    BULK = "bulk"

    def goes_before(self, other: Lane) -> bool:
        """Return whether notes of this lane begin before notes of `other` that were queued later; among bulk notes, and
        among interactive ones, the earlier begin first."""
        return self is Lane.INTERACTIVE or other is Lane.BULK


@dataclass(frozen=True, slots=True)
class Urgency:
    """How soon a caller needs its answer: its lane, and the seconds that it waits from `since` on, by the clock of
    time.monotonic."""

    lane: Lane = Lane.INTERACTIVE
    seconds: float = math.inf
    since: float = 0.0

    @property
    def deadline(self) -> float:
        return self.since + self.seconds


PATIENT = Urgency()
"""Urgency of a caller with nothing else to do."""
IN_BACKGROUND = Urgency(Lane.BULK)
"""Urgency of work that nobody waits for."""


@dataclass(slots=True, eq=False)
class Admission:
    """Permission to queue `left` more notes of one request of a tenant, at most `places` of them at a time. `request`:
    what is asked of each, which decides the engine's time."""

    lane: Lane
    request: GenerationRequest
    left: int
    places: int
    tenant: str = DEFAULT_TENANT

    @property
    def reserved(self) -> int:
        """Places in the queue that its notes take, now or later."""
        return min(self.left, self.places)


class EngineSeconds:
    """Running means of the engine's seconds for one note, by its lane and what is requested of it: what is loaded in
    bulk is often three times as long as a text that is searched for.

    Notes that share a step of the engine take equal shares of its time, so that the seconds of all notes add up to the
    time for which the engine was busy. A mean begins at FIRST_ESTIMATE and not at the first note measured, which often
    runs alone and takes twice its share of a batch.
    """

    def __init__(self) -> None:
        self._means: dict[tuple[Lane, bool, bool, bool], float] = {}

    def measure(self, lane: Lane, request: GenerationRequest, seconds: float) -> None:
        """Take in the time that one note took."""
        mean = self.expected(lane, request)
        self._means[_kind(lane, request)] = mean + NEW_WEIGHT * (seconds - mean)

    def expected(self, lane: Lane, request: GenerationRequest) -> float:
        """Return the seconds that one note is expected to take."""
        return self._means.get(_kind(lane, request), FIRST_ESTIMATE)

    def wait(self, admissions: Iterable[Admission], lane: Lane, tenant: str = DEFAULT_TENANT) -> float:
        """Return the seconds until a note of a tenant in `lane` begins after the notes of `admissions`.

        Tenants take turns in a lane: of each other tenant at most as many notes begin first as this one has waiting,
        and one more. What runs in the engine does not count: about as much will be running when the note begins.
        """
        total, own_notes = 0.0, 0
        others: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        """Notes and seconds of each other tenant in the same lane."""
        for admission in admissions:
            seconds = admission.left * self.expected(admission.lane, admission.request)
            if admission.lane is lane and admission.tenant != tenant:
                others[admission.tenant][0] += admission.left
                others[admission.tenant][1] += seconds
            elif admission.lane.goes_before(lane):
                total += seconds
                own_notes += admission.left if admission.lane is lane else 0
        return total + sum(seconds * min(1.0, (own_notes + 1) / max(1, notes)) for notes, seconds in others.values())


def _kind(lane: Lane, request: GenerationRequest) -> tuple[Lane, bool, bool, bool]:
    """Kind of a request, within which notes take about the same time."""
    return lane, bool(request.hashtags), bool(request.categories), request.all_categories

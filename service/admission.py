"""Admission to the engine's queue: load shedding by each caller's deadline and expected wait.

The queue is measured in seconds. A caller that would wait for longer than its deadline allows is refused at once, with
the seconds after which to retry; notes whose caller has left never reach the model.
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
"""Engine seconds assumed for the vector of a note before any was measured: about those of 100 tokens on two cores
(docs/benchmarks.md)."""
MIN_ESTIMATE = 1e-4
"""Minimum estimate: a mean that began at 0 could not rise (MAX_RISE)."""
HASHTAGS_WORK, CATEGORY_WORK = 1.5, 1.5
"""Engine seconds of five hashtags and of a category out of 20, relative to those of the vector: eight notes together
take 22 ms each for vectors, 52 ms with categories and 84 ms with both (docs/benchmarks.md)."""
ALONE_WORK = 2.0
"""Engine seconds of a note that runs alone, relative to its share of a batch."""
NEW_WEIGHT = 0.2
"""Weight of the newest note in the running mean of engine seconds: after ten notes, the earlier ones together weigh
about a tenth."""
MAX_RISE = 4.0
"""Maximum factor on the running mean that one note may count as. Without it, one note that takes a hundred times as
long, such as the first one with a large set of categories, would have the next ones refused. If all notes take that
long, the mean is at 60 times after ten of them, and at 96 times after twenty."""
WAITING_SHARE = 0.5
"""Share of a caller's time that its notes may spend in the queue. The rest is for the engine, the store and the error
of the estimate."""


class Lane(StrEnum):
    """Priority of a note in the model's queue: `interactive`, for requests that a person waits for, goes before `bulk`,
    for lists and streams."""

    INTERACTIVE = "interactive"
    BULK = "bulk"

    def goes_before(self, other: Lane) -> bool:
        """Return whether notes of this lane start before notes of `other` that were queued later; within a lane, notes
        start in the order in which they were queued."""
        return self is Lane.INTERACTIVE or other is Lane.BULK


@dataclass(frozen=True, slots=True)
class Urgency:
    """Priority and deadline of a caller: its lane, and the seconds that it waits from `since` on, by the clock of
    time.monotonic."""

    lane: Lane = Lane.INTERACTIVE
    seconds: float = math.inf
    since: float = 0.0

    @property
    def deadline(self) -> float:
        return self.since + self.seconds


PATIENT = Urgency()
"""Urgency of an interactive caller without a deadline."""
IN_BACKGROUND = Urgency(Lane.BULK)
"""Urgency of bulk work without a deadline."""


@dataclass(slots=True, eq=False)
class Admission:
    """Permission to queue `left` more notes of one request of a tenant, at most `places` of them at a time. `request`:
    what to generate for each note, which determines its engine time."""

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
    """Running means of the engine seconds of one note, by lane and kind of request: notes loaded in bulk are often
    three times as long as the text of a search.

    Notes that share an engine step get shares of its time by their tokens in it, so that the seconds of all notes add
    up to the time for which the engine was busy. A mean starts at an estimate rather than at the first measurement: the
    first note often runs alone, and takes ALONE_WORK times its share of a batch. `first`: estimate for a note's vector.
    """

    def __init__(self, first: float = FIRST_ESTIMATE) -> None:
        self._first = first
        self._means: dict[tuple[Lane, bool, bool, bool], float] = {}

    def measure(self, lane: Lane, request: GenerationRequest, seconds: float) -> None:
        """Update the mean with the seconds that one note took."""
        mean = self.expected(lane, request)
        self._means[_kind(lane, request)] = mean + NEW_WEIGHT * (min(seconds, MAX_RISE * mean) - mean)

    def expected(self, lane: Lane, request: GenerationRequest) -> float:
        """Return the seconds that one note is expected to take."""
        return self._means.get(_kind(lane, request), self._first * _work(request))

    def expected_wait(self, admissions: Iterable[Admission], lane: Lane, tenant: str = DEFAULT_TENANT) -> float:
        """Return the expected seconds until a new note of a tenant in `lane` starts, after the notes of `admissions`.

        Tenants take turns within a lane: of each other tenant, at most as many notes start first as this tenant has
        waiting, plus one. Notes already in the engine do not count: about as many will be there when the new note
        starts.
        """
        total, own_notes = 0.0, 0
        others: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        """Number of notes, and their seconds, of each other tenant in the same lane."""
        for admission in admissions:
            seconds = admission.left * self.expected(admission.lane, admission.request)
            if admission.lane is lane and admission.tenant != tenant:
                others[admission.tenant][0] += admission.left
                others[admission.tenant][1] += seconds
            elif admission.lane.goes_before(lane):
                total += seconds
                own_notes += admission.left if admission.lane is lane else 0
        return total + sum(seconds * min(1.0, (own_notes + 1) / max(1, notes)) for notes, seconds in others.values())


def first_estimate(alone: float, request: GenerationRequest) -> float:
    """Return the estimate for a note's vector, from the seconds that a note took which ran alone."""
    return max(MIN_ESTIMATE, alone / ALONE_WORK / _work(request))


def _work(request: GenerationRequest) -> float:
    """Return the expected engine seconds of a request, relative to those of the vector alone."""
    return 1.0 + HASHTAGS_WORK * bool(request.hashtags) + CATEGORY_WORK * bool(request.categories)


def _kind(lane: Lane, request: GenerationRequest) -> tuple[Lane, bool, bool, bool]:
    """Return the kind of a request; notes of one kind take about the same time."""
    return lane, bool(request.hashtags), bool(request.categories), request.all_categories

"""Scheduler: chooses which running requests share the next forward, so that a request can begin and end at any step
(continuous batching)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from model.inference.runtime import Runtime, Span
from model.inference.spans import SpanSteps

PREFILL_TOKENS_PER_STEP = 4096
"""Token budget of the short prefills of one engine step (`requests_of_next_forward`), besides all decode steps. On two
cores 4,096 tokens per step embed 10% faster than 1,024, and take 94 MiB more memory (decision 9)."""
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class RunningRequest(Generic[T]):
    """A request that has begun. `max_blocks`: maximum cache blocks that it may need. `spans`: its part of the next
    forward, empty while it waits for a label prior that another request computes."""

    steps: SpanSteps[T]
    max_blocks: int
    spans: list[Span] = field(default_factory=list)
    prompt_tokens: int = 0
    """Tokens of its prompts, tasks and candidates so far."""
    decoded_tokens: int = 0
    """Tokens of its decode steps so far, in all beams."""

    @property
    def tokens(self) -> int:
        """Number of tokens in its part of the next forward."""
        return sum(len(span.ids) for span in self.spans)

    def count_forward(self) -> None:
        """Count the tokens of its part of a forward, in which candidates may be scored beside the steps of beams."""
        decoded = sum(is_decode_step(span) for span in self.spans)
        self.decoded_tokens += decoded
        self.prompt_tokens += self.tokens - decoded

    @property
    def needs_no_prefill_budget(self) -> bool:
        """Whether its part of the next forward has at most one token per sequence, or none while it waits for the label
        prior of another request."""
        return all(len(span.ids) == 1 for span in self.spans)


class Scheduler(Generic[T]):
    """Runs requests of one runtime side by side, one forward at a time. Not thread-safe.

    An error in the computation of one request ends that request alone (`take_failed`). After any other error, such as
    one in a forward, no request is running and all of their cache blocks are free.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running: list[RunningRequest[T]] = []
        self._failed: list[tuple[RunningRequest[T], Exception]] = []

    @property
    def reserved_blocks(self) -> int:
        """Maximum cache blocks that all running requests may need."""
        return sum(running.max_blocks for running in self._running)

    def add(self, request: RunningRequest[T]) -> None:
        """Begin `request`: its first spans join the next step."""
        self._running.append(request)
        with self._abort_all_on_error(), self._fail_on_error(request):
            request.spans = next(request.steps)

    def abort(self, request: RunningRequest[T]) -> None:
        """Stop a running request and free its cache blocks."""
        request.steps.close()
        self._running.remove(request)

    def step(self) -> list[tuple[RunningRequest[T], T]]:
        """Run one forward; return the requests that finished with it, and their results."""
        with self._abort_all_on_error():
            finished = self._forward(requests_of_next_forward(self._running))
        for request, _ in finished:
            self._running.remove(request)
        return finished

    def take_failed(self) -> list[tuple[RunningRequest[T], Exception]]:
        """Return and forget the requests that have failed, with their errors."""
        failed, self._failed = self._failed, []
        return failed

    def run(self, requests: Sequence[RunningRequest[T]], max_blocks: int) -> list[T]:
        """Run `requests` to their end and return their results in order. Together they reserve at most `max_blocks`;
        a request that needs more runs alone. Raises the error of the first request that fails."""
        waiting = list(requests)[::-1]
        results: dict[RunningRequest[T], T] = {}
        while waiting or self._running:
            while waiting and (not self._running or self.reserved_blocks + waiting[-1].max_blocks <= max_blocks):
                self.add(waiting.pop())
            results |= dict(self.step())
            with self._abort_all_on_error():
                for _, error in self.take_failed():
                    raise error
        return [results[request] for request in requests]

    def _forward(self, requests: Sequence[RunningRequest[T]]) -> list[tuple[RunningRequest[T], T]]:
        """Run one forward of `requests`, hand each its outputs, and return those that finished."""
        spans = [span for request in requests for span in request.spans]
        outputs = self._runtime.forward(spans) if spans else []
        finished = []
        begin = 0
        for request in requests:
            end = begin + len(request.spans)
            request.count_forward()
            with self._fail_on_error(request):
                try:
                    request.spans = request.steps.send(outputs[begin:end])
                except StopIteration as stop:
                    finished.append((request, stop.value))
            begin = end
        return finished

    @contextmanager
    def _fail_on_error(self, request: RunningRequest[T]) -> Iterator[None]:
        """End one request with the error that its computation raises, which has freed its blocks."""
        try:
            yield
        except Exception as error:
            self._running.remove(request)
            self._failed.append((request, error))

    @contextmanager
    def _abort_all_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for request in list(self._running):
                self.abort(request)
            self._failed.clear()
            raise


def is_decode_step(span: Span) -> bool:
    """Return whether a span is the next token of a beam; a span with `parents` is a tree, of one candidate or more."""
    return len(span.ids) == 1 and span.parents is None


def requests_of_next_forward(running: Sequence[RunningRequest[T]]) -> list[RunningRequest[T]]:
    """Choose the requests of the next forward: all that decode, and prefills within PREFILL_TOKENS_PER_STEP.

    A prefill that no longer fits waits for a later forward; a shorter one behind it may go first. A prefill of more
    than half of the budget is long, as that of a checkpoint that reads thousands of tokens of a note can be. It is not
    counted against the budget, and a forward has at most one of them, so that short notes do not wait for it to end.
    """
    chosen = [request for request in running if request.needs_no_prefill_budget]
    prefill_tokens = 0
    has_long_prefill = False
    for request in running:
        if request.needs_no_prefill_budget:
            continue
        if 2 * request.tokens > PREFILL_TOKENS_PER_STEP:
            if not has_long_prefill:
                chosen.append(request)
            has_long_prefill = True
        elif prefill_tokens + request.tokens <= PREFILL_TOKENS_PER_STEP:
            prefill_tokens += request.tokens
            chosen.append(request)
    return chosen

"""QueuedNote: a note from its arrival in the batcher's queue to its answer, with the times of its stages."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.generation import GenerationOutput, GenerationRequest, Usage
from service.admission import Admission, Urgency
from service.interfaces import TokenizedRequest
from service.tracing import RequestStages, add_stage


@dataclass(slots=True, eq=False)
class QueuedNote:
    """A note in the queue or in the engine.

    `since`: when it was queued. `began`, `prefilled` and `ended`: when the engine started it, when it had its first
    token (or ended without one), and when it ended. `tokens`: those that the engine has computed for it, and `seconds`:
    its share of the engine's time, both up to the last step. `answer`: cancelled by a caller that leaves, after which
    the note is dropped. `stages`: those of the request that is charged for its tokens.
    """

    tokenized: TokenizedRequest
    request: GenerationRequest
    urgency: Urgency
    admission: Admission
    answer: asyncio.Future[GenerationOutput]
    since: float
    stages: RequestStages | None
    began: float = math.inf
    prefilled: float = math.inf
    ended: float = math.inf
    tokens: int = 0
    seconds: float = 0.0
    charged: Usage = field(default_factory=Usage)

    def charge(self, usage: Usage) -> None:
        """Charge the request for the tokens that this note has used so far, so that a caller that leaves pays for them
        too."""
        if self.stages:
            prompt = usage.prompt_tokens - self.charged.prompt_tokens
            self.stages.add_tokens(prompt, usage.generated_tokens - self.charged.generated_tokens)
        self.charged = usage

    def fail(self, error: Exception) -> None:
        """Answer the caller with an error, unless the note has its answer already."""
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # marks it as retrieved: a caller awaits only its first failure


def add_stages(notes: Sequence[QueuedNote], now: float) -> None:
    """Add to the request's stages how long its notes waited until the engine started the first of them, and how long
    the engine then took: the prefill until the last note has its first token, and the decode steps after that."""
    began = min(now, min(note.began for note in notes))
    failed = any(math.isinf(note.ended) for note in notes)
    add_stage("queue", "wait", notes[0].since, began, failed and began == now, notes=len(notes))
    if began < now:
        prefilled = min(now, max(note.prefilled for note in notes))
        ended = min(now, max(note.ended for note in notes))
        add_stage("engine", "prefill", began, prefilled, failed, notes=len(notes))
        if prefilled < ended:
            add_stage("engine", "decode", prefilled, ended, failed, notes=len(notes))

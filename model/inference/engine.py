"""Engine: notes in, vectors, hashtags and categories out.

`tokenize` turns a note and a GenerationRequest into token ids, `add_request` starts them, and each `step` runs one
forward: the decode steps of all running requests, and prefills within a token budget. One prefill gives a note's
vector, the probabilities of its categories and the first token of its hashtags; decode steps follow. Grounded hashtags,
large closed sets and a prompt version that puts the task first need further prefills. The engine works on tokens;
tensors are the runtime's. It is independent of HTTP and storage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.category_head import CategoryHead
from model.config import CheckpointError
from model.generation import VECTOR_ONLY, GenerationOutput, GenerationRequest, Usage, Vocabulary
from model.hashtags.grounding import HashtagFilter
from model.hashtags.vocabulary import HashtagTrie
from model.inference.beam_search import beam_width, max_beam_blocks
from model.inference.candidate_scoring import FIRST_CANDIDATE_TOKENS, max_candidate_blocks
from model.inference.category_scoring import CategoryScorer, ClosedSet
from model.inference.hashtag_generation import HashtagGeneration
from model.inference.kv_cache import BlockTable
from model.inference.loading import load_runtime
from model.inference.runtime import LogitQuery, Runtime, Span, SpanOutput, TokenLogProbs
from model.inference.scheduler import RunningRequest, Scheduler
from model.inference.spans import NO_TASKS, SpanSteps, Tasks, append_span, task_span
from model.note import Note
from model.prompt import NotePrompt
from model.weights import SHIPPED_CHECKPOINT, Progress, silent

EMBED_BATCH_SIZE = 1024
"""Notes that `Engine.embed` tokenises at a time: token ids of a long note take many times the memory of its vector."""
TOKENS_PER_CATEGORY = 16
"""Maximum tokens of a category that is written without a closed set."""
UNSUPPORTED_LANGUAGE = "the model does not read the script of this note"


@dataclass(frozen=True, slots=True)
class TokenizedRequest:
    """A note, its token ids, and what is requested of it.

    `prompt`: its windows. Tasks continue the first window; the others only contribute to the vector. `hashtag_prompt`:
    ids of a second prompt, which the hashtag task follows, where the prompt version puts the task first; else empty.
    `allowed`: decides which hashtags may be returned. `supported`: whether the model reads the note's script; if not,
    only its vector is computed.
    """

    note: Note
    prompt: NotePrompt
    request: GenerationRequest
    hashtag_prompt: tuple[int, ...] = ()
    allowed: HashtagFilter = field(default_factory=HashtagFilter)
    supported: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the first window."""
        return self.prompt.windows[0]

    @property
    def tokens(self) -> int:
        """Number of tokens in all its prompts, without the tasks."""
        return sum(map(len, self.prompt.windows)) + len(self.hashtag_prompt)

    @property
    def effective_request(self) -> GenerationRequest:
        """Request that is run: `request`, or VECTOR_ONLY where the model does not read the script of the note."""
        return self.request if self.supported else VECTOR_ONLY


@dataclass(frozen=True, slots=True)
class Prefill:
    """Output of a request's prompts and tasks.

    `vector` has shape (D,); it is pooled over the windows of the note. `hashtag_answers` begin with the answers to the
    queries of the hashtag task, `category_answers` end with those for the first trie of `closed_set`, the names to be
    scored; if the tasks share a span, both are the same list. `closed_set` is None where no categories are requested.
    `tokens`: number of tokens in all spans.
    """

    vector: npt.NDArray[np.float32]
    hashtag_answers: list[TokenLogProbs]
    category_answers: list[TokenLogProbs]
    closed_set: ClosedSet | None
    tokens: int


class Engine:
    """Computes vectors, hashtags and categories of notes. Not thread-safe, except for `tokenize`: one thread calls it.

    `name` and `space` identify the model in every answer, `dimension` is the length of the vectors, `read_tokens` how
    much of a note is read; for `mean_share` and `title_mean_share` see NoteLLMConfig. `temperature` divides the log
    probabilities of categories; None: the checkpoint's. Raises CheckpointError where the windows of the longest note
    need more than half of the KV cache.
    """

    def __init__(
        self, runtime: Runtime, category_head: CategoryHead | None = None, temperature: float | None = None
    ) -> None:
        self.runtime = runtime
        self.prompt = runtime.prompt
        self.name = runtime.config.name
        self.space = runtime.space
        self.dimension = runtime.dimension
        self.read_tokens = runtime.config.read_tokens
        self.languages = runtime.config.languages
        self.mean_share = runtime.config.mean_share
        self.title_mean_share = runtime.config.title_mean_share
        self.categories = runtime.config.categories
        self.temperature = runtime.config.category_temperature if temperature is None else temperature
        self._check_windows()
        self._category_scorer = CategoryScorer(runtime, category_head, self.temperature)
        self._scheduler: Scheduler[GenerationOutput] = Scheduler(runtime)
        self._priors_in_progress: set[tuple[str, ...]] = set()
        """Closed sets whose prior a request of `_scheduler` is computing, while others wait for it."""

    def _check_windows(self) -> None:
        """Raise CheckpointError where the longest note would need more than half of the KV cache: all windows of a note
        are in one prefill."""
        pool = self.runtime.pool
        most = pool.count // 2 // pool.blocks_for(self.prompt.max_note_tokens())
        if (windows := self.runtime.config.max_content_windows) > most:
            raise CheckpointError(
                f"max_content_windows is {windows}, and the KV cache has room for {most} of this length"
            )

    @classmethod
    def load(
        cls,
        checkpoint: str | None = None,
        *,
        cache: Path,
        device: str = "auto",
        dtype: str = "auto",
        runtime: str = "auto",
        fitted: bool = True,
        isolated_export: bool = False,
        progress: Progress = silent,
    ) -> Engine:
        """Load a checkpoint folder or a bare backbone; None: the shipped checkpoint. Raises CheckpointError.

        `device`: "cpu", "cuda", or "auto": a GPU where there is one. Without a GPU the CPU runs the model. `runtime`:
        "openvino" (on a CPU), "torch", or "auto": OpenVINO on a CPU where it is installed and supports the backbone.
        `dtype`: "float32", "bfloat16", "int8" (OpenVINO alone), or "auto": bfloat16 where that is faster, except in
        PyTorch on a CPU, where it makes a vector depend on its batch (docs/decisions/0003-precision.md). `fitted`: use
        the temperature and the category head that were fitted to the checkpoint; False, to fit new ones.
        `isolated_export`: if the checkpoint has to be exported to OpenVINO, do it in a separate process, whose memory
        is then released.
        """
        checkpoint = checkpoint or str(SHIPPED_CHECKPOINT)
        loaded = load_runtime(
            checkpoint,
            cache=cache,
            device=device,
            dtype=dtype,
            runtime=runtime,
            progress=progress,
            isolated_export=isolated_export,
        )
        if loaded.config.licence:
            progress(f"{loaded.config.name}: {loaded.config.licence}")
        if not fitted:
            return cls(loaded, temperature=1.0)
        return cls(loaded, CategoryHead.load(Path(checkpoint).expanduser(), loaded.space))

    def tokenize(self, note: Note, request: GenerationRequest = VECTOR_ONLY) -> TokenizedRequest:
        """Tokenise a note and build the tries of its closed set. Thread-safe. Raises CategoriesTooLong."""
        if request.categories:
            self._category_scorer.tries(request.categories)
        prompt, supported = self.prompt.windows(note), self.prompt.supports(note)
        if not (request.hashtags and supported):
            return TokenizedRequest(note, prompt, request, supported=supported)
        hashtag_prompt = () if self.prompt.one_prefill else tuple(self.prompt.note(note, request.hashtags))
        allowed = HashtagFilter.of(self.prompt.readable(note), request.blocked, self.prompt.config.scripts)
        return TokenizedRequest(note, prompt, request, hashtag_prompt, allowed)

    def keep_closed_set(self, categories: tuple[str, ...]) -> None:
        """Keep the tries and label prior of a closed set in the cache for as long as the engine lives, however many
        other closed sets are requested."""
        self._category_scorer.lasting_set = categories

    def vocabulary(self) -> Vocabulary:
        """Return an empty vocabulary in this model's tokens."""
        return HashtagTrie(self.prompt.hashtag_tokens)

    def can_add(self, tokenized: TokenizedRequest) -> bool:
        """Return whether the cache has room for one more request besides all blocks that running requests may need."""
        return self._scheduler.reserved_blocks + self._max_blocks(tokenized) <= self.runtime.pool.count

    def add_request(self, tokenized: TokenizedRequest) -> RunningRequest[GenerationOutput]:
        """Start a request for which `can_add` holds. After an error no request is running; one of this request alone
        is not raised here (`take_failed`)."""
        running = self._running_request(tokenized, self._priors_in_progress)
        self._scheduler.add(running)
        return running

    def step(self) -> list[tuple[RunningRequest[GenerationOutput], GenerationOutput]]:
        """Run one forward: the decode steps of all running requests, and prefills within a budget of tokens. Returns
        the requests that finished, with their outputs. After an error no request is running; one of a single request
        is not raised here (`take_failed`)."""
        return self._scheduler.step()

    def take_failed(self) -> list[tuple[RunningRequest[GenerationOutput], Exception]]:
        """Return and forget the requests that have failed on their own, with their errors: the others go on."""
        return self._scheduler.take_failed()

    def abort(self, running: RunningRequest[GenerationOutput]) -> None:
        """Stop a running request and free its cache blocks."""
        self._scheduler.abort(running)

    def usage(self, running: RunningRequest[GenerationOutput]) -> Usage:
        """Return the tokens that a running request has used so far. Safe in any thread between two steps."""
        return Usage(running.prompt_tokens, running.decoded_tokens)

    def run(self, batch: Sequence[TokenizedRequest]) -> list[GenerationOutput]:
        """Run `batch` to its end and return one output per request, in order. Requests added before keep their cache
        blocks and wait; a label prior that one of them is computing is computed again."""
        priors_in_progress: set[tuple[str, ...]] = set()
        requests = [self._running_request(tokenized, priors_in_progress) for tokenized in batch]
        return Scheduler[GenerationOutput](self.runtime).run(requests, self.runtime.pool.free)

    def generate(self, notes: Sequence[Note], request: GenerationRequest = VECTOR_ONLY) -> list[GenerationOutput]:
        """Return one output per note, in order, for any number of notes."""
        return self.run([self.tokenize(note, request) for note in notes])

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Return the vectors of any number of notes, shape (len(notes), dimension), in order."""
        starts = range(0, len(notes), EMBED_BATCH_SIZE)
        batches = (self.generate(notes[start : start + EMBED_BATCH_SIZE]) for start in starts)
        vectors = [output.vector for outputs in batches for output in outputs]
        return np.array(vectors, np.float32).reshape(len(notes), self.dimension)

    def write_category(self, notes: Sequence[Note]) -> list[str]:
        """Return each note's category as the model writes it without a closed set. For evaluation, not for serving."""
        requests = []
        task = self.prompt.category_task()
        for note in notes:
            ids = self.prompt.note(note)
            blocks = self.runtime.pool.blocks_for(len(ids) + len(task) + TOKENS_PER_CATEGORY)
            requests.append(RunningRequest(self._write_category(ids, task), blocks))
        return Scheduler[str](self.runtime).run(requests, self.runtime.pool.free)

    def _running_request(
        self, tokenized: TokenizedRequest, priors_in_progress: set[tuple[str, ...]]
    ) -> RunningRequest[GenerationOutput]:
        return RunningRequest(self._generate(tokenized, priors_in_progress), self._max_blocks(tokenized))

    def _max_blocks(self, tokenized: TokenizedRequest) -> int:
        """Return the maximum number of cache blocks that a request may need: for its prompts and a part of its closed
        set, and then for the further windows of the note or, after these are freed, for beams and candidates."""
        request, pool = tokenized.effective_request, self.runtime.pool
        task_tokens = len(self.prompt.hashtag_task(request.hashtags)) if request.hashtags else 0
        if request.find_neighbours:
            task_tokens += FIRST_CANDIDATE_TOKENS
        note_tokens = len(tokenized.ids)
        if self._category_scorer.needs_prior(request.categories):  # it reads the names first, in the note's blocks
            note_tokens = max(note_tokens, self.prompt.max_note_tokens())
        parts = self._category_scorer.tries(request.categories) if request.categories else ()
        part_tokens = max((self._category_scorer.tasks(trie).tokens for trie in parts), default=0)
        prompt_blocks = pool.blocks_for(note_tokens + task_tokens + part_tokens)
        if len(parts) > 1:  # all but the first follow a copy of the note's last block, and fill others than the tasks
            prompt_blocks += 2
        if tokenized.hashtag_prompt:
            prompt_blocks += pool.blocks_for(len(tokenized.hashtag_prompt) + task_tokens)
        hashtag_blocks = max_beam_blocks(beam_width(request.hashtags, tokenized.allowed), pool)
        if request.find_neighbours:
            hashtag_blocks += max_candidate_blocks(pool)
        window_blocks = sum(pool.blocks_for(len(window)) for window in tokenized.prompt.windows[1:])
        return prompt_blocks + max(hashtag_blocks, window_blocks)

    def _generate(
        self, tokenized: TokenizedRequest, priors_in_progress: set[tuple[str, ...]]
    ) -> SpanSteps[GenerationOutput]:
        """Run one request in three phases: prompts and tasks, categories, hashtags."""
        started = time.perf_counter()
        request, pool = tokenized.effective_request, self.runtime.pool
        scorer, closed_set = self._category_scorer, None
        if request.categories:
            closed_set = yield from scorer.closed_set(request.categories, priors_in_progress)
        with closing(BlockTable(pool)) as note_table, closing(BlockTable(pool)) as second_table:
            hashtag_table = second_table if tokenized.hashtag_prompt else note_table
            generation = HashtagGeneration(self.prompt, request, tokenized.allowed)

            prefill = yield from self._prefill(tokenized, note_table, hashtag_table, generation, closed_set)
            read_tokens = prefill.tokens + (closed_set.prior_tokens if closed_set else 0)
            output = GenerationOutput(prefill.vector, Usage(read_tokens), truncated=tokenized.prompt.truncated)
            if not tokenized.supported:
                return without_generations(output, tokenized.request)

            if prefill.closed_set:
                scored = prefill.closed_set
                with closing(note_table.fork()) as table:
                    table.cut(len(tokenized.ids))
                    log_probs = yield from scorer.log_probs(scored, prefill.category_answers, table)
                categories = scorer.probabilities(scored, log_probs, tokenized.note, prefill.vector)
                read_tokens += sum(scorer.tasks(trie).tokens for trie in scored.tries[1:])
                output = replace(output, categories=categories, usage=Usage(read_tokens))

            if request.hashtags:
                output = replace(output, first_token_seconds=time.perf_counter() - started)
                yield from generation.run(hashtag_table, prefill.hashtag_answers)
                hashtags = generation.hashtags
                output = replace(
                    output,
                    hashtags=hashtags,
                    hashtags_reason=None if hashtags else generation.reason_for_none,
                    hashtags_below_min=generation.below_min,
                    usage=Usage(read_tokens + generation.candidate_tokens, generation.generated_tokens),
                )
            return output

    def _prefill(
        self,
        tokenized: TokenizedRequest,
        note_table: BlockTable,
        hashtag_table: BlockTable,
        generation: HashtagGeneration,
        closed_set: ClosedSet | None,
    ) -> SpanSteps[Prefill]:
        """Run the prompts and tasks of a request in one forward. If hashtags are grounded or the closed set is large,
        it takes two: first the note, whose vector is needed to find neighbours or to choose the shortlist, then the
        tasks. The runtime computes the vector at the read-out position of the note.

        Afterwards `note_table` holds the note. Where hashtags are requested, `hashtag_table`, which may be the same
        table, ends with the hashtag task.
        """
        note, read_out = tokenized.ids, len(tokenized.ids) - 1
        scorer, all_categories = self._category_scorer, tokenized.effective_request.all_categories
        needs_shortlist = closed_set is not None and not all_categories and scorer.needs_shortlist(closed_set)
        if generation.needs_vector or needs_shortlist:
            spans = [task_span(note_table, note, NO_TASKS, read_out)]
            _, vector, note_tokens = yield from self._read_note(tokenized, spans)
            if generation.needs_vector:
                generation.find_candidates(tokenized.note, vector)
            if closed_set and needs_shortlist:
                closed_set = scorer.shortlist(closed_set, tokenized.note, vector)
            tasks = generation.tasks()
            spans = self._task_spans(tokenized, (), note_table, hashtag_table, tasks, closed_set)
            outputs = yield spans
            tokens = note_tokens + count_tokens(spans)
        else:
            tasks = generation.tasks()
            spans = self._task_spans(tokenized, note, note_table, hashtag_table, tasks, closed_set)
            outputs, vector, tokens = yield from self._read_note(tokenized, spans)
        # Drop the branches of candidates and of the closed set.
        note_table.cut(len(note) + (len(tasks.hashtag_task) if hashtag_table is note_table else 0))
        hashtag_table.cut(len(tokenized.hashtag_prompt or note) + len(tasks.hashtag_task))
        return Prefill(vector, outputs[-1].token_log_probs, outputs[0].token_log_probs, closed_set, tokens)

    def _read_note(
        self, tokenized: TokenizedRequest, spans: Sequence[Span]
    ) -> SpanSteps[tuple[list[SpanOutput], npt.NDArray[np.float32], int]]:
        """Run `spans`, of which the first has the first window of a note, beside the note's further windows. Return the
        outputs of `spans`, the note's vector (D,), and the number of tokens in all spans."""
        with ExitStack() as tables:
            windows = []
            for ids in tokenized.prompt.windows[1:]:
                table = tables.enter_context(closing(BlockTable(self.runtime.pool)))
                windows.append(append_span(table, ids, read_out=len(ids) - 1))
            outputs = yield [*spans, *windows]
        vectors = [output.vector for output in (outputs[0], *outputs[len(spans) :]) if output.vector is not None]
        vector = pooled(vectors, tokenized.prompt.content_tokens)
        return outputs[: len(spans)], vector, count_tokens([*spans, *windows])

    def _task_spans(
        self,
        tokenized: TokenizedRequest,
        note: Sequence[int],
        note_table: BlockTable,
        hashtag_table: BlockTable,
        hashtag_tasks: Tasks,
        closed_set: ClosedSet | None,
    ) -> list[Span]:
        """Return the spans of the prompt and all tasks: one, or two where hashtags have a prompt of their own. `note`:
        ids of the note, empty if they are cached already."""
        category_tasks = self._category_scorer.tasks(closed_set.tries[0] if closed_set else None)
        read_out = len(note) - 1 if note else None
        if hashtag_table is note_table:
            return [task_span(note_table, note, hashtag_tasks.with_categories(category_tasks), read_out)]
        spans = [task_span(hashtag_table, tokenized.hashtag_prompt, hashtag_tasks)]
        if note or category_tasks is not NO_TASKS:
            spans.insert(0, task_span(note_table, note, category_tasks, read_out))
        return spans

    def _write_category(self, note: Sequence[int], task: Sequence[int]) -> SpanSteps[str]:
        """Decode greedily after the ids of a note and the category task, until the end token, a newline (which is how a
        bare backbone ends), or TOKENS_PER_CATEGORY tokens."""
        written: list[int] = []
        with closing(BlockTable(self.runtime.pool)) as table:
            while len(written) < TOKENS_PER_CATEGORY:
                span_ids = written[-1:] or [*note, *task]
                read_out = None if written else len(note) - 1
                query = LogitQuery(len(span_ids) - 1, top_k=1, exclude_ends=False)
                (output,) = yield [append_span(table, span_ids, read_out=read_out, queries=[query])]
                (token,) = output.token_log_probs[0].top_tokens
                if token == self.prompt.end_id or "\n" in self.prompt.decode([*written, token]):
                    break
                written.append(token)
        return self.prompt.decode(written).strip()


def count_tokens(spans: Sequence[Span]) -> int:
    """Return the number of tokens in all spans."""
    return sum(len(span.ids) for span in spans)


def pooled(vectors: Sequence[npt.NDArray[np.float32]], weights: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the unit vector (D,) of a note from those of its windows: their weighted mean, scaled to unit length. A
    window without tokens weighs as much as one of a single token."""
    if len(vectors) == 1:
        return vectors[0]
    mean = np.average(vectors, axis=0, weights=np.maximum(weights, 1))
    unit: npt.NDArray[np.float32] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
    return unit


def without_generations(output: GenerationOutput, request: GenerationRequest) -> GenerationOutput:
    """Return the output for a note whose script the model does not read: its vector, and empty generations."""
    return replace(
        output,
        hashtags=() if request.hashtags else None,
        hashtags_reason=UNSUPPORTED_LANGUAGE if request.hashtags else None,
        categories=() if request.categories else None,
        language_supported=False,
    )

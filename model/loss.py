"""Losses: small pure functions of tensors. The formulas are those of the paper, section 4 (arXiv 2403.01744).

Shapes: B pairs, hence 2B notes, rows 2i and 2i + 1 a pair; D embedding dimension; N output tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class JointLoss(NamedTuple):
    """The joint loss and its parts, all scalars."""

    total: Tensor
    contrastive: Tensor
    generative: Tensor


def contrastive_loss(embeddings: Tensor, tau: Tensor, known: Tensor | None = None) -> Tensor:
    """GCL with in-batch negatives: each note against its partner and the other 2B - 2 notes.

    L_cl = -(1/2B) sum_i log( exp(sim(i, i+) e^tau) / sum_{j != i} exp(sim(i, j) e^tau) ),  sim = cosine.

    embeddings: (2B, D), unit length. tau: scalar, log of the inverse temperature. known: (2B, 2B) bool, True where j is
    a false negative of i and leaves the sum; partners are never left out. Returns a scalar, float32.
    """
    rows = torch.arange(len(embeddings), device=embeddings.device)
    partner = rows ^ 1
    similarity = embeddings @ embeddings.T * tau.exp()
    if known is not None:
        known = known.clone()
        known[rows, partner] = False
        similarity = similarity.masked_fill(known, float("-inf"))
    similarity = similarity.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), float("-inf"))
    return nn.functional.cross_entropy(similarity, partner)


def generative_loss(logits: Tensor, targets: Tensor, tokens: int | None = None) -> Tensor:
    """CSFT: L_gen = -(1/T) sum_i log p(o_i | o_<i, input), over output tokens only.

    logits: (N, V). targets: (N,) int64. tokens: T, where the N rows are a part of a larger batch; N by default.
    Returns a scalar; 0 without output tokens.
    """
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    return loss / max(1, len(targets) if tokens is None else tokens)


def joint_loss(contrastive: Tensor, generative: Tensor, alpha: float) -> JointLoss:
    """L = (L_cl + alpha L_gen) / (1 + alpha)."""
    return JointLoss((contrastive + alpha * generative) / (1 + alpha), contrastive, generative)

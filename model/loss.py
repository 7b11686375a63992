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
    distillation: Tensor
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


def distillation_loss(embeddings: Tensor, tau: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """What a teacher says of all notes of the batch, not only of the partner: ours, not the paper's.

    L_d = -(1/n) sum_i sum_{j != i} q_ij log p_ij,  q_i = softmax of the teacher's cosines / temperature, p_i = softmax
    of the embeddings' cosines * e^tau, both over the other notes that the teacher knows; n of the 2B notes are known.

    embeddings: (2B, D), unit length. tau: scalar. taught: (2B, K), unit length, zero where a note is not known.
    Returns a scalar, float32; 0 where fewer than two notes are known.
    """
    rows = taught.any(1)
    if rows.sum() < 2:
        return embeddings.sum() * 0
    embeddings, taught = embeddings[rows], taught[rows]
    own = torch.eye(len(taught), dtype=torch.bool, device=taught.device)
    wanted = (taught @ taught.T / temperature).masked_fill(own, float("-inf")).softmax(-1)
    similarity = (embeddings @ embeddings.T * tau.exp()).masked_fill(own, float("-inf"))
    return nn.functional.cross_entropy(similarity[~own].view(len(own), -1), wanted[~own].view(len(own), -1))


def generative_loss(logits: Tensor, targets: Tensor, tokens: int | None = None) -> Tensor:
    """CSFT: L_gen = -(1/T) sum_i log p(o_i | o_<i, input), over output tokens only.

    logits: (N, V). targets: (N,) int64. tokens: T, where the N rows are a part of a larger batch; N by default.
    Returns a scalar; 0 without output tokens.
    """
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    return loss / max(1, len(targets) if tokens is None else tokens)


def joint_loss(
    contrastive: Tensor, generative: Tensor, alpha: float, distillation: Tensor | None = None, share: float = 0.0
) -> JointLoss:
    """L = (L_cl + alpha L_gen) / (1 + alpha); with distillation, (1 - share) L_cl + share L_d stands for L_cl."""
    distillation = torch.zeros_like(contrastive) if distillation is None else distillation
    related = (1 - share) * contrastive + share * distillation
    return JointLoss((related + alpha * generative) / (1 + alpha), contrastive, distillation, generative)

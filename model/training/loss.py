"""Losses: small pure functions of tensors. The formulas are those of the paper, section 4 (arXiv 2403.01744).

Shapes: B pairs, hence 2B notes, rows 2i and 2i + 1 a pair; M notes beyond the batch, which get no gradient;
D embedding dimension, K the teacher's; N output tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class RelatedLoss(NamedTuple):
    """The loss of related notes and its parts, all scalars: (1 - share) L_cl + share L_d."""

    total: Tensor
    contrastive: Tensor
    distillation: Tensor


class JointLoss(NamedTuple):
    """The joint loss and its parts, all scalars."""

    total: Tensor
    contrastive: Tensor
    distillation: Tensor
    generative: Tensor


def contrastive_loss(
    embeddings: Tensor, tau: Tensor, known: Tensor | None = None, others: Tensor | None = None
) -> Tensor:
    """GCL with in-batch negatives: each note against its partner and the other 2B - 2 notes.

    L_cl = -(1/2B) sum_i log( exp(sim(i, i+) e^tau) / sum_{j != i} exp(sim(i, j) e^tau) ),  sim = cosine.

    embeddings: (2B, D), unit length. tau: scalar, log of the inverse temperature. others: (M, D), more negatives, which
    join the sum. known: (2B, 2B + M) bool, True where j is a false negative of i and leaves the sum; partners are never
    left out. Returns a scalar, float32.
    """
    rows = torch.arange(len(embeddings), device=embeddings.device)
    partner = rows ^ 1
    similarity = embeddings @ _with_others(embeddings, others).T * tau.exp()
    left_out = torch.zeros_like(similarity, dtype=torch.bool) if known is None else known.clone()
    left_out[rows, partner] = False
    left_out[rows, rows] = True
    return nn.functional.cross_entropy(similarity.masked_fill(left_out, float("-inf")), partner)


def distillation_loss(
    embeddings: Tensor,
    tau: Tensor,
    taught: Tensor,
    temperature: float,
    others: Tensor | None = None,
    others_taught: Tensor | None = None,
) -> Tensor:
    """What a teacher says of all notes of the batch, not only of the partner: ours, not the paper's.

    L_d = -(1/n) sum_i sum_{j != i} q_ij log p_ij,  q_i = softmax of the teacher's cosines / temperature, p_i = softmax
    of the embeddings' cosines * e^tau, both over the other notes that the teacher knows; n of the 2B notes are known.

    embeddings: (2B, D), unit length. tau: scalar. taught: (2B, K), unit length, zero where a note is not known.
    others: (M, D) and others_taught: (M, K) are more of both, over which the sum of j goes too.
    Returns a scalar, float32; 0 where a known note has no other.
    """
    known = taught.any(1)
    embeddings, taught = embeddings[known], taught[known]
    if others is not None and others_taught is not None:
        known = others_taught.any(1)
        others, others_taught = others[known], others_taught[known]
    all_taught = _with_others(taught, others_taught)
    if not len(taught) or len(all_taught) < 2:
        return embeddings.sum() * 0
    own = torch.eye(len(taught), len(all_taught), dtype=torch.bool, device=taught.device)
    wanted = (taught @ all_taught.T / temperature).masked_fill(own, float("-inf")).softmax(-1)
    similarity = embeddings @ _with_others(embeddings, others).T * tau.exp()
    rest = (len(taught), len(all_taught) - 1)
    return nn.functional.cross_entropy(similarity[~own].view(rest), wanted[~own].view(rest))


def _with_others(rows: Tensor, others: Tensor | None) -> Tensor:
    return rows if others is None else torch.cat([rows, others])


def generative_loss(logits: Tensor, targets: Tensor, tokens: int | None = None) -> Tensor:
    """CSFT: L_gen = -(1/T) sum_i log p(o_i | o_<i, input), over output tokens only.

    logits: (N, V). targets: (N,) int64. tokens: T, where the N rows are a part of a larger batch; N by default.
    Returns a scalar; 0 without output tokens.
    """
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    return loss / max(1, len(targets) if tokens is None else tokens)


def joint_loss(related: RelatedLoss, generative: Tensor, alpha: float) -> JointLoss:
    """L = (L_cl + alpha L_gen) / (1 + alpha), where L_cl is the whole loss of related notes."""
    total = (related.total + alpha * generative) / (1 + alpha)
    return JointLoss(total, related.contrastive, related.distillation, generative)

"""Losses: small pure functions of tensors. The formulas are those of the paper, section 4 (arXiv 2403.01744).

Shapes: B pairs, hence 2B notes, rows 2i and 2i + 1 a pair; n notes that learn from a teacher; M notes beyond these;
D embedding dimension, K the teacher's; N output tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class RelatedLoss(NamedTuple):
    """Loss of related notes, (1 - share) L_cl + share L_d, and its two parts; all scalars."""

    total: Tensor
    contrastive: Tensor
    distillation: Tensor


class JointLoss(NamedTuple):
    """Joint loss and its parts, all scalars."""

    total: Tensor
    contrastive: Tensor
    distillation: Tensor
    generative: Tensor


def contrastive_loss(
    embeddings: Tensor, tau: Tensor, false_negatives: Tensor | None = None, others: Tensor | None = None
) -> Tensor:
    """GCL with in-batch negatives: each note against its partner and the other 2B - 2 notes.

    L_cl = -(1/2B) sum_i log( exp(sim(i, i+) e^tau) / sum_{j != i} exp(sim(i, j) e^tau) ),  sim = cosine.

    embeddings: (2B, D), unit length. tau: scalar, log of the inverse temperature. others: (M, D), more negatives, which
    join the sum. false_negatives: (2B, 2B + M) bool, True where j is a false negative of i and leaves the sum; partners
    are never left out. Returns a scalar, float32.
    """
    rows = torch.arange(len(embeddings), device=embeddings.device)
    partner = rows ^ 1
    similarity = embeddings @ _with_others(embeddings, others).T * tau.exp()
    left_out = torch.zeros_like(similarity, dtype=torch.bool)
    if false_negatives is not None:
        left_out |= false_negatives
    left_out[rows, partner] = False
    left_out[rows, rows] = True
    return nn.functional.cross_entropy(similarity.masked_fill(left_out, float("-inf")), partner)


def distillation_loss(
    embeddings: Tensor,
    tau: Tensor,
    teacher: Tensor,
    temperature: float,
    others: Tensor | None = None,
    others_teacher: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with a teacher's similarities to all notes of the batch, not only to the partner.

    This loss is ours, not the paper's (docs/decisions/0006-distillation.md):

    L_d = -(1/n) sum_i sum_{j != i} q_ij log p_ij,  q_i = softmax over j of t_i t_j / (temperature |t_i|²), p_i =
    softmax of the embeddings' cosines * e^tau, both over the other notes that the teacher knows; n of the embeddings'
    notes are known. The division makes a note that one source of the teacher does not know, whose vector is shorter,
    follow the other source as closely.

    embeddings: (n or more, D), unit length. tau: scalar. teacher: (n or more, K), vectors whose products are the
    teacher's cosines, zero for a note that it does not know. others (M, D), others_teacher (M, K): further
    notes, which join the sum over j. Returns a scalar, float32; 0 where no known note has another one to compare
    with.
    """
    known = teacher.any(1)
    embeddings, teacher = embeddings[known], teacher[known]
    if others is not None and others_teacher is not None:
        known = others_teacher.any(1)
        others, others_teacher = others[known], others_teacher[known]
    all_teacher = _with_others(teacher, others_teacher)
    if not len(teacher) or len(all_teacher) < 2:
        return embeddings.sum() * 0
    own = torch.eye(len(teacher), len(all_teacher), dtype=torch.bool, device=teacher.device)
    queries = teacher / teacher.square().sum(1, keepdim=True)
    target = (queries @ all_teacher.T / temperature).masked_fill(own, float("-inf")).softmax(-1)
    similarity = embeddings @ _with_others(embeddings, others).T * tau.exp()
    shape = (len(teacher), len(all_teacher) - 1)
    return nn.functional.cross_entropy(similarity[~own].view(shape), target[~own].view(shape))


def _with_others(rows: Tensor, others: Tensor | None) -> Tensor:
    return rows if others is None else torch.cat([rows, others])


def generative_loss(logits: Tensor, targets: Tensor, tokens: int | None = None) -> Tensor:
    """CSFT: L_gen = -(1/T) sum_i log p(o_i | o_<i, input), over output tokens only.

    logits: (N, V). targets: (N,) int64. tokens: T of the whole batch, where the N rows are part of it; N by default.
    Returns a scalar; 0 without output tokens.
    """
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    return loss / max(1, len(targets) if tokens is None else tokens)


def joint_loss(related: RelatedLoss, generative: Tensor, alpha: float) -> JointLoss:
    """Join both losses: L = (L_cl + alpha L_gen) / (1 + alpha), where L_cl is the total of `related`."""
    total = (related.total + alpha * generative) / (1 + alpha)
    return JointLoss(total, related.contrastive, related.distillation, generative)

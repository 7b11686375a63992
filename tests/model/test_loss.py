"""The losses against values computed by hand."""

import math

import pytest
import torch

from model.loss import contrastive_loss, generative_loss, joint_loss

EAST, NORTH, WEST = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)


def unit(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_contrastive_loss_of_two_pairs_is_the_hand_computed_one():
    loss = contrastive_loss(unit(EAST, EAST, NORTH, NORTH), torch.tensor(0.0))
    # Each note: partner at cosine 1, two others at cosine 0, itself left out.
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 2)))


def test_tau_is_the_log_of_the_inverse_temperature():
    loss = contrastive_loss(unit(EAST, EAST, NORTH, NORTH), torch.tensor(math.log(4.0)))
    assert loss.item() == pytest.approx(-math.log(math.exp(4) / (math.exp(4) + 2)))


def test_each_note_is_compared_with_its_own_partner():
    loss = contrastive_loss(unit(EAST, NORTH, EAST, WEST), torch.tensor(0.0))
    e = math.exp
    by_hand = [
        -math.log(e(0) / (e(0) + e(1) + e(-1))),  # east: partner north, others east and west
        -math.log(e(0) / (e(0) + e(0) + e(0))),  # north: everything is at 90 degrees
        -math.log(e(-1) / (e(1) + e(0) + e(-1))),  # east: partner west
        -math.log(e(-1) / (e(-1) + e(0) + e(-1))),  # west: partner east, others east and north
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 4)


def test_a_known_related_note_is_no_negative_and_a_partner_always_counts():
    everything_known = torch.ones(4, 4, dtype=torch.bool)
    loss = contrastive_loss(unit(EAST, NORTH, EAST, NORTH), torch.tensor(0.0), everything_known)
    assert loss.item() == pytest.approx(0.0)  # nothing but the partner is left
    one_known = torch.zeros(4, 4, dtype=torch.bool)
    one_known[0, 2] = True
    masked = contrastive_loss(unit(EAST, EAST, EAST, NORTH), torch.tensor(0.0), one_known)
    whole = contrastive_loss(unit(EAST, EAST, EAST, NORTH), torch.tensor(0.0))
    first = -math.log(math.e / (2 * math.e + 1)) + math.log(math.e / (math.e + 1))
    assert (whole - masked).item() == pytest.approx(first / 4)


def test_tau_and_vectors_get_gradients():
    vectors = unit(EAST, NORTH, WEST, NORTH).requires_grad_()
    tau = torch.tensor(3.0, requires_grad=True)
    contrastive_loss(vectors, tau).backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    assert tau.grad is not None
    assert tau.grad.item() != 0


def test_generative_loss_is_the_mean_cross_entropy_of_output_tokens():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    loss = generative_loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 2)) / 2)


def test_generative_losses_of_parts_add_up_to_that_of_the_batch():
    logits, targets = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    parts = generative_loss(logits[:2], targets[:2], 6) + generative_loss(logits[2:], targets[2:], 6)
    torch.testing.assert_close(parts, generative_loss(logits, targets))


def test_generative_loss_without_outputs_is_zero():
    assert generative_loss(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64)).item() == 0


def test_joint_loss_weighs_its_parts_by_alpha_and_returns_them():
    loss = joint_loss(torch.tensor(2.0), torch.tensor(5.0), alpha=0.25)
    assert loss.total.item() == pytest.approx((2 + 0.25 * 5) / 1.25)
    assert (loss.contrastive.item(), loss.generative.item()) == (2.0, 5.0)

"""The losses against values worked out by hand."""

import math

import pytest
import torch

from model.training.loss import RelatedLoss, contrastive_loss, distillation_loss, generative_loss, joint_loss

EAST, NORTH, WEST = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)
UNKNOWN = (0.0, 0.0)


def unit(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_contrastive_loss_of_two_pairs_is_as_by_hand():
    loss = contrastive_loss(unit(EAST, EAST, NORTH, NORTH), torch.tensor(0.0))
    # Each note: partner at cosine 1, two others at cosine 0, itself left out.
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 2)))


def test_tau_is_the_log_of_the_inverse_temperature():
    loss = contrastive_loss(unit(EAST, EAST, NORTH, NORTH), torch.tensor(math.log(4.0)))
    assert loss.item() == pytest.approx(-math.log(math.exp(4) / (math.exp(4) + 2)))


def test_contrastive_loss_compares_each_note_with_its_partner():
    loss = contrastive_loss(unit(EAST, NORTH, EAST, WEST), torch.tensor(0.0))
    e = math.exp
    by_hand = [
        -math.log(e(0) / (e(0) + e(1) + e(-1))),  # east: partner north, others east and west
        -math.log(e(0) / (e(0) + e(0) + e(0))),  # north: everything is at 90 degrees
        -math.log(e(-1) / (e(1) + e(0) + e(-1))),  # east: partner west
        -math.log(e(-1) / (e(-1) + e(0) + e(-1))),  # west: partner east, others east and north
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 4)


def test_false_negative_is_left_out_and_a_partner_never_is():
    all_false_negatives = torch.ones(4, 4, dtype=torch.bool)
    loss = contrastive_loss(unit(EAST, NORTH, EAST, NORTH), torch.tensor(0.0), all_false_negatives)
    assert loss.item() == pytest.approx(0.0)  # only the partner is left
    one_false_negative = torch.zeros(4, 4, dtype=torch.bool)
    one_false_negative[0, 2] = True
    masked = contrastive_loss(unit(EAST, EAST, EAST, NORTH), torch.tensor(0.0), one_false_negative)
    whole = contrastive_loss(unit(EAST, EAST, EAST, NORTH), torch.tensor(0.0))
    first = -math.log(math.e / (2 * math.e + 1)) + math.log(math.e / (math.e + 1))
    assert (whole - masked).item() == pytest.approx(first / 4)


def test_others_join_the_sum_of_each_note():
    loss = contrastive_loss(unit(EAST, NORTH), torch.tensor(0.0), others=unit(EAST, WEST, NORTH))
    e = math.exp
    by_hand = [
        -math.log(e(0) / (e(0) + e(1) + e(-1) + e(0))),  # east: partner north, others east, west and north
        -math.log(e(0) / (e(0) + e(0) + e(0) + e(1))),  # north: partner east
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 2)


def test_false_negative_among_the_others_is_left_out():
    known = torch.zeros(2, 4, dtype=torch.bool)
    known[0, 3] = True
    loss = contrastive_loss(unit(EAST, EAST), torch.tensor(0.0), known, unit(NORTH, WEST))
    first = -math.log(math.e / (math.e + 1))  # west, the second of the others, is left out
    second = -math.log(math.e / (math.e + 1 + 1 / math.e))
    assert loss.item() == pytest.approx((first + second) / 2)


def test_others_are_never_partners():
    batch, others = unit(EAST, NORTH, WEST, NORTH), unit(EAST, NORTH, WEST, NORTH)
    all_false_negatives = torch.ones(4, 8, dtype=torch.bool)
    loss = contrastive_loss(batch, torch.tensor(0.0), all_false_negatives, others)
    assert loss.item() == pytest.approx(0.0)  # only the partner in the batch is left
    only_others = all_false_negatives.clone()
    only_others[:, 4:] = False
    loss = contrastive_loss(batch, torch.tensor(0.0), only_others, others)
    e = math.exp
    east_or_west = -math.log(e(0) / (e(0) + e(1) + e(0) + e(-1) + e(0)))
    north = -math.log(e(0) / (e(0) + e(0) + e(1) + e(0) + e(1)))
    assert loss.item() == pytest.approx((2 * east_or_west + 2 * north) / 4)


def test_losses_with_no_others_are_those_of_the_batch():
    vectors, none = unit(EAST, NORTH, EAST, WEST), torch.zeros(0, 2)
    tau = torch.tensor(1.0)
    assert contrastive_loss(vectors, tau, others=none) == contrastive_loss(vectors, tau)
    teacher = unit(EAST, EAST, NORTH, WEST)
    assert distillation_loss(vectors, tau, teacher, 0.3, none, none) == distillation_loss(vectors, tau, teacher, 0.3)


def test_contrastive_loss_gives_tau_and_vectors_gradients():
    vectors = unit(EAST, NORTH, WEST, NORTH).requires_grad_()
    tau = torch.tensor(3.0, requires_grad=True)
    contrastive_loss(vectors, tau).backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    assert tau.grad is not None
    assert tau.grad.item() != 0


def test_distillation_loss_of_three_notes_is_as_by_hand():
    teacher = unit(EAST, EAST, NORTH)  # 0 and 1 are alike, 2 is at 90 degrees to both
    loss = distillation_loss(unit(EAST, NORTH, WEST), torch.tensor(math.log(2.0)), teacher, temperature=0.5)
    e = math.exp
    near = e(2) / (
        e(2) + 1
    )  # teacher of notes 0 and 1: cosines 1 and 0, over the temperature; of note 2: two equal cosines
    by_hand = [
        # Student of note 0: cosine 0 with note 1 and -1 with note 2, times e^tau = 2.
        -near * math.log(1 / (1 + e(-2))) - (1 - near) * math.log(e(-2) / (1 + e(-2))),
        -near * math.log(1 / 2) - (1 - near) * math.log(1 / 2),  # of note 1: 0 with both
        -0.5 * math.log(e(-2) / (1 + e(-2))) - 0.5 * math.log(1 / (1 + e(-2))),  # of note 2: -1 with 0 and 0 with 1
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 3)


def test_notes_unknown_to_the_teacher_do_not_count():
    tau = torch.tensor(1.0)
    vectors, teacher = unit(EAST, NORTH, WEST, EAST, NORTH), unit(EAST, UNKNOWN, EAST, UNKNOWN, NORTH)
    vectors.requires_grad_()
    loss = distillation_loss(vectors, tau, teacher, 0.3)
    known = [0, 2, 4]
    assert loss.item() == pytest.approx(distillation_loss(vectors[known], tau, teacher[known], 0.3).item())
    loss.backward()
    assert vectors.grad is not None
    assert not vectors.grad[[1, 3]].any()
    assert vectors.grad[[0, 2]].any(1).all()


def test_note_known_to_one_of_two_sources_follows_that_one():
    vectors, others, tau = unit(EAST), unit(NORTH, WEST), torch.tensor(1.0)
    text = unit(NORTH, NORTH, WEST)
    behaviour = torch.cat([unit(UNKNOWN), unit(WEST, EAST)])
    both = torch.cat([behaviour, text], 1) / 2**0.5
    loss = distillation_loss(vectors, tau, both[:1], 0.3, others, both[1:])
    torch.testing.assert_close(loss, distillation_loss(vectors, tau, text[:1], 0.3, others, text[1:]))


@pytest.mark.parametrize("known", [0, 1])
def test_distillation_of_fewer_than_two_known_notes_is_zero(known: int):
    vectors = unit(EAST, NORTH, WEST, NORTH).requires_grad_()
    loss = distillation_loss(vectors, torch.tensor(3.0), unit(*[NORTH] * known, *[UNKNOWN] * (4 - known)), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None
    assert not vectors.grad.any()


def test_distillation_over_others_is_as_by_hand():
    """The values are those of three notes, but the third is outside the batch and has no row."""
    loss = distillation_loss(
        unit(EAST, NORTH),
        torch.tensor(math.log(2.0)),
        unit(EAST, EAST),
        temperature=0.5,
        others=unit(WEST),
        others_teacher=unit(NORTH),
    )
    e = math.exp
    near = e(2) / (e(2) + 1)
    by_hand = [
        -near * math.log(1 / (1 + e(-2))) - (1 - near) * math.log(e(-2) / (1 + e(-2))),
        -near * math.log(1 / 2) - (1 - near) * math.log(1 / 2),
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 2)


def test_others_unknown_to_the_teacher_do_not_count():
    vectors, teacher, tau = unit(EAST, NORTH, WEST), unit(EAST, UNKNOWN, NORTH), torch.tensor(1.0)
    others, others_teacher = unit(NORTH, WEST, EAST), unit(UNKNOWN, EAST, UNKNOWN)
    loss = distillation_loss(vectors, tau, teacher, 0.3, others, others_teacher)
    without = distillation_loss(vectors, tau, teacher, 0.3, others[1:2], others_teacher[1:2])
    assert loss.item() == pytest.approx(without.item())
    assert loss.item() != pytest.approx(
        distillation_loss(vectors, tau, teacher, 0.3).item()
    )  # the one that the teacher knows counts


def test_one_false_negative_note_and_others_are_enough_to_distil():
    vectors = unit(EAST, NORTH, WEST, NORTH).requires_grad_()
    teacher, tau = unit(EAST, UNKNOWN, UNKNOWN, UNKNOWN), torch.tensor(0.0)
    loss = distillation_loss(vectors, tau, teacher, 1.0, unit(WEST, NORTH), unit(EAST, NORTH))
    e = math.exp
    near = e(1) / (e(1) + e(0))  # the teacher: cosines 1 and 0; the student: -1 and 0
    by_hand = -near * math.log(e(-1) / (e(-1) + e(0))) - (1 - near) * math.log(e(0) / (e(-1) + e(0)))
    assert loss.item() == pytest.approx(by_hand)
    loss.backward()
    assert vectors.grad is not None
    assert vectors.grad.any(1).tolist() == [True, False, False, False]
    # A single other note leaves nothing to choose from, and without a known note there is no row: neither is an error.
    for known, others in ((teacher, unit(WEST)), (torch.zeros(4, 2), unit(WEST, NORTH))):
        nothing = distillation_loss(vectors, tau, known, 1.0, others, others)
        assert nothing.item() == 0
        nothing.backward()
        assert vectors.grad.isfinite().all()


def test_distillation_is_lowest_where_student_equals_teacher():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=-1)
    temperature, tau = 0.5, torch.tensor(math.log(1 / 0.5), requires_grad=True)
    vectors = teacher.clone().requires_grad_()
    lowest = distillation_loss(vectors, tau, teacher, temperature)
    others = (teacher @ teacher.T / temperature)[~torch.eye(4, dtype=torch.bool)].view(4, 3).softmax(-1)
    assert lowest.item() == pytest.approx(-(others * others.log()).sum(1).mean().item())  # the teacher's entropy
    lowest.backward()
    assert vectors.grad is not None
    assert tau.grad is not None
    torch.testing.assert_close(vectors.grad, torch.zeros(4, 6), atol=1e-6, rtol=0)
    assert tau.grad.item() == pytest.approx(0, abs=1e-6)
    for _ in range(20):
        other = torch.nn.functional.normalize(teacher + 0.3 * torch.randn(4, 6, generator=generator), dim=-1)
        assert distillation_loss(other, tau, teacher, temperature) > lowest


def test_generative_loss_is_the_mean_cross_entropy_of_outputs():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    loss = generative_loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 2)) / 2)


def test_generative_losses_of_parts_add_up_to_the_batch():
    logits, targets = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    parts = generative_loss(logits[:2], targets[:2], 6) + generative_loss(logits[2:], targets[2:], 6)
    torch.testing.assert_close(parts, generative_loss(logits, targets))


def test_generative_loss_without_outputs_is_zero():
    assert generative_loss(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64)).item() == 0


def test_joint_loss_weighs_its_parts_by_alpha_and_returns_them():
    related = RelatedLoss(total=torch.tensor(3.0), contrastive=torch.tensor(2.0), distillation=torch.tensor(4.0))
    loss = joint_loss(related, torch.tensor(5.0), alpha=0.25)
    assert loss.total.item() == pytest.approx((3 + 0.25 * 5) / 1.25)
    assert (loss.contrastive.item(), loss.distillation.item(), loss.generative.item()) == (2.0, 4.0, 5.0)

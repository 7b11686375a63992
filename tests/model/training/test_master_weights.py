"""Master weights do what one AdamW on the whole batch does, on any number of threads, and resume from a state."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from model.training.master_weights import BETAS, MasterWeights, balanced_groups


def small_module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))


INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
TARGETS = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))


def part_loss(module: nn.Module, threads: int, at: int) -> tuple[Tensor, float]:
    loss = (module(INPUTS[at::threads]) - TARGETS[at::threads]).square().sum() / len(INPUTS)
    return loss, float(loss.detach())


def masters_of(module: nn.Module, threads: int) -> MasterWeights:
    return MasterWeights(list(module.parameters()), [1e-2, 3e-2], [0.1, 0.0], horizon=20, threads=threads)


def train(module: nn.Module, masters: MasterWeights, steps: range, threads: int) -> list[float]:
    losses = []
    for number in steps:
        losses.append(sum(masters.add_gradients([partial(part_loss, module, threads, at) for at in range(threads)])))
        masters.clip_gradients(0.5)
        masters.step(number, 1.0)
    return losses


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_steps_equal_one_optimizer_on_the_whole_batch(threads: int) -> None:
    plain, split = small_module(), small_module()
    first, last = plain.parameters()
    optimizer = torch.optim.AdamW(
        [{"params": [first], "lr": 1e-2, "weight_decay": 0.1}, {"params": [last], "lr": 3e-2, "weight_decay": 0.0}],
        betas=BETAS,
    )
    for _ in range(8):
        optimizer.zero_grad()
        torch.autograd.backward(part_loss(plain, 1, 0)[0])
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    losses = train(split, masters_of(split, threads), range(1, 9), threads)
    assert losses[-1] < losses[0]
    for a, b in zip(plain.parameters(), split.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_bfloat16_weights_are_their_masters_rounded() -> None:
    module = small_module().to(torch.bfloat16)
    masters = MasterWeights(list(module.parameters()), [1e-4, 1e-4], [0.0, 0.0], horizon=20, threads=2)
    before = [master.detach().clone() for master in masters.masters]
    for number in range(1, 4):  # steps too small for bfloat16 add up
        masters.add_gradients([lambda: (module(INPUTS.to(torch.bfloat16)).float().square().mean(), None)])
        masters.clip_gradients(1.0)
        masters.step(number, 1.0)
    for weight, master, old in zip(module.parameters(), masters.masters, before, strict=True):
        assert torch.equal(weight, master.to(torch.bfloat16))
        assert (master - old).abs().max() > 1e-4


def test_average_lags_behind_and_is_used_in_the_context_only() -> None:
    module = small_module()
    masters = masters_of(module, 2)
    start = [weight.detach().clone() for weight in module.parameters()]
    train(module, masters, range(1, 41), 2)
    own = copy.deepcopy(module.state_dict())
    with masters.averaged():
        for weight, average, first, last in zip(
            module.parameters(), masters.averages, start, own.values(), strict=True
        ):
            assert torch.equal(weight, average)
            assert 0 < (weight - last).norm() < (first - last).norm()
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), own.values(), strict=True))


def test_average_before_its_first_update_is_the_weights_as_they_are() -> None:
    module = small_module()
    start = [weight.detach().clone() for weight in module.parameters()]
    masters = masters_of(module, 2)
    train(module, masters, range(1, 4), 2)
    for average, stored, master, first in zip(
        masters.averages, masters.state()["averages"], masters.masters, start, strict=True
    ):
        assert torch.equal(average, master)
        assert torch.equal(stored, master)
        assert not torch.equal(average, first)


@pytest.mark.parametrize("broken_after", [5, 15])
def test_restored_state_continues_as_without_a_break(broken_after: int) -> None:
    whole, interrupted, resumed = small_module(), small_module(), small_module()
    whole_weights = masters_of(whole, 2)
    train(whole, whole_weights, range(1, 31), 2)
    first = masters_of(interrupted, 2)
    train(interrupted, first, range(1, broken_after + 1), 2)
    second = masters_of(resumed, 2)
    second.restore(copy.deepcopy(first.state()))
    train(resumed, second, range(broken_after + 1, 31), 2)
    for a, b in zip(
        [*whole.parameters(), *whole_weights.averages], [*resumed.parameters(), *second.averages], strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_sizes_are_split_into_even_groups() -> None:
    sizes = [10, 1, 7, 3, 9, 2]
    groups = balanced_groups(sizes, 2)
    assert sorted(at for group in groups for at in group) == list(range(6))
    assert abs(sum(sizes[at] for at in groups[0]) - 16) <= 1

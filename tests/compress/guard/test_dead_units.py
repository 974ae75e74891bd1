"""Dead units: found where they are planted, in the run itself too, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekit.compress.guard.dead_units import EVERY, FEWEST_LOOKS, DeadUnits


def net(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    head = [nn.Flatten(), nn.Linear(8 * 36, 20), nn.ReLU(), nn.Linear(20, 2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), activation, *head)


def epoch(model: nn.Module, units: DeadUnits, steps: int = EVERY * FEWEST_LOOKS) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        model.zero_grad()
        output: Tensor = model(torch.randn(4, 3, 8, 8, generator=generator))
        output.square().sum().backward()  # type: ignore[no-untyped-call]
        units.look(step)


def test_planted_dead_units_are_counted_in_their_layer_and_said_once() -> None:
    model = net(nn.ReLU())
    with torch.no_grad():
        model[0].bias[2:5] = -1e3  # type: ignore[index,operator]
    units = DeadUnits(model, 1000)
    epoch(model, units)
    (trouble,) = units.judge()
    assert trouble.kind == "dead units"
    assert trouble.layer == "0"
    assert "3 of 8 in 0" in trouble.message
    assert not trouble.serious
    epoch(model, units)
    assert units.judge() == []
    with torch.no_grad():
        model[0].bias[6] = -1e3  # type: ignore[index,operator]
    epoch(model, units)
    assert "4 of 8 in 0" in units.judge()[0].message


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.GELU()])
def test_healthy_nets_are_left_in_peace(activation: nn.Module) -> None:
    model = net(activation)
    units = DeadUnits(model, 1000)
    epoch(model, units, EVERY * 6)
    assert units.judge() == []


def test_a_unit_that_one_batch_in_the_epoch_reaches_lives_and_few_looks_say_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[0].bias.zero_()
        model[2].weight.fill_(1.0)
    units = DeadUnits(model, 1000)
    for step in range(FEWEST_LOOKS + 1):
        model.zero_grad()
        inputs = -torch.ones(2, 4)
        inputs[0, step % 4] = 1.0  # each batch turns on another unit
        model(inputs).sum().backward()
        units.look(step * EVERY)
    assert units.judge() == []
    model.zero_grad()
    model(-torch.ones(2, 4)).sum().backward()
    units.look(0)
    assert units.judge() == []


def test_a_layer_that_is_not_trained_is_not_dead() -> None:
    model = net(nn.ReLU())
    frozen, unused = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)
    both = nn.ModuleList([model, frozen, unused])
    units = DeadUnits(both, 1000)
    epoch(model, units)
    assert units.judge() == []

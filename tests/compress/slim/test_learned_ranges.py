"""Ranges in training: their gradient is that of the rounding, ends keep their sign, and copies have their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgekit.compress.slim import learned_ranges
from edgekit.compress.slim.codes import (
    ActivationCodes,
    activation_points,
    code_input,
    code_output,
    learn_ranges,
    record_ranges,
    set_ranges,
    without_codes,
)
from edgekit.compress.slim.learned_ranges import PART, RATE, LearnedSpan


class Chain(nn.Module):
    """Parts one after the other, beside which the ranges have a place."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.parts(x)
        return result


def span_of(chain: Chain, part: int = 0) -> LearnedSpan:
    """Return the span of what goes into a part."""
    codes = chain.parts[part].input_codes
    assert isinstance(codes, ActivationCodes)
    return codes.learned[0]


def net(**ranges: tuple[float, float]) -> Chain:
    """Return two layers with codes in front of each and behind the last, ranges learned."""
    torch.manual_seed(0)
    made = Chain(nn.Linear(4, 4), nn.Linear(4, 4))
    code_input(made.parts[0], ActivationCodes("a"))
    code_input(made.parts[1], ActivationCodes("b"))
    code_output(made.parts[1], ActivationCodes("c"))
    set_ranges(made, {"a": (-1.0, 1.0), "b": (-1.0, 1.5), "c": (-0.5, 0.5), **ranges})
    learn_ranges(made)
    return made


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_gradient_is_that_of_rounding_with_straight_through_steps(
    monkeypatch: pytest.MonkeyPatch, symmetric: bool
) -> None:
    """Against autograd through clamp and a rounding whose gradient is 1, the formula of LSQ (§2.1)."""
    monkeypatch.setattr(learned_ranges, "PART", 1)
    torch.manual_seed(0)
    x = torch.randn(64, 32)
    weights = torch.randn(64, 32)
    codes = ActivationCodes("x", symmetric=symmetric)
    codes.span(-1.0, 1.0 if symmetric else 1.5)
    wrapped = Chain(codes)
    learn_ranges(wrapped)
    (wrapped(x) * weights).sum().backward()
    (span,) = (module for module in wrapped.modules() if isinstance(module, LearnedSpan))
    assert span.shifts.grad is not None
    found = span.shifts.grad * (x.numel() * 127) ** 0.5

    shifts = torch.ones_like(span.shifts, requires_grad=True)
    ends = torch.tensor([codes.low, codes.high])[-len(shifts) :] * torch.exp(RATE * (shifts - 1))
    step = ends[-1] / 127 if symmetric else (ends[1] - ends[0]) / 255
    least, most = (-ends[0], ends[0]) if symmetric else (ends[0], ends[1])
    # codes are whole: the ends that are spanned are off those asked for by less than half a step
    inside = (x >= (codes.low - codes.scale / 2)) & (x <= codes.high + codes.scale / 2)
    whole = (x / step).detach().round()
    rounded = (whole - (x / step).detach()) * step + x
    naive = torch.where(inside, rounded, torch.where(x > 0, most, least))
    (naive * weights).sum().backward()
    assert shifts.grad is not None
    torch.testing.assert_close(found, shifts.grad, rtol=0.02, atol=0.02 * float(shifts.grad.abs().max()))


def test_a_part_of_a_batch_tells() -> None:
    torch.manual_seed(0)
    x = 10 * torch.randn(8 * PART, 4)
    other = torch.zeros_like(x)
    other[::PART] = x[::PART]  # spread over the batch, whose rows are sorted by class
    assert {row % 4 for row in range(0, len(x), PART)} == {0, 1, 2, 3}  # of all four places of MobileViT's patches
    found = []
    for batch in (x, other):
        model = net()
        model(batch).sum().backward()
        found.append(span_of(model).shifts.grad)
    assert found[0] is not None and bool((found[0] != 0).any())
    torch.testing.assert_close(found[0], found[1])


def test_learning_begins_where_calibration_ended() -> None:
    learned = net()
    held = copy.deepcopy(learned)
    for codes in activation_points(held):
        codes.learned = ()
    x = torch.randn(16, 4)
    assert torch.equal(learned(x), held(x))


def test_what_is_too_narrow_grows_and_what_is_too_wide_shrinks() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 4)
    for reach, grows in ((0.5, True), (50.0, False)):
        model = Chain(ActivationCodes("x"))
        set_ranges(model, {"x": (-reach, reach)})
        learn_ranges(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            optimizer.step()
        low, high = record_ranges(model)["x"]
        assert (high > reach) is grows and (low < -reach) is grows


def test_an_end_at_zero_stays_and_the_floor_holds() -> None:
    model = Chain(ActivationCodes("relu"), ActivationCodes("before a SiLU", floor=-6.0))
    set_ranges(model, {"relu": (0.0, 1.0), "before a SiLU": (-40.0, 2.0)})
    learn_ranges(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    ranges = record_ranges(model)
    assert ranges["relu"][0] == 0.0 and ranges["relu"][1] > 1.3
    assert ranges["before a SiLU"][0] == -6.0


def test_those_with_one_range_go_on_together() -> None:
    model = net(b=(-1.0, 1.0))
    assert len({id(codes.learned[0]) for codes in activation_points(model)}) == 2
    names = [name for name, _ in model.named_parameters()]
    assert len([name for name in names if "shifts" in name]) == 2  # one name each: a moving average takes each once
    with torch.no_grad():
        span_of(model).shifts.add_(0.01)
    ranges = record_ranges(model)
    assert ranges["a"] == ranges["b"] != (-1.0, 1.0)


def test_a_copy_learns_its_own_ranges_and_all_comes_out_again() -> None:
    model = net()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for codes in activation_points(other):
            codes.learned[0].shifts.add_(0.01)
    assert record_ranges(model) != record_ranges(other)
    without_codes(other)
    assert other.state_dict().keys() == Chain(nn.Linear(4, 4), nn.Linear(4, 4)).state_dict().keys()

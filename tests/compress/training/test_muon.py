"""Muon: orthogonal updates for matrices, AdamW to the bit of rounding for everything else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekit.compress.training.muon import Muon, is_matrix, orthogonal
from tests.tolerances import FP32_EXACT


@pytest.mark.parametrize("shape", [(64, 320), (320, 64), (48, 48), (2, 9)])
def test_an_update_has_the_directions_of_the_matrix_and_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonal(matrix)
    assert made.shape == matrix.shape
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.25
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ made @ vt.T  # diagonal in the matrix's own singular vectors
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-3
    assert inside.diagonal().min() > 0.6


def test_which_weights_are_matrices() -> None:
    assert is_matrix(nn.Linear(3, 5).weight)
    assert is_matrix(nn.Conv2d(8, 16, 3).weight)
    assert not is_matrix(nn.Conv2d(8, 8, 3, groups=8).weight)
    assert not is_matrix(nn.Linear(3, 5).bias)
    assert not is_matrix(nn.Linear(3, 1).weight)


def test_what_is_no_matrix_is_stepped_as_by_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7,), (6, 1, 3, 3))]
    theirs = copy.deepcopy(ours)
    one = Muon([{"params": ours, "weight_decay": 0.1}], lr=0.01, betas=(0.8, 0.95))
    other = torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for _ in range(20):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=FP32_EXACT)


def test_matrices_move_as_far_as_adamw_would_move_them() -> None:
    """arXiv 2502.16982, §2.2: the update's root mean square is 0.2 whatever the shape, before the learning rate."""
    for shape in ((32, 512), (512, 32), (64, 16, 3, 3)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        Muon([{"params": [weight], "weight_decay": 0.0}], lr=1.0).step()
        assert 0.14 < float(weight.detach().square().mean().sqrt()) < 0.25


def test_decay_is_decoupled_from_the_gradient() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([{"params": [weight], "weight_decay": 0.5}], lr=0.1).step()
    assert torch.allclose(weight, torch.full((4, 4), 0.95))


def test_it_fits_badly_scaled_data_and_goes_on_bit_for_bit_from_its_state() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 12, generator=generator) * torch.logspace(-1.5, 0.5, 12)
    targets = inputs @ torch.randn(12, 5, generator=generator)

    def make() -> tuple[nn.Module, Muon]:
        torch.manual_seed(0)
        net = nn.Linear(12, 5)
        return net, Muon([{"params": list(net.parameters()), "weight_decay": 0.0}], lr=0.05)

    def train(net: nn.Module, optimizer: Muon, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (net(inputs) - targets).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return float(loss.detach())

    net, optimizer = make()
    first = train(net, optimizer, 30)
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    last = train(net, optimizer, 170)
    assert last < 0.2 * first

    again, resumed = make()
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(again, resumed, 170)
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])

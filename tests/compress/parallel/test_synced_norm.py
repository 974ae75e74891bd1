"""Synchronised batch norm in real processes: the outputs, gradients and statistics of one norm over the whole batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from processes_for_tests import launch
from timm.layers import BatchNormAct2d
from tolerances import FP32_EXACT
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.parallel.processes import join
from edgekit.compress.parallel.synced_norm import SyncedBatchNorm, synchronise_norms

KINDS = ("plain", "timm", "bare", "average", "untracked", "vectors", "last")
WORLD = 3
SIZES = (5, 1, 2)
"""Unequal, and one whose own variance is 0."""


def make_norm(kind: str) -> nn.Module:
    torch.manual_seed(1)
    channels = 4
    norms: dict[str, nn.Module] = {
        "plain": nn.BatchNorm2d(channels),
        "timm": BatchNormAct2d(channels, act_layer=nn.SiLU),
        "bare": nn.BatchNorm2d(channels, affine=False),
        "average": nn.BatchNorm2d(channels, momentum=None),
        "untracked": nn.BatchNorm2d(channels, track_running_stats=False),
        "vectors": nn.BatchNorm1d(channels),
        "last": nn.BatchNorm2d(channels),
    }
    norm = norms[kind]
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


def batches(kind: str) -> list[tuple[Tensor, Tensor]]:
    """Return two (input, gradient of the output) of all processes together, far from mean 0."""
    generator = torch.Generator().manual_seed(0)
    shape = (sum(SIZES), 4) if kind == "vectors" else (sum(SIZES), 4, 3, 3)
    found = []
    for _ in range(2):
        x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
        x = 100 + 3 * x
        found.append((x.contiguous(memory_format=torch.channels_last) if kind == "last" else x, dy))
    return found


def through(net: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Run training steps without an optimizer; return outputs, gradients and statistics, and an evaluation."""
    found: dict[str, Tensor] = {}
    for number, (x, dy) in enumerate(pairs):
        x = x.clone().requires_grad_()
        y = net(x)
        (y * dy).sum().backward()
        assert x.grad is not None
        found |= {f"{number}.y": y.detach(), f"{number}.dx": x.grad}
    found |= {f"grad.{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    found |= {name: buffer.float() for name, buffer in net.named_buffers()}
    return found | {"evaluated": net.eval()(pairs[0][0]).detach()}


def work(folder: Path) -> None:
    for kind in KINDS:
        work_on(folder, kind)


def work_on(folder: Path, kind: str) -> None:
    processes = join(torch.device("cpu"))
    net = nn.Sequential(make_norm(kind))
    names = [*net.state_dict()]
    synchronise_norms(net, processes.device)
    assert isinstance(net[0], SyncedBatchNorm)
    assert [*net.state_dict()] == names
    parts = [(torch.split(x, SIZES)[processes.rank], torch.split(dy, SIZES)[processes.rank]) for x, dy in batches(kind)]  # type: ignore[no-untyped-call]
    torch.save(through(net, parts), folder / f"{kind}-{processes.rank}.pt")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("norms")
    assert launch(WORLD, work, folder).wait() == [0] * WORLD
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_norm_over_the_whole_batch(kind: str, shared: Path) -> None:
    parts: list[dict[str, Tensor]] = [torch.load(shared / f"{kind}-{rank}.pt") for rank in range(WORLD)]
    for name, whole in through(nn.Sequential(make_norm(kind)), batches(kind)).items():
        if (kind, name) == ("untracked", "evaluated"):
            continue  # of each process's own samples, as evaluation is not shared alike
        own = [part[name] for part in parts]
        if name.startswith("grad."):  # each has the sum over its own samples
            found = torch.stack(own).sum(0)
        elif "running" in name or "tracked" in name:
            assert all(torch.equal(own[0], other) for other in own), f"{name} differs between processes"
            found = own[0]
        else:
            found = torch.cat(own)
        scale = max(1.0, float(whole.abs().max()))
        assert float((found - whole).abs().max()) < 20 * FP32_EXACT * scale, name


def work_frozen(folder: Path) -> None:
    processes = join(torch.device("cpu"))
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    net[0].requires_grad_(False)
    synchronise_norms(net, processes.device)
    kinds: list[Any] = [type(module) for module in net]
    assert kinds == [nn.BatchNorm1d, SyncedBatchNorm]
    x = torch.full((2, 3), float(os.environ["RANK"]))
    net(F.relu(x))
    (folder / os.environ["RANK"]).touch()


def test_a_frozen_norm_stays_as_it_is(tmp_path: Path) -> None:
    assert launch(2, work_frozen, tmp_path).wait() == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2

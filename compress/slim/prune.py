"""Structured pruning: which hidden channels, units and heads matter least, and the student without them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.pictures.source import Batch
from edgekit.errors import UsageError
from edgekit.models.student import Student
from edgekit.models.widths import Kind, Place, cut, places

Importance = Literal["taylor", "magnitude"]

CHUNK = 8
"""Channels and units go eight at a time: vector kernels pad to that, so odd widths save nothing."""

PICTURES = 512
"""Training pictures that importance is measured on."""

LEAST = 0.25
"""Share of each place that stays, whatever it matters: a place of nothing would cut the net."""


@dataclass(frozen=True)
class Cut:
    """What is kept.

    Attributes:
        kept: path in the backbone to the numbers of the channels, units or heads that stay.
        macs: share of the multiply-accumulates of all prunable places that go.
    """

    kept: Mapping[str, tuple[int, ...]]
    macs: float


def choose(
    costs: Mapping[str, float], importance: Mapping[str, Tensor], kinds: Mapping[str, Kind], share: float
) -> Cut:
    """Choose what goes: the chunks that matter least for what they cost, until `share` of the cost is gone.

    Args:
        costs: by path, multiply-accumulates of one channel, unit or head.
        importance: by path, (width,) ≥ 0.
        kinds: by path, what is counted there; heads go one by one, the others in chunks of eight.
        share: of Σ cost · width over all places, in (0, 1).

    Raises:
        UsageError: so much cannot go, as a quarter of every place stays.
    """
    total = sum(costs[path] * len(values) for path, values in importance.items())
    chunks: list[tuple[float, str, Tensor]] = []
    for path, values in importance.items():
        size = 1 if kinds[path] == "heads" else CHUNK
        order = torch.argsort(values)
        removable = int(len(values) * (1 - LEAST)) // size
        chunks += [
            (float(values[part].sum()) / (costs[path] * size), path, part)
            for part in torch.split(order[: removable * size], size)
            if len(part)
        ]
    gone: dict[str, set[int]] = {path: set() for path in importance}
    cost = 0.0
    for _, path, part in sorted(chunks, key=lambda chunk: chunk[0]):
        if cost >= share * total:
            break
        gone[path].update(part.tolist())
        cost += costs[path] * len(part)
    if cost < 0.95 * share * total:
        raise UsageError(
            f"--prune {share:g} is more than this student can lose: {cost / total:.2f} of its prunable layers' "
            f"multiply-accumulates at most, as a quarter of each stays"
        )
    kept = {
        path: tuple(n for n in range(len(values)) if n not in gone[path])
        for path, values in importance.items()
        if gone[path]
    }
    return Cut(kept, cost / total)


def pruned(student: Student, kept: Mapping[str, tuple[int, ...]]) -> Student:
    """Return a copy of `student` that is physically smaller; its spec records the widths."""
    result = copy.deepcopy(student)
    cut(result.backbone, kept)
    widths = {**dict(student.spec.widths), **{path: len(numbers) for path, numbers in kept.items()}}
    result.spec = replace(student.spec, widths=tuple(widths.items()))
    return result


def without_least(student: Student, share: float, batches: Iterable[Batch], kind: Importance = "taylor") -> Student:
    """Return a copy of `student` without what matters least.

    Args:
        student: a plain one.
        share: of the multiply-accumulates of its prunable layers to take away, in (0, 1).
        batches: training batches; the first `PICTURES` pictures are looked at.
        kind: of importance.

    Raises:
        UsageError: nothing can be pruned, or not so much.
    """
    found = prunable(student)
    student = copy.deepcopy(student).eval()
    importance = importance_of(student, found, _first(batches, PICTURES), kind)
    cut_out = choose(measure_costs(student, found), importance, {place.path: place.kind for place in found}, share)
    return pruned(student, cut_out.kept)


def _first(batches: Iterable[Batch], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    seen = 0
    for batch in batches:
        yield batch.images, batch.labels
        seen += len(batch.labels)
        if seen >= count:
            return


def prunable(student: Student) -> list[Place]:
    """Return the places of a student's backbone whose width can change.

    Raises:
        UsageError: there are none.
    """
    found = places(student.backbone)
    if not found:
        raise UsageError(
            f"{student.spec.arch} has nothing that --prune knows: it takes the hidden channels of timm's depthwise "
            f"bottlenecks, MLP units and attention heads, as MobileViT has them"
        )
    return found


def measure_costs(student: Student, found: Iterable[Place]) -> dict[str, float]:
    """Return by path the multiply-accumulates that one channel, unit or head takes for a picture."""
    costs: dict[str, float] = {}
    size = student.spec.image_size
    with ExitStack() as stack:
        for place in found:
            module = student.backbone.get_submodule(place.path)

            def note(_: nn.Module, given: Any, output: Tensor, place: Place = place) -> None:
                costs[place.path] = _cost(student.backbone.get_submodule(place.path), place, given[0], output)

            stack.callback(module.register_forward_hook(note).remove)
        with torch.no_grad():
            student.eval().from_frames(torch.zeros(1, 3, size, size))
    return costs


def _cost(module: Any, place: Place, x: Tensor, y: Tensor) -> float:
    if place.kind == "channels":
        before, after = x.shape[2] * x.shape[3], y.shape[2] * y.shape[3]
        kernel = module.conv2_kxk.conv.weight[0].numel()
        return float(x.shape[1] * before + (kernel + y.shape[1]) * after)
    dim = module.fc1.weight.shape[1] if place.kind == "units" else x.shape[-1]
    tokens = x.numel() // dim
    if place.kind == "units":
        return float(2 * dim * tokens)
    head: int = module.head_dim
    return float(4 * dim * head * tokens + 2 * head * tokens * x.shape[1])


def importance_of(
    student: Student, found: Iterable[Place], pictures: Iterable[tuple[Tensor, Tensor]], kind: Importance = "taylor"
) -> dict[str, Tensor]:
    """Return by path how much each channel, unit or head matters, (width,) ≥ 0.

    "taylor": the expected squared change of the loss if it were gone, to first order: E[(∂L/∂m)²] for a factor m = 1 on
    it, one gradient for each picture (Molchanov et al. 2019, arXiv 1906.10771, eq. 8). L is the cross-entropy of the
    label, or of the student's own answer where there is none.
    "magnitude": Σ w² of the weights that read it (Li et al. 2017, arXiv 1608.08710, §3.1).

    Args:
        student: in eval mode.
        found: the places.
        pictures: images (B, 3, H, W) in [0, 1] and labels (B,), −1 for none; "magnitude" reads none.
        kind: of importance.
    """
    found = list(found)
    if kind == "magnitude":
        return {place.path: _magnitude(student.backbone.get_submodule(place.path), place) for place in found}
    sums = {place.path: torch.zeros(place.width, dtype=torch.float64) for place in found}
    student.eval()
    for images, labels in pictures:
        with _factors(student.backbone, found, len(images)) as factors:
            logits = student.from_frames(images).logits
            target = torch.where(labels >= 0, labels, logits.argmax(1))
            loss = F.cross_entropy(logits, target, reduction="sum")
            gradients = torch.autograd.grad(loss, list(factors.values()))
        for path, gradient in zip(factors, gradients, strict=True):
            sums[path] += gradient.double().square().sum(0)
    return sums


@contextmanager
def _factors(backbone: nn.Module, found: Iterable[Place], batch: int) -> Iterator[dict[str, Tensor]]:
    """Put a factor of one, (batch, width), on every channel, unit and head within the block."""
    factors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for place in found:
            factor = torch.ones(batch, place.width, requires_grad=True)
            factors[place.path] = factor
            last = _reader(backbone.get_submodule(place.path), place)

            def scale(_: nn.Module, given: tuple[Tensor, ...], factor: Tensor = factor) -> tuple[Tensor]:
                x = given[0]
                channel = 2 if x.ndim == 3 else 1  # tokens (B, N, d), maps (B, C, H, W)
                wide = factor.repeat_interleave(x.shape[channel] // factor.shape[1], 1)
                # patches of one picture follow each other in the batch
                rows = wide.repeat_interleave(x.shape[0] // len(factor), 0)
                shape = [len(rows)] + [1] * (x.ndim - 1)
                shape[channel] = x.shape[channel]
                return (x * rows.reshape(shape),)

            stack.callback(last.register_forward_pre_hook(scale).remove)
        yield factors


def _reader(module: Any, place: Place) -> nn.Module:
    """Return the layer that reads what is cut."""
    if place.kind == "channels":
        return cast(nn.Module, module.conv3_1x1.conv)
    return cast(nn.Module, module.fc2 if place.kind == "units" else module.proj)


def _magnitude(module: Any, place: Place) -> Tensor:
    weight = cast(Tensor, cast(Any, _reader(module, place)).weight).detach().double()
    columns = weight.flatten(2).square().sum((0, 2)) if weight.ndim > 2 else weight.square().sum(0)
    return columns.reshape(place.width, -1).sum(1)

"""The ranges of a student's fake quantization, chosen on calibration pictures as the exporters choose theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from edgekit.compress.slim.codes import ActivationCodes, CodedSiLU, RowCodes, activation_points, set_ranges
from edgekit.compress.slim.codes import Observe as ObserveCodes
from edgekit.compress.slim.weight_codes import WeightCodes
from edgekit.export.calibration.measured import (
    MEASURED_IMAGES,
    Ranges,
    Values,
    first_images,
    nearest_ranges,
    noise_share,
)
from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.calibration.statistics import Histograms, Observe, collect
from edgekit.export.rewrites.mobilevit import TokenMobileVitBlock
from edgekit.export.session import FloatArray
from edgekit.models.int8_student import Int8MobileVitBlock
from edgekit.models.student import Student

BATCH = 16
"""Pictures at a time, where ways of choosing ranges are compared."""


def calibrate(
    student: Student, batches: Callable[[], Iterable[FloatArray]], config: RangeConfig | None = None
) -> Ranges:
    """Set the ranges of a student's fake quantization with the exporters' engine, as in its float file; return them.

    Args:
        student: a result of `edgekit.compress.slim.simulate.simulate`.
        batches: gives the same calibration images (B, 3, H, W) float32 in [0, 1] each time it is called.
        config: how ranges are chosen; None tries some ways on the first images, as the exporters do.

    Raises:
        DataError: see `edgekit.export.calibration.statistics.collect`.
    """
    statistics = _statistics(student, batches)

    def spanned(ranges: Ranges) -> Ranges:
        _join_concatenations(student, ranges)
        set_ranges(student, ranges)
        return ranges

    if config is not None:
        return spanned(statistics.ranges(config))
    shown = torch.from_numpy(first_images(batches, MEASURED_IMAGES))
    with unrounded(student):
        want = outputs(student, shown)

    def noise(ranges: Ranges) -> float:
        spanned(ranges)
        return noise_share(want, outputs(student, shown))

    return spanned(nearest_ranges(statistics, noise))


@torch.no_grad()
def outputs(student: Student, images: Tensor) -> list[Values]:
    """Return the logits and the embeddings of images (N, 3, H, W)."""
    said = [student.from_frames(part) for part in images.split(BATCH)]  # type: ignore[no-untyped-call]
    parts = ([output.logits for output in said], [output.embedding for output in said])
    return [torch.cat(part).double().numpy() for part in parts]


def _statistics(student: Student, batches: Callable[[], Iterable[FloatArray]]) -> Histograms:
    """Take the statistics of all activations in float."""

    def run(images: FloatArray, observe: Observe) -> None:
        note_redundant(student, torch.from_numpy(images), lambda codes, x: observe(codes.name, x.cpu().numpy()))

    return collect(run, batches)


@torch.no_grad()
def note_redundant(student: Student, images: Tensor, observe: ObserveCodes = lambda codes, x: None) -> None:
    """Note which codes see a tensor that others saw before, for images (N, 3, H, W); show all that pass."""
    # the tensors stay alive, so that no id comes twice; an activation in place makes another version of one
    seen: dict[tuple[int, int], tuple[ActivationCodes, Tensor]] = {}

    def look(codes: ActivationCodes, x: Tensor) -> None:
        first, _ = seen.setdefault((id(x), x._version), (codes, x))
        codes.redundant = first is not codes and first.symmetric == codes.symmetric
        observe(codes, x)

    with unrounded(student, look):
        student.from_frames(images)


@contextmanager
def unrounded(student: Student, observer: ObserveCodes = lambda codes, x: None) -> Iterator[None]:
    """Let a student compute in float, and `observer` see what passes its codes."""
    points = activation_points(student)
    rounding = [module for module in student.modules() if isinstance(module, WeightCodes | CodedSiLU | RowCodes)]
    try:
        for module in rounding:
            module.rounded = False
        for codes in points:
            codes.observer = observer
        yield
    finally:
        for codes in points:
            codes.observer = None
        for module in rounding:
            module.rounded = True


def _join_concatenations(student: Student, ranges: Ranges) -> None:
    """Give what LiteRT concatenates in codes one range: a block's input and result, and everything that is they.

    Statistics of one tensor are equal to the last bit wherever they are taken, and so tell who else holds it.
    """
    kinds = TokenMobileVitBlock | Int8MobileVitBlock
    blocks = [(n, m) for n, m in student.backbone.named_modules() if isinstance(m, kinds)]
    for name, block in blocks:
        result = "act" if isinstance(block, TokenMobileVitBlock) else "conv_proj.act"
        ends = (f"{name}.conv_kxk.conv.in", f"{name}.{result}", f"{name}.conv_fusion.conv.in")
        if block.conv_fusion is None or not all(end in ranges for end in ends):
            continue
        joined = (min(ranges[end][0] for end in ends), max(ranges[end][1] for end in ends))
        same = {ranges[end] for end in ends}
        ranges.update({point: joined for point, span in ranges.items() if span in same})

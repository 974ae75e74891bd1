"""The choice of a precision: planted slow and wrong candidates are rejected, and the statistics hold by themselves."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekit.errors import UsageError
from edgekit.export.choice.candidates import Candidate, ChoiceConfig, choose, measure, reasons
from edgekit.export.choice.paired import accuracy_drop, mcnemar_mid_p, speedup
from edgekit.export.choice.sensitivity import worst_layers
from edgekit.export.onnx.convert import export_onnx
from edgekit.export.onnx.session import OnnxSession
from edgekit.export.onnx.weights import quantize_onnx_weights
from edgekit.export.precisions import AUTO, PRECISIONS, in_format, parse_precisions
from edgekit.export.runtimes import FORMATS
from edgekit.export.session import FloatArray, Outputs
from edgekit.interval import Interval
from tests.export.nets_for_tests import TwoHeads, pictures

SIZE = 64


class SlowSession(OnnxSession):
    """A file whose every call waits, as one does whose graph falls apart into pieces."""

    def __call__(self, images: FloatArray) -> Outputs:
        time.sleep(0.02)
        return super().__call__(images)


def with_wrong_head(source: Path, out: Path) -> Path:
    """Write `source` with its head's weights rolled by one: every class gets the next one's score."""
    model = onnx.load(source)
    head = next(t for t in reversed(model.graph.initializer) if len(t.dims) == 2 and 10 in t.dims)
    values = numpy_helper.to_array(head)
    rolled = np.roll(values, 1, axis=list(head.dims).index(10))
    head.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rolled), head.name))
    onnx.save(model, out)
    return out


def test_planted_slow_and_wrong_candidates_are_rejected(tmp_path: Path) -> None:
    source, weights = tmp_path / "fp32.onnx", tmp_path / "w8.onnx"
    export_onnx(TwoHeads("mobilenetv3_small_050").eval(), SIZE, source)
    quantize_onnx_weights(source, weights)
    images = pictures(60, SIZE).numpy()
    base = OnnxSession(source)
    labels = np.concatenate([base(image[None])["logits"] for image in images]).argmax(1)
    labels[::5] = (labels[::5] + 1) % 10  # the float file is right on four of five
    found = choose(
        measure(
            base,
            {
                "good": (OnnxSession(weights), weights.stat().st_size),
                "slow": (SlowSession(source), 1),
                "wrong": (OnnxSession(with_wrong_head(source, tmp_path / "wrong.onnx")), 1),
            },
            (images, labels),
            ChoiceConfig(max_drop=25.0, rounds=15),
            timed=True,
        )
    )
    good, slow, wrong = found
    assert slow.verdict.startswith("slower than fp32: 0.") and slow.drop is not None and slow.drop.value == 0
    assert "points" in wrong.verdict and wrong.verdict.startswith("loses ") and wrong.p_value is not None
    assert wrong.p_value < 1e-4
    assert not slow.chosen and not wrong.chosen
    # the same kernels run, but a machine that others use may say that they are slower by some percent
    assert good.chosen or good.verdict.startswith("slower than fp32: 0.9")


def candidate(name: str, faster: float | None, snr_db: float, size: int = 100, why: tuple[str, ...] = ()) -> Candidate:
    interval = Interval(faster, faster, faster) if faster else None
    return Candidate(name, size, why, Interval(0.0, -0.01, 0.01), 1.0, snr_db, interval)


def chosen(*candidates: Candidate) -> str | None:
    return next((c.name for c in choose(candidates) if c.chosen), None)


def test_the_fastest_is_kept_and_among_equals_the_closest() -> None:
    static, mixed, weights = candidate("int8", 2.0, 26), candidate("mixed", 1.96, 29), candidate("w8", 1.0, 36)
    assert chosen(static, mixed, weights) == "mixed", "2 % are no difference, 3 dB are"
    assert chosen(static, candidate("mixed", 1.8, 29)) == "int8", "10 % are one"
    assert chosen(static, weights) == "int8"
    assert chosen(candidate("int8", 2.0, 26, why=("loses",)), weights) == "w8"
    assert chosen(candidate("int8", 2.0, 26, why=("loses",))) is None


def test_without_times_the_smallest_is_kept() -> None:
    assert chosen(candidate("int8", None, 44, 130), candidate("palette6", None, 30, 100)) == "palette6"


def test_limits() -> None:
    assert reasons(Interval(0.010, 0.0, 0.02), Interval(0.985, 0.9, 1.0), 1.0) == ()
    assert reasons(Interval(0.011, 0.0, 0.02), None, 1.0) == ("loses 1.1 points (0.0 to 2.0), more than 1",)
    assert reasons(Interval(0.0, 0.0, 0.0), Interval(0.9, 0.7, 1.1), 1.0) == (), "slower was not shown"
    (slow,) = reasons(Interval(0.0, 0.0, 0.0), Interval(0.5, 0.4, 0.6), 1.0)
    assert slow == "slower than fp32: 0.50× its speed (0.40 to 0.60)"


def answers(both: int, lost: int, won: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    base = np.repeat([True, True, False, False], [both, lost, won, neither])
    own = np.repeat([True, False, True, False], [both, lost, won, neither])
    return base, own


def test_drop_by_hand() -> None:
    drop = accuracy_drop(*answers(80, 8, 2, 10))
    assert drop.value == pytest.approx(0.06)
    half = 1.959964 * math.sqrt(11 - 36 / 102) / 102
    assert (drop.low, drop.high) == pytest.approx((6 / 102 - half, 6 / 102 + half))
    nothing = accuracy_drop(*answers(50, 0, 0, 50))
    assert nothing.value == 0 and nothing.low < 0 < nothing.high, "no difference seen is not certainty"


def test_the_interval_of_the_drop_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        both, lost, won, neither = rng.multinomial(256, [0.6, 0.04, 0.02, 0.34])
        drop = accuracy_drop(*answers(int(both), int(lost), int(won), int(neither)))
        covered += drop.low <= 0.02 <= drop.high
    assert 0.92 < covered / 400 < 0.99


def test_mcnemar_by_hand() -> None:
    assert mcnemar_mid_p(*answers(5, 0, 0, 5)) == 1.0
    assert mcnemar_mid_p(*answers(0, 3, 0, 0)) == pytest.approx(2 * 0.5 * 0.125)
    assert mcnemar_mid_p(*answers(0, 1, 1, 0)) == pytest.approx(0.75)


def test_speedup_needs_only_pairs() -> None:
    rng = np.random.default_rng(1)
    machine = rng.uniform(1, 5, 41)  # the machine's slow and fast spells hit both alike
    found = speedup(machine * 3, machine * 2 * rng.uniform(0.99, 1.01, 41))
    assert found.low <= 1.5 <= found.high and found.high - found.low < 0.02
    covered = 0
    for _ in range(300):
        ratios = np.exp(rng.normal(0, 0.2, 40))
        interval = speedup(ratios, np.ones(40))
        covered += interval.low <= 1.0 <= interval.high
    assert 0.92 < covered / 300 < 0.995


def test_worst_layers() -> None:
    noises = {"stem": 4.0, "a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}
    assert worst_layers(noises) == ("stem", "a")
    assert worst_layers(noises, share=1.0) == ("stem", "a", "b", "c")
    assert worst_layers(noises, share=1.0, most=1) == ("stem",)
    assert worst_layers({}) == ()


def test_what_each_format_can_have() -> None:
    both = ("logits", "embedding")
    assert parse_precisions("all", FORMATS, both) == PRECISIONS
    assert parse_precisions("w8a8, fp32,auto", ("onnx", "tflite"), both) == ("int8", "fp32", AUTO)
    assert parse_precisions("palette6,w8", ("coreml",), both) == ("palette6", "w8")
    with pytest.raises(
        UsageError, match="onnx files cannot be palette6; allowed there: fp32, fp16, int8, mixed, dynam"
    ):
        parse_precisions("palette6", FORMATS, both)
    assert parse_precisions("int8,w8a8", FORMATS, both) == ("int8", "w8a8")
    assert [in_format(form, "w8a8") for form in ("onnx", "tflite", "coreml")] == ["int8", "int8", "w8a8"]
    with pytest.raises(UsageError, match="did you mean 'palette6'"):
        parse_precisions("pallete6", ("coreml",), both)
    with pytest.raises(UsageError, match="needs logits among --outputs"):
        parse_precisions("auto", FORMATS, ("embedding",))
    with pytest.raises(UsageError, match="names nothing"):
        parse_precisions(" ,", FORMATS, both)

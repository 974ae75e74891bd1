"""Classification judged: intervals against a naive bootstrap, pictures of any layout, runs and artifacts alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.bench.classification_intervals import classification_intervals
from edgekit.bench.classification_report import judge_classifier, judge_zeroshot
from edgekit.bench.labelled_pictures import labelled_pictures
from edgekit.bench.metrics import cross_entropy, expected_calibration_error, macro_f1
from edgekit.cli.main import run
from edgekit.errors import DataError, UsageError
from edgekit.models.prompts import TEMPLATES
from edgekit.terminal import Terminal
from tests.datasets_for_tests import draw

if TYPE_CHECKING:
    from whole_path_for_tests import WholePath

BAR = Terminal(-1).bar


def answers(count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    return rng.normal(size=(count, 4)) + 1.5 * np.eye(4)[labels], labels


def test_the_intervals_are_a_mirrored_bootstrap() -> None:
    logits, labels = answers(120, 0)
    found = classification_intervals(logits, labels, resamples=2000)
    rng = np.random.default_rng(9)
    for score, interval in (
        (macro_f1, found.macro_f1),
        (cross_entropy, found.cross_entropy),
        (expected_calibration_error, found.calibration_error),
    ):
        value = score(logits, labels)
        drawn = []
        for _ in range(1000):
            rows = rng.integers(0, 120, 120)
            drawn.append(score(logits[rows], labels[rows]))
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert interval.value == pytest.approx(value)
        assert interval.low == pytest.approx(min(value, max(0, 2 * value - high)), abs=0.15 * (high - low))
        assert interval.high == pytest.approx(max(value, 2 * value - low), abs=0.15 * (high - low))


def test_the_intervals_cover_the_truth() -> None:
    """Of 60 samples of 200 pictures, about 95 % of the intervals must hold what 200,000 pictures give."""
    truth = macro_f1(*answers(200_000, 1)), cross_entropy(*answers(200_000, 1))
    inside = [0, 0]
    for seed in range(60):
        found = classification_intervals(*answers(200, 100 + seed), resamples=400)
        for at, interval in enumerate((found.macro_f1, found.cross_entropy)):
            inside[at] += interval.low <= truth[at] <= interval.high
    assert min(inside) >= 52  # 95 % of 60 are 57; fewer than 52 has a chance under 1 %


def test_a_split_source_gives_its_validation_part_another_all(tmp_path: Path) -> None:
    draw(*(tmp_path / "flat" / name / f"{at}.png" for name in ("cat", "dog") for at in range(3)))
    draw(*(tmp_path / "split" / part / name / f"{part}.png" for part in ("train", "val") for name in ("cat", "dog")))
    flat, split = labelled_pictures(tmp_path / "flat"), labelled_pictures(tmp_path / "split", ("ape", "cat", "dog"))
    assert (flat.classes, flat.labels.tolist(), flat.subset) == (
        ("cat", "dog"),
        [0, 0, 0, 1, 1, 1],
        "6 pictures, the whole source",
    )
    assert (split.labels.tolist(), split.subset) == ([1, 2], "2 validation pictures")
    with pytest.raises(DataError, match="1 classes that the model does not know: dog"):
        labelled_pictures(tmp_path / "flat", ("ape", "cat"))
    with pytest.raises(DataError, match="is not there"):
        labelled_pictures(tmp_path / "none")


def test_a_run_is_judged_as_its_own_metrics_say(whole_path: WholePath) -> None:
    report = judge_classifier(whole_path.run, whole_path.drawings, 1, BAR)
    facts = json.loads((whole_path.run / "run.json").read_text(encoding="utf-8"))
    assert report.scores.top1.value == pytest.approx(facts["summary"]["val_acc"])
    content = report.to_json()
    assert content["top1"]["low"] < content["top1"]["value"] < content["top1"]["high"]
    assert content["pictures"] == facts["data"]["val"]


def test_an_artifact_of_a_bundle_is_judged_alike(whole_path: WholePath, tmp_path: Path) -> None:
    artifact = next(whole_path.bundle.glob("*fp32*.onnx"))
    scores, own = (judge_classifier(path, whole_path.drawings, 1, BAR).scores for path in (artifact, whole_path.run))
    assert scores.top1 == own.top1
    assert scores.cross_entropy == pytest.approx(own.cross_entropy, abs=1e-3)
    (tmp_path / "lost.onnx").write_bytes(artifact.read_bytes())
    with pytest.raises(UsageError, match="lies in no bundle"):
        judge_classifier(tmp_path / "lost.onnx", whole_path.drawings, 1, BAR)


def test_prompts_classify_and_a_model_without_text_is_refused(
    whole_path: WholePath, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = whole_path.run.parent / "teacher"
    code = run(
        ["eval", "zeroshot", str(teacher), "--data", str(whole_path.drawings), "-q", "--json", "--template", "a {}."]
    )
    assert code == 0
    content = json.loads(capsys.readouterr().out)
    assert content["templates"] == ["a {}."]
    assert content["top1"]["low"] <= content["top1"]["value"]
    with pytest.raises(UsageError, match="no text encoder"):
        judge_zeroshot(str(whole_path.run), whole_path.drawings, TEMPLATES, "cpu", BAR)

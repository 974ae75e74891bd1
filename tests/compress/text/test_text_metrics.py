"""Metrics of text classification against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.compress.text.metrics import (
    bootstrap,
    confusion_matrix,
    cross_entropies,
    judge,
    kl_divergences,
    log_softmax,
    macro_f1,
    plot_confusion,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (300, 4)).astype(np.float32)
LABELS = np.where(RNG.random(300) < 0.6, LOGITS.argmax(1), RNG.integers(0, 4, 300))
ONE_HOT = np.eye(4, dtype=np.float32)[LABELS]


def test_the_same_as_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    said = log_softmax(LOGITS)
    predicted = said.argmax(1)
    matrix = confusion_matrix(LABELS, predicted, 4)
    np.testing.assert_array_equal(matrix, sklearn.confusion_matrix(LABELS, predicted))
    assert macro_f1(matrix) == pytest.approx(sklearn.f1_score(LABELS, predicted, average="macro"))
    assert cross_entropies(ONE_HOT, said).mean() == pytest.approx(sklearn.log_loss(LABELS, np.exp(said)))
    found = judge(LOGITS, ONE_HOT)
    assert found["accuracy"]["value"] == pytest.approx(sklearn.accuracy_score(LABELS, predicted))
    assert found["macro_f1"]["value"] == pytest.approx(macro_f1(matrix)) and found["confusion"] == matrix.tolist()


def test_macro_f1_leaves_a_class_out_that_nobody_names() -> None:
    assert macro_f1(np.array([[3, 0, 0], [0, 2, 0], [0, 0, 0]])) == 1.0
    assert macro_f1(np.array([[3, 0, 0], [0, 2, 0], [1, 0, 0]])) == pytest.approx((6 / 7 + 1 + 0) / 3)


def test_kl_is_the_cross_entropy_over_its_floor() -> None:
    soft = np.array([[0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4]], np.float32)
    said = log_softmax(LOGITS[:2])
    by_hand = [
        sum(t * (np.log(t) - s) for t, s in zip(row, p, strict=True) if t > 0)
        for row, p in zip(soft, said, strict=True)
    ]
    np.testing.assert_allclose(kl_divergences(soft, said), by_hand, rtol=1e-6)
    np.testing.assert_allclose(
        kl_divergences(ONE_HOT, log_softmax(LOGITS)), cross_entropies(ONE_HOT, log_softmax(LOGITS))
    )
    np.testing.assert_allclose(kl_divergences(np.exp(said), said), 0, atol=1e-12)


def test_a_teacher_is_compared_with() -> None:
    same = judge(LOGITS, ONE_HOT, LOGITS)
    assert same["kl_teacher"]["value"] == pytest.approx(0, abs=1e-12) and same["agreement"]["value"] == 1.0
    other = judge(LOGITS, ONE_HOT, LOGITS[:, ::-1].copy())
    assert other["kl_teacher"]["value"] > 0.5 and other["agreement"]["value"] < 0.6


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        values = np.random.default_rng(seed).exponential(1.0, 80)
        interval = bootstrap(80, lambda rows, values=values: float(values[rows].mean()))  # type: ignore[misc]
        assert interval.low < interval.value < interval.high
        covered += interval.low <= 1.0 <= interval.high
    assert 85 <= covered <= 99


def test_large_logits_stay_finite() -> None:
    assert np.isfinite(log_softmax(np.array([[1e4, -1e4], [0, 0]], np.float32))).all()


@pytest.mark.parametrize("classes", [2, 60])
def test_the_confusion_matrix_is_drawn(tmp_path: Path, classes: int) -> None:
    counts = np.eye(classes, dtype=int) * 5
    plot_confusion(counts.tolist(), [f"class $ {n}" for n in range(classes)], tmp_path / "m.png", title="a $ b")
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.width > 300 and np.asarray(picture.convert("L")).std() > 5

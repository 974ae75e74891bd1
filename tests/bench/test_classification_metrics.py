"""Every metric against scikit-learn, scipy or a naive loop, and against its known limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from edgekit.bench import metrics
from edgekit.bench.significance import ScoreError

Float64 = NDArray[np.float64]
Labels = NDArray[np.int64]
CASES = {
    "seed": st.integers(0, 2**32 - 1),
    "pictures": st.integers(1, 80),
    "classes": st.integers(2, 12),
    "scale": st.floats(0.1, 200.0),
}


def case(seed: int, pictures: int, classes: int, scale: float) -> tuple[Float64, Labels]:
    random = np.random.default_rng(seed)
    return scale * random.standard_normal((pictures, classes)), random.integers(0, classes, pictures)


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_accuracies_f1_and_cross_entropy_are_scikit_learns(
    seed: int, pictures: int, classes: int, scale: float
) -> None:
    logits, labels = case(seed, pictures, classes, scale)
    predicted = logits.argmax(axis=1)
    assert metrics.top_k_accuracy(logits, labels).value == pytest.approx(np.mean(predicted == labels))
    for k in range(1, classes if classes > 2 else 0):  # with two classes scikit-learn wants one score per picture
        oracle = sklearn.metrics.top_k_accuracy_score(labels, logits, k=k, labels=np.arange(classes))
        assert metrics.top_k_accuracy(logits, labels, k).value == pytest.approx(oracle)
    f1 = sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(logits, labels) == pytest.approx(f1)
    log_probabilities = scipy.special.log_softmax(logits, axis=1)
    assert metrics.cross_entropy(logits, labels) == pytest.approx(
        -log_probabilities[np.arange(pictures), labels].mean()
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pictures=st.integers(1, 80), classes=st.integers(2, 12))
def test_cross_entropy_is_scikit_learns_log_loss(seed: int, pictures: int, classes: int) -> None:
    logits, labels = case(seed, pictures, classes, 2.0)  # log_loss takes probabilities: they must not underflow
    oracle = sklearn.metrics.log_loss(labels, scipy.special.softmax(logits, axis=1), labels=np.arange(classes))
    assert metrics.cross_entropy(logits, labels) == pytest.approx(oracle)


@settings(max_examples=60, deadline=None)
@given(**CASES, temperature=st.floats(0.5, 8.0))
def test_kl_is_scipys(seed: int, pictures: int, classes: int, scale: float, temperature: float) -> None:
    teacher, _ = case(seed, pictures, classes, min(scale, 20.0))
    student, _ = case(seed + 1, pictures, classes, min(scale, 20.0))
    p, q = (scipy.special.softmax(logits / temperature, axis=1) for logits in (teacher, student))
    oracle = scipy.stats.entropy(p, q, axis=1).mean()
    assert metrics.kl_divergence(teacher, student, temperature) == pytest.approx(oracle, rel=1e-6, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_calibration_error_is_built_from_scikit_learns_curve(
    seed: int, pictures: int, classes: int, scale: float
) -> None:
    logits, labels = case(seed, pictures, classes, min(scale, 5.0))
    confidence = scipy.special.softmax(logits, axis=1).max(axis=1)
    right = logits.argmax(axis=1) == labels
    accuracy, mean_confidence = sklearn.calibration.calibration_curve(right, confidence, n_bins=15, pos_label=True)
    bin_of = np.searchsorted(np.linspace(0, 1, 16)[1:-1], confidence)
    weights = np.bincount(bin_of, minlength=15)
    oracle = np.sum(weights[weights > 0] * np.abs(accuracy - mean_confidence)) / pictures
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(oracle, abs=1e-12)


def test_calibration_error_of_one_who_is_always_sure() -> None:
    logits = np.array([[50.0, 0.0], [50.0, 0.0], [50.0, 0.0], [50.0, 0.0]])
    assert metrics.expected_calibration_error(logits, [0, 0, 0, 1]) == pytest.approx(0.25)
    assert metrics.expected_calibration_error(np.zeros((4, 2)), [0, 0, 1, 1]) == pytest.approx(0.0)


def test_known_limits() -> None:
    logits, labels = case(0, 40, 7, 3.0)
    assert metrics.kl_divergence(logits, logits) == 0.0
    assert metrics.kl_divergence(logits, logits + 5.0) == pytest.approx(0.0, abs=1e-12)
    assert metrics.agreement(logits, logits).value == 1.0
    assert metrics.agreement(logits, -logits).value == 0.0
    assert metrics.cross_entropy(np.zeros((40, 7)), labels) == pytest.approx(np.log(7))
    perfect = np.eye(7)[labels] * 100
    assert metrics.macro_f1(perfect, labels) == 1.0
    assert metrics.embedding_cosine(logits, 3 * logits) == metrics.CosineSummary(pytest.approx(1), pytest.approx(1))
    assert metrics.embedding_cosine(logits, -logits).minimum == pytest.approx(-1)


def test_huge_logits_do_not_overflow() -> None:
    teacher, student = np.array([[1e4, 0.0, -1e4]]), np.array([[0.0, 1e4, -1e4]])
    assert metrics.kl_divergence(teacher, student) == pytest.approx(1e4)
    assert metrics.cross_entropy(teacher, [2]) == pytest.approx(2e4)
    assert metrics.expected_calibration_error(np.float32([[3e38, 0.0]]), [0]) == 0.0


def test_of_equal_logits_the_first_class_wins_as_in_argmax() -> None:
    logits = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert metrics.correct(logits, [0, 1]).tolist() == [True, False]
    assert metrics.correct(logits, [0, 1], k=2).tolist() == [True, True]
    collapsed = np.zeros((10, 5))
    assert metrics.top_k_accuracy(collapsed, np.arange(10) % 5).value == pytest.approx(0.2)


def test_cosine_finds_the_one_bad_row() -> None:
    reference = np.random.default_rng(0).standard_normal((20, 16))
    candidate = reference.copy()
    candidate[7] = -candidate[7]
    summary = metrics.embedding_cosine(reference, candidate)
    assert summary.minimum == pytest.approx(-1)
    assert summary.mean == pytest.approx(18 / 20)


def test_all_scores_together() -> None:
    logits, labels = case(1, 60, 8, 2.0)
    scores = metrics.classification_scores(logits, labels)
    assert scores.pictures == 60
    assert scores.top1 == metrics.top_k_accuracy(logits, labels)
    assert scores.top5 is not None
    assert scores.top5.value > scores.top1.value
    assert metrics.classification_scores(logits[:, :5], labels % 5).top5 is None


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 4)), [0, 1], "3 rows of logits need as many labels"),
        (np.zeros((2, 4)), [0, 4], "label 4 of picture 1 is not one of the model's 4 classes"),
        (np.zeros((2, 4)), [-1, 0], "label -1 of picture 0"),
        (np.zeros((2, 4)), [0.0, 1.0], "integers"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), [0, 1], "1 of 2 rows hold NaN or infinity, the first is row 1"),
        (np.array([[np.inf, 1.0]]), [0], "NaN or infinity"),
        (np.zeros((0, 4)), np.zeros(0, dtype=int), "logits must be"),
        (np.zeros((3, 1)), [0, 0, 0], "logits must be"),
        (np.zeros(3), [0, 0, 0], "logits must be"),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [
        metrics.classification_scores,
        metrics.top_k_accuracy,
        metrics.macro_f1,
        metrics.cross_entropy,
        metrics.expected_calibration_error,
    ],
)
def test_what_cannot_be_scored_is_named(
    metric: Callable[[ArrayLike, ArrayLike], object], logits: Float64, labels: ArrayLike, message: str
) -> None:
    with pytest.raises(ScoreError, match=message):
        metric(logits, labels)


def test_models_of_different_shape_are_not_compared() -> None:
    with pytest.raises(ScoreError, match="different shapes"):
        metrics.agreement(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ScoreError, match="different shapes"):
        metrics.kl_divergence(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(ScoreError, match="different shapes"):
        metrics.embedding_cosine(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ScoreError, match="embedding 1 is all zeros"):
        metrics.embedding_cosine(np.ones((2, 3)), np.array([[1.0, 0, 0], [0, 0, 0]]))
    with pytest.raises(ScoreError, match="temperature"):
        metrics.kl_divergence(np.zeros((2, 3)), np.zeros((2, 3)), 0.0)
    with pytest.raises(ScoreError, match="top-4"):
        metrics.top_k_accuracy(np.zeros((2, 3)), [0, 1], 4)

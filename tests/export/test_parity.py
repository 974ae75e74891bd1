"""What parity notices: a wrong embedding beside right logits, in every precision."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from edgekit.export.parity import GATES, Precision, compare_outputs, failures
from edgekit.export.session import FloatArray, Outputs

IMAGES, CLASSES, DIMENSIONS = 256, 15, 128
_LOGITS = np.random.default_rng(0).normal(size=(IMAGES, CLASSES)).astype(np.float32) * 5


def unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def noisy(rows: FloatArray, decibels: float, seed: int = 1) -> FloatArray:
    """Return rows with noise of so many decibels below them."""
    noise = np.random.default_rng(seed).normal(size=rows.shape)
    scale = np.sqrt(np.square(rows).sum() / np.square(noise).sum()) * 10 ** (-decibels / 20)
    return np.asarray(rows + scale * noise, np.float32)


EMBEDDING = unit(np.random.default_rng(2).normal(size=(IMAGES, DIMENSIONS)).astype(np.float32))


def negated(rows: FloatArray, count: int) -> FloatArray:
    return np.concatenate([-rows[:count], rows[count:]])


WRONG: dict[str, Callable[[FloatArray], FloatArray]] = {
    "seven times as long": lambda rows: rows * 7,
    "two per cent longer": lambda rows: rows * np.float32(1.02),
    "12 of 256 negated": lambda rows: negated(rows, 12),
    "one of 256 negated": lambda rows: negated(rows, 1),
    "of another picture": lambda rows: np.roll(rows, 1, axis=0),
    "not finite": lambda rows: np.where(np.arange(IMAGES)[:, None] == 3, np.float32("nan"), rows),
    "zero": np.zeros_like,
}


def outputs(embedding: FloatArray) -> Outputs:
    return {"logits": _LOGITS, "embedding": embedding}


@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_embedding_is_caught_although_the_logits_are_right(precision: Precision, wrong: str) -> None:
    found = compare_outputs(outputs(EMBEDDING), outputs(WRONG[wrong](EMBEDDING)))
    assert found.snr_db == float("inf") and found.agreement is not None and found.agreement.value == 1.0
    assert any("embedding" in problem for problem in failures(found, GATES[precision]))


MEASURED_DB: dict[Precision, float] = {
    "fp32": 101, "fp16": 56, "int8": 23, "mixed": 26, "w8a8": 23, "dynamic": 28, "w8": 30, "palette8": 35,
    "palette6": 23, "palette4": 10,
}  # fmt: skip
"""Noise of the embedding of real files of all formats, the worst of three students: two of Human Action Recognition
photos, one of drawings."""


@pytest.mark.parametrize("precision", GATES)
def test_embeddings_as_real_files_give_them_pass(precision: Precision) -> None:
    found = compare_outputs(outputs(EMBEDDING), outputs(unit(noisy(EMBEDDING, MEASURED_DB[precision]))))
    assert failures(found, GATES[precision]) == ()
    assert found.embedding_snr_db == pytest.approx(MEASURED_DB[precision], abs=0.5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8"])
def test_a_noisy_embedding_fails_where_its_precision_is_better(precision: Precision) -> None:
    """Cosine 0.93 in the mean: what a file of 8 bits may not do, let alone one of 32."""
    found = compare_outputs(outputs(EMBEDDING), outputs(unit(noisy(EMBEDDING, 8.0))))
    assert 0.9 < found.cosine < 0.95
    assert any("embedding SNR" in problem for problem in failures(found, GATES[precision]))


def test_the_embedding_alone_is_reported_once() -> None:
    found = compare_outputs({"embedding": EMBEDDING}, {"embedding": noisy(EMBEDDING, 5.0)})
    problems = failures(found, GATES["fp32"])
    assert sum("SNR" in problem for problem in problems) == 1 and found.embedding_snr_db == found.snr_db


def test_what_is_zero_on_both_sides_is_alike_and_json_has_no_infinity() -> None:
    rows = EMBEDDING.copy()
    rows[5] = 0
    found = compare_outputs(outputs(rows), outputs(rows))
    assert failures(found, GATES["fp32"]) == ()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["embedding_snr_db"] is None
    assert failures(compare_outputs({"logits": _LOGITS}, {"logits": _LOGITS}), GATES["fp32"]) == ()

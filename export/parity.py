"""Does an artifact compute what the reference computes? Numbers, and a verdict against a threshold with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.export.session import FloatArray, Outputs, Session, run_batched
from edgekit.interval import Interval, wilson

Precision = Literal["fp32", "fp16", "int8", "mixed", "w8a8", "dynamic", "w8", "palette8", "palette6", "palette4"]


@dataclass(frozen=True)
class Parity:
    """How close a candidate's outputs are to the reference's, over n pictures.

    Attributes:
        images: n.
        max_abs: largest absolute difference of the logits (of the embedding where there are no logits).
        snr_db: 10·log10(Σ reference² / Σ difference²) of the same output, in dB; infinite where nothing differs.
        cosine: mean cosine between the embeddings; 1.0 where the model gives none.
        agreement: share of pictures with the same top class, with its 95 % Wilson interval; None without logits.
        embedding_max_abs, embedding_snr_db: of the embedding; None where the model gives none.
        least_cosine: that of the picture whose embedding differs most.
        norm_error: largest difference of an embedding's length from the reference's, as a share of it; of unit rows,
            from 1.
    """

    images: int
    max_abs: float
    snr_db: float
    cosine: float
    agreement: Interval | None
    embedding_max_abs: float | None = None
    embedding_snr_db: float | None = None
    least_cosine: float = 1.0
    norm_error: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; an infinite SNR becomes None."""
        values = asdict(self)
        for name in ("snr_db", "embedding_snr_db"):
            values[name] = None if values[name] is None or np.isinf(values[name]) else values[name]
        return values


@dataclass(frozen=True)
class Gate:
    """What parity must reach.

    Attributes:
        max_abs: upper limit on the largest difference of each output; None for none.
        snr_db: lower limit, of each output; None for none.
        agreement: lower limit on the share of equal top classes.
        reason: why these numbers.
        least_cosine: lower limit on the cosine of every single embedding: a few wrong ones among hundreds hardly move
            a mean or an SNR. The worst of 128 pictures had 2 to 18 times the mean noise, at noise far below the limits;
            10 times that of the SNR's limit is allowed, and less than half right nowhere.
        norm_error: upper limit on how far an embedding's length may be off: normalisation is inside the files, and
            1e-6 in float32 and 5e-4 in float16 arithmetic were measured.
    """

    max_abs: float | None
    snr_db: float | None
    agreement: float
    reason: str
    least_cosine: float = 0.5
    norm_error: float = 0.01


GATES: Mapping[Precision, Gate] = {
    "fp32": Gate(1e-3, 80.0, 1.0, "the same arithmetic in another order: only rounding may differ", 0.9999, 1e-4),
    "fp16": Gate(
        None, 40.0, 0.99, "11 significant bits per weight and sum: 50 to 60 dB are usual, near-ties may flip", 0.9995
    ),
    "int8": Gate(None, 10.0, 0.90, "8 bits: 20 to 40 dB are usual; below 10 dB a scale or a range is wrong"),
    "mixed": Gate(None, 10.0, 0.90, "as int8, of which it keeps the worst layers in float"),
    "w8a8": Gate(None, 10.0, 0.90, "as int8, in Core ML packages"),
    "dynamic": Gate(None, 15.0, 0.90, "ranges of the very picture: 30 to 45 dB are usual", 0.84),
    "w8": Gate(None, 20.0, 0.90, "float arithmetic: 35 to 45 dB are usual", 0.95),
    "palette8": Gate(None, 20.0, 0.90, "256 values for the weights of a layer: as w8", 0.95),
    "palette6": Gate(None, 10.0, 0.90, "64 values: 25 to 35 dB are usual"),
    "palette4": Gate(None, 5.0, 0.60, "16 values: a fifth of the top classes may change; use only after training it"),
}
"""One table for export, verify and the tests. An INT8 artifact that passes can still lose accuracy: bench tells."""


def compare(reference: Session, candidate: Session, images: FloatArray) -> Parity:
    """Run both on images (N, 3, H, W) float32 in [0, 1] and compare what they have in common."""
    return compare_outputs(run_batched(reference, images), run_batched(candidate, images))


def compare_outputs(reference: Outputs, candidate: Outputs) -> Parity:
    """Compare named outputs of the same pictures.

    Raises:
        ValueError: the two share no output, or shapes differ.
    """
    shared = [name for name in ("logits", "embedding") if name in reference and name in candidate]
    if not shared:
        raise ValueError(f"no common output: reference {sorted(reference)}, candidate {sorted(candidate)}")
    for name in shared:
        if reference[name].shape != candidate[name].shape:
            raise ValueError(f"output '{name}': reference {reference[name].shape}, candidate {candidate[name].shape}")
    main = shared[0]
    expected, found = reference[main].astype(np.float64), candidate[main].astype(np.float64)
    agreement = None
    if main == "logits":
        same = int((expected.argmax(1) == found.argmax(1)).sum())
        agreement = wilson(same, len(expected))
    parity = Parity(len(expected), _max_abs(expected, found), snr_db(expected, found), 1.0, agreement)
    return _with_embedding(parity, reference["embedding"], candidate["embedding"]) if "embedding" in shared else parity


def snr_db(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Return the signal-to-noise ratio 10·log10(Σ expected² / Σ (expected − found)²) in dB; NaN where not finite."""
    noise = float(np.square(expected - found).sum())
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(np.square(expected).sum() / noise))


def failures(parity: Parity, gate: Gate) -> tuple[str, ...]:
    """Return what of `gate` is not met, in words; empty where all is. NaN meets nothing."""
    found = []
    if gate.max_abs is not None and not parity.max_abs <= gate.max_abs:
        found.append(f"max abs {parity.max_abs:.3g} > {gate.max_abs:g}")
    if gate.snr_db is not None and not parity.snr_db >= gate.snr_db:
        found.append(f"SNR {parity.snr_db:.1f} dB < {gate.snr_db:g} dB")
    if parity.agreement is not None and not parity.agreement.value >= gate.agreement:
        found.append(f"agreement {100 * parity.agreement.value:.1f} % < {100 * gate.agreement:g} %")
    return (*found, *_embedding_failures(parity, gate))


def _embedding_failures(parity: Parity, gate: Gate) -> tuple[str, ...]:
    found = []
    if parity.agreement is not None:  # without logits, max_abs and snr_db are the embedding's already
        difference, noise = parity.embedding_max_abs, parity.embedding_snr_db
        if gate.max_abs is not None and difference is not None and not difference <= gate.max_abs:
            found.append(f"embedding max abs {difference:.3g} > {gate.max_abs:g}")
        if gate.snr_db is not None and noise is not None and not noise >= gate.snr_db:
            found.append(f"embedding SNR {noise:.1f} dB < {gate.snr_db:g} dB")
    if not parity.cosine >= 0.9:
        found.append(f"embedding cosine {parity.cosine:.3f} < 0.9")
    if not parity.least_cosine >= gate.least_cosine:
        found.append(f"embedding cosine of one picture {parity.least_cosine:.5f} < {gate.least_cosine:g}")
    if not parity.norm_error <= gate.norm_error:
        found.append(f"embedding length off by {100 * parity.norm_error:.3g} % > {100 * gate.norm_error:g} %")
    return tuple(found)


def _max_abs(expected: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    return float(np.abs(expected - found).max())


def _with_embedding(parity: Parity, reference: FloatArray, candidate: FloatArray) -> Parity:
    """Return parity with what the embeddings (N, D) say; a row that is zero in both is alike."""
    expected, found = reference.astype(np.float64), candidate.astype(np.float64)
    lengths, others = np.linalg.norm(expected, axis=1), np.linalg.norm(found, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # no length, no cosine: NaN, which meets no gate
        cosines = (expected * found).sum(1) / (lengths * others)
        errors = np.abs(others - lengths) / lengths
    both = (lengths == 0) & (others == 0)
    cosines[both], errors[both] = 1.0, 0.0
    return replace(
        parity,
        cosine=float(cosines.mean()),
        embedding_max_abs=_max_abs(expected, found),
        embedding_snr_db=snr_db(expected, found),
        least_cosine=float(cosines.min()),
        norm_error=float(errors.max()),
    )

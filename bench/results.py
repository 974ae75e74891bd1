"""What a bench run found, as values that go to JSON and come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from edgekit.bench.latency import LatencyConfig, LatencySamples, StopReason
from edgekit.bench.machine import Machine
from edgekit.bench.metrics import ClassificationScores, CosineSummary
from edgekit.bench.retrieval import RetrievalScores
from edgekit.bench.significance import AccuracyComparison
from edgekit.bench.statistics import LatencySummary, Speedup
from edgekit.bench.sustained import SustainedSummary, Throughput
from edgekit.bench.timing import ColdStart
from edgekit.errors import UsageError
from edgekit.export.parity import Parity
from edgekit.export.session import RuntimeInfo
from edgekit.interval import Interval

SCHEMA_VERSION: Literal[1] = 1
"""Raised when a reader of the old JSON would misread the new; a field that is only added does not raise it."""

_LARGEST = 3.4028235e38
"""Stands for a difference that is no number: JSON has no infinity."""
_LARGEST_DB = 999.0
Kind = Literal["teacher", "student", "artifact"]
Status = Literal["ok", "failed"]


@dataclass(frozen=True)
class GoldenParity:
    """How close a model's outputs on this device are to PyTorch's, on the golden vectors of its bundle.

    Attributes:
        images: number of golden vectors.
        max_abs: largest difference of the logits (of the embedding where there are no logits).
        snr_db: signal-to-noise ratio of the same output, dB; None where nothing differs.
        cosine: mean cosine between the embeddings; 1 where there are none.
        agreement: share with the same top class; None without logits.
    """

    images: int
    max_abs: float
    snr_db: float | None
    cosine: float
    agreement: float | None

    @classmethod
    def of(cls, parity: Parity) -> GoldenParity:
        """Convert from what `compare_outputs` returned; values that are no numbers count as no likeness at all."""
        snr_db = None if parity.snr_db == math.inf else parity.snr_db if math.isfinite(parity.snr_db) else -math.inf
        return cls(
            parity.images,
            parity.max_abs if math.isfinite(parity.max_abs) else _LARGEST,
            None if snr_db is None else max(snr_db, -_LARGEST_DB),
            parity.cosine if math.isfinite(parity.cosine) else 0.0,
            parity.agreement.value if parity.agreement else None,
        )


@dataclass(frozen=True)
class BenchRow:
    """One model under test. None stands for "not measured", never for zero.

    Attributes:
        name: what the user calls it, unique in the report.
        kind: the teacher, the student in PyTorch, or an exported file.
        format: "pytorch", "onnx", "coreml", "tflite".
        precision: as read back from the file where that is possible, e.g. "fp32", "int8".
        size_bytes: size on disk.
        parameters: number of weights.
        scores: against the labels.
        agreement_teacher: share of pictures on which the class is the teacher's.
        agreement_student: share of pictures on which the class is the PyTorch student's.
        kl_teacher: mean KL(teacher ‖ this), nats.
        embedding_cosine: with the teacher's embeddings.
        retrieval: where captions are there.
        accuracy: change of top-1 against the baseline, on the same pictures.
        latency: percentiles and means, seconds.
        speedup: against the baseline, paired.
        cold: load and first inference.
        peak_memory_bytes: most that a process of its own has held after its first calls, on one picture.
        process_memory_bytes: most that this process had held before it opened the model, its runtime loaded.
        throughput: at a larger batch, where that was asked for and the file takes it.
        sustained: without a pause for a while, where that was asked for.
        parity: with PyTorch on golden vectors, where the device is not the one that proved the files.
        sha256: of the file or package, as in manifests.
        runtime: what really ran it.
        status: "failed" where it could not be run or measured; what was found before is kept.
        failure: the reason, None where it is "ok".
        notes: what a reader of this row must know.
    """

    name: str
    kind: Kind
    format: str
    precision: str
    size_bytes: int | None = None
    parameters: int | None = None
    scores: ClassificationScores | None = None
    agreement_teacher: Interval | None = None
    agreement_student: Interval | None = None
    kl_teacher: float | None = None
    embedding_cosine: CosineSummary | None = None
    retrieval: RetrievalScores | None = None
    accuracy: AccuracyComparison | None = None
    latency: LatencySummary | None = None
    speedup: Speedup | None = None
    cold: ColdStart | None = None
    peak_memory_bytes: int | None = None
    process_memory_bytes: int | None = None
    throughput: Throughput | None = None
    sustained: SustainedSummary | None = None
    parity: GoldenParity | None = None
    sha256: str | None = None
    runtime: RuntimeInfo | None = None
    status: Status = "ok"
    failure: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert (self.status == "failed") == (self.failure is not None), "a failed row says why, another has no failure"

    @property
    def top1(self) -> Interval | None:
        """Return top-1 accuracy with its interval."""
        return self.scores.top1 if self.scores else None


@dataclass(frozen=True)
class RawSamples:
    """One candidate's samples as they go to JSON.

    Attributes:
        rounds: (R,) round numbers; equal numbers of two candidates are paired.
        nanoseconds: (R, calls) whole nanoseconds per call.
        calls_per_sample: calls that each number is the mean of.
        stopped: why the measurement ended.
    """

    rounds: tuple[int, ...]
    nanoseconds: tuple[tuple[int, ...], ...]
    calls_per_sample: int
    stopped: StopReason

    @classmethod
    def of(cls, samples: LatencySamples) -> RawSamples:
        """Convert from what `measure_latency` returned."""
        nanoseconds = tuple(tuple(round(s * 1e9) for s in row) for row in samples.seconds.tolist())
        return cls(tuple(samples.rounds.tolist()), nanoseconds, samples.calls_per_sample, samples.stopped)

    def samples(self, name: str) -> LatencySamples:
        """Convert back.

        Raises:
            UsageError: rounds and samples do not fit together.
        """
        rounds = np.asarray(self.rounds, np.int64)
        calls = {len(row) for row in self.nanoseconds}
        if len(self.nanoseconds) != len(rounds) or len(calls) > 1 or len(np.unique(rounds)) != len(rounds):
            raise UsageError(f"not a valid bench result: the samples of {name} are not one row for each round")
        seconds = np.asarray(self.nanoseconds, np.float64).reshape(len(rounds), -1) * 1e-9
        return LatencySamples(name, seconds, rounds, self.calls_per_sample, self.stopped)


@dataclass(frozen=True)
class Answers:
    """Which pictures a model got right.

    Attributes:
        pictures_sha256: over the names and labels of the pictures in order; equal hashes can be compared pairwise.
        count: number of pictures.
        right: one bit per picture, packed from the highest bit of each byte on, in hexadecimal.
    """

    pictures_sha256: str
    count: int
    right: str

    @classmethod
    def of(cls, right: NDArray[np.bool_], pictures_sha256: str) -> Answers:
        """Pack (N,) bool."""
        return cls(pictures_sha256, len(right), np.packbits(right).tobytes().hex())

    def unpacked(self) -> NDArray[np.bool_]:
        """Return (N,) bool.

        Raises:
            UsageError: there are fewer bits than pictures.
        """
        try:
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.right), np.uint8))
        except ValueError as e:
            raise UsageError("not a valid bench result: answers are not hexadecimal") from e
        if len(bits) < self.count:
            raise UsageError(f"not a valid bench result: {len(bits)} answers for {self.count} pictures")
        return bits[: self.count].astype(np.bool_)


@dataclass(frozen=True)
class BenchReport:
    """A whole bench run.

    Attributes:
        rows: one per model, in the order they are shown.
        baseline: name of the row that speed-ups and accuracy changes refer to, None without one.
        machine: what it ran on.
        data: what the accuracy was measured on, in words, e.g. "1260 pictures of har15/val"; None without data.
        created: UTC, ISO 8601.
        edgekit_version: version that measured.
        latency_config: how latency was measured, None where it was not.
        samples: row name -> raw samples.
        answers: row name -> which pictures it got right, so that later runs can be compared picture by picture.
        device: what measured, in words; "local" runs are told apart by `machine`.
        problems: what failed of the run as a whole, e.g. that the data holds no picture.
        notes: what a reader of the whole report must know.
        schema_version: version of the JSON layout.
    """

    rows: tuple[BenchRow, ...]
    baseline: str | None
    machine: Machine
    data: str | None
    created: str
    edgekit_version: str
    latency_config: LatencyConfig | None = None
    samples: Mapping[str, RawSamples] = field(default_factory=dict)
    answers: Mapping[str, Answers] = field(default_factory=dict)
    device: str = "local"
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: Literal[1] = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise UsageError(f"two models have the same name: {', '.join(sorted(names))}. Give each its own.")

    @property
    def failed(self) -> tuple[BenchRow, ...]:
        """Return the rows that could not be measured."""
        return tuple(row for row in self.rows if row.status == "failed")

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was measured; if not, the command ends with exit code 1."""
        return not self.failed and not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping whose fields are those of this class; `json_schema` describes it."""
        dumped: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return {"schema_version": dumped.pop("schema_version"), **dumped}

    @classmethod
    def from_json(cls, content: object) -> BenchReport:
        """Build from what `to_json` made.

        Raises:
            UsageError: the content is not a bench report, or of another schema version.
        """
        version = content.get("schema_version") if isinstance(content, Mapping) else None
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"not a bench result that this version reads: schema_version is {version!r}, {SCHEMA_VERSION} is "
                "expected. Give a file written by `edgekit bench --json`."
            )
        try:
            return _adapter().validate_python(content)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"not a valid bench result: {where}: {first['msg']} ({e.error_count()} errors)") from e


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of `BenchReport.to_json`."""
    return _adapter().json_schema()


@cache
def _adapter() -> TypeAdapter[BenchReport]:
    return TypeAdapter(BenchReport)  # resolved once and late: the annotations are strings

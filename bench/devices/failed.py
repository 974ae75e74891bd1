"""The report of a device that went away: every candidate says so."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import metadata

from edgekit.bench.candidates import Candidate, artifact_candidates, given_artifacts
from edgekit.bench.machine import Machine
from edgekit.bench.results import BenchReport, BenchRow
from edgekit.bench.run import BenchConfig
from edgekit.errors import UsageError

UNKNOWN_MACHINE = Machine(None, None, 0, None, None, None, "unknown system", None, ())


def candidates_of(config: BenchConfig, device: str) -> list[Candidate]:
    """Return the artifacts that are asked for.

    Raises:
        UsageError: there is none, or something is asked for that `device` cannot do: it has only the files.
    """
    refused = [
        name
        for name, value in (("--baseline", config.baseline), ("--data", config.data), ("--labels", config.labels))
        if value is not None
    ]
    if refused:
        raise UsageError(
            f"{' and '.join(refused)} cannot be used with --device {device}, which gets the files alone; leave "
            "it out, and speed-ups refer to the first file. Accuracy is measured with --device local or web."
        )
    found = artifact_candidates(given_artifacts(config.files), config.threads)
    if not found:
        raise UsageError("nothing to bench: give artifacts or bundles")
    return found


def failed_row(candidate: Candidate, reason: str) -> BenchRow:
    """Return the row of a candidate that was not measured; what was wrong with its file goes first."""
    return BenchRow(
        candidate.name,
        candidate.kind,
        candidate.format,
        candidate.claimed or candidate.precision,
        candidate.size_bytes,
        sha256=candidate.sha256,
        status="failed",
        failure=candidate.problem or reason,
    )


def report_of(
    rows: Sequence[BenchRow], config: BenchConfig, device: str, machine: Machine = UNKNOWN_MACHINE
) -> BenchReport:
    """Return a report of rows alone, the first being the baseline."""
    return BenchReport(
        rows=tuple(rows),
        baseline=rows[0].name,
        machine=machine,
        data=None,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgekit_version=metadata.version("edgekit"),
        latency_config=config.latency,
        device=device,
    )

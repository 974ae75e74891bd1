"""The comparison of two bench runs, in words for a terminal and as values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgekit.bench.compare import AccuracyChange, Comparison, RowComparison, SpeedChange

COLUMNS = ("model", "p50 ms", "speed", "second is", "top-1 %", "change", "second is ")
NONE = "–"


def comparison_rows(comparison: Comparison) -> list[Sequence[str]]:
    """Return the table's cells, one row per model."""
    return [_cells(row) for row in comparison.rows]


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return the sentences without which the numbers could be misread."""
    lines = [f"differs: {line}" for line in comparison.differs] or ["same device, edgekit and data"]
    for row in comparison.rows:
        lines += [f"{row.second.name}: {line}" for line in row.differs]
        for which, own in (("first", row.first), ("second", row.second)):
            if own.failure is not None:
                lines.append(f"{own.name} failed in the {which}: {own.failure}")
    lines += [_names("only in the first", comparison.only_first), _names("only in the second", comparison.only_second)]
    lines += _methods(comparison.rows)
    return [line for line in lines if line]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a JSON-ready mapping."""
    rows = [
        {
            "first": row.first.name,
            "second": row.second.name,
            "sha256": [row.first.sha256, row.second.sha256],
            "differs": list(row.differs),
            "p50_s": [one.latency.p50_s if one.latency else None for one in (row.first, row.second)],
            "size_bytes": [row.first.size_bytes, row.second.size_bytes],
            "peak_memory_bytes": [row.first.peak_memory_bytes, row.second.peak_memory_bytes],
            "status": [row.first.status, row.second.status],
            "speed": asdict(row.speed) if row.speed else None,
            "accuracy": asdict(row.accuracy) if row.accuracy else None,
            "regressed": row.regressed,
        }
        for row in comparison.rows
    ]
    return {
        "differs": list(comparison.differs),
        "rows": rows,
        "only_first": list(comparison.only_first),
        "only_second": list(comparison.only_second),
    }


def _cells(row: RowComparison) -> Sequence[str]:
    times = [f"{1e3 * one.latency.p50_s:.3g}" if one.latency else NONE for one in (row.first, row.second)]
    tops = [f"{100 * one.top1.value:.1f}" if one.top1 else NONE for one in (row.first, row.second)]
    return (
        row.second.name,
        " → ".join(times),
        _ratio(row.speed),
        row.speed.verdict if row.speed else NONE,
        " → ".join(tops),
        _points(row.accuracy),
        row.accuracy.verdict if row.accuracy else NONE,
    )


def _ratio(speed: SpeedChange | None) -> str:
    if speed is None:
        return NONE
    star = "" if speed.reference else "*"
    return f"{speed.ratio.value:.3f}×{star} [{speed.ratio.low:.3f}, {speed.ratio.high:.3f}]"


def _points(accuracy: AccuracyChange | None) -> str:
    if accuracy is None:
        return NONE
    star = "" if accuracy.paired else "*"
    difference = accuracy.difference
    return f"{100 * difference.value:+.1f}{star} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _names(words: str, names: Sequence[str]) -> str:
    return f"{words}: {', '.join(names)}" if names else ""


def _methods(rows: Sequence[RowComparison]) -> list[str]:
    """Say how speeds and accuracies were compared."""
    speeds = [row.speed for row in rows if row.speed]
    lines = []
    related = next((speed for speed in speeds if speed.reference), None)
    if related is not None:
        lines.append(
            f"speeds are relative to {related.reference}, unchanged and measured in both runs, which cancels what the "
            f"machine did meanwhile; below ±{100 * related.minimum_effect:g} % there is no verdict"
        )
    bare = next((speed for speed in speeds if speed.reference is None), None)
    if bare is not None:
        why = "of the model that the others are relative to" if related else "no unchanged model was measured in both"
        lines.append(f"* bare times of two runs: {why}; below ±{100 * bare.minimum_effect:g} % there is no verdict")
    if any(row.accuracy and not row.accuracy.paired for row in rows):
        lines.append("* top-1 on other pictures, or of results that do not keep the answers: not compared pairwise")
    return lines

"""What `--precision auto` shows: every candidate, what it costs, and why it was kept or not."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.export.choice.auto import Choice
from edgekit.export.choice.candidates import Candidate
from edgekit.terminal import human_bytes

COLUMNS = ("candidate", "size", "drop, points", "p", "SNR dB", "speed / fp32", "verdict")


def title(choice: Choice) -> str:
    """Return the line above the table."""
    timed = "times in turns, 1 thread" if choice.timed else "not timed: this format is interpreted here"
    return (
        f"{choice.format}: against fp32 on {choice.pictures} validation pictures, at most {choice.config.max_drop:g} "
        f"points lost; {timed}"
    )


def table_rows(choice: Choice) -> Sequence[tuple[str, ...]]:
    """Return one row for each candidate, the kept one first."""
    return [_row(candidate) for candidate in sorted(choice.candidates, key=lambda c: not c.chosen)]


def _row(candidate: Candidate) -> tuple[str, ...]:
    drop, faster = candidate.drop, candidate.speedup
    return (
        candidate.name,
        human_bytes(candidate.size_bytes) if candidate.size_bytes else "–",
        f"{100 * drop.value:+.1f} ({100 * drop.low:+.1f} to {100 * drop.high:+.1f})" if drop else "–",
        f"{candidate.p_value:.2g}" if candidate.p_value is not None else "–",
        f"{candidate.snr_db:.1f}" if candidate.snr_db is not None else "–",
        f"{faster.value:.2f}× ({faster.low:.2f} to {faster.high:.2f})" if faster else "–",
        candidate.verdict,
    )

"""The gate for a few golden rows is no stricter than chance makes of the gate for many, and no laxer than that."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.export.golden import Golden
from edgekit.export.parity import GATES, Precision
from edgekit.export.session import FloatArray
from edgekit.export.verify.file import golden_gate, golden_parity

PIXELS = np.zeros((8, 4, 4, 3), np.uint8)


def near_ties(rows: int, flipped: int) -> tuple[FloatArray, FloatArray]:
    """Return logits whose two best classes are all but tied, and the same with some of them changed places."""
    said = np.tile(np.array([[3.0, 2.999, -3.0]], np.float32), (rows, 1))
    found = said.copy()
    found[:flipped, :2] = found[:flipped, 1::-1]
    return said, found


@pytest.mark.parametrize(
    ("precision", "rows", "allowed"),
    [
        ("fp32", 8, 0), ("fp16", 8, 1), ("fp16", 4, 1), ("int8", 8, 3), ("int8", 4, 2), ("palette4", 8, 6),
        ("palette4", 4, 4),
    ],
)  # fmt: skip
def test_flips_that_the_gate_of_many_allows_by_chance_pass(precision: Precision, rows: int, allowed: int) -> None:
    for flipped in range(rows + 1):
        said, found = near_ties(rows, flipped)
        golden = Golden(PIXELS, {"logits": said}, (b"",))
        parity, problems = golden_parity({"logits": found}, golden.outputs, ("logits",), GATES[precision])
        assert parity is not None and parity.images == rows
        assert any("agreement" in problem for problem in problems) == (flipped > allowed), (flipped, problems)


@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize("rows", [4, 8])
def test_a_file_that_export_accepts_fails_on_golden_rows_once_in_a_hundred_times(
    precision: Precision, rows: int
) -> None:
    gate = GATES[precision]
    flips = np.random.default_rng(0).binomial(rows, 1 - gate.agreement, 100_000)
    agreement = (rows - flips) / rows
    assert (agreement < golden_gate(gate, rows).agreement).mean() <= 0.011

"""How a step is divided between micro-batches and processes."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.compress.parallel.shares import Split


@pytest.mark.parametrize(("count", "world", "accumulate"), [(64, 1, 4), (65, 2, 4), (7, 2, 3), (12, 3, 1)])
def test_every_row_is_in_one_part_and_no_part_is_much_larger(count: int, world: int, accumulate: int) -> None:
    rows = np.arange(100, 100 + count)
    parts = [part for rank in range(world) for part in Split(rank, world, accumulate).parts(rows)]
    assert sorted(np.concatenate(parts)) == rows.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 2 and min(map(len, parts)) >= 1


def test_micro_batches_of_a_sorted_step_hold_all_classes() -> None:
    classes = np.repeat(np.arange(8), 8)  # a step's rows are sorted by name, so by class folder
    for part in Split(accumulate=4).parts(np.arange(64)):
        assert np.bincount(classes[part]).tolist() == [2] * 8


def test_micro_batches_do_not_depend_on_the_number_of_processes() -> None:
    rows = np.arange(37)
    alone = [sorted(part) for part in Split(accumulate=3).parts(rows)]
    both = zip(*(Split(rank, 2, 3).parts(rows) for rank in range(2)), strict=True)
    assert [sorted(np.concatenate(parts)) for parts in both] == alone

"""What every runtime's session shares."""

from __future__ import annotations

import numpy as np

from edgekit.export.session import to_channels_last


def test_channels_last_is_the_transposed_copy() -> None:
    images = np.random.default_rng(0).random((2, 3, 5, 7), dtype=np.float32)
    found = to_channels_last(images)
    assert np.array_equal(found, images.transpose(0, 2, 3, 1))
    assert found.flags.c_contiguous and found.dtype == np.float32 and not np.shares_memory(found, images)

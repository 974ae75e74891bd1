"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def real_data_folder() -> Path:
    """Return the folder of real data sets: EDGEKIT_TEST_DATA, else ../shared/data beside the checkout."""
    return Path(os.environ.get("EDGEKIT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the real data folder, or skip with the reason."""
    folder = real_data_folder()
    if not folder.is_dir():
        pytest.skip(f"real data sets are not here ({folder}); set EDGEKIT_TEST_DATA to run this test")
    return folder

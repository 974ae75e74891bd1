"""Rows of a teacher store: found by name and content, read without loading it, joined with those of another."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.store.format import ViewPlan, read_manifest
from edgekit.compress.store.reader import VIEW_FIELDS, TeacherStore
from edgekit.compress.store.table import JoinedTable, Stores
from edgekit.compress.store.teach import Picture, TeachPlan, file_ids, teach
from edgekit.data import Sample
from edgekit.errors import DataError, LoadError
from tests.teacher_stores_for_tests import (
    HALF,
    CountingTeacher,
    draw_samples,
    planned,
    taught,
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_samples(tmp_path_factory.mktemp("data"))


def test_pictures_that_the_store_does_not_have_are_named_stale_ones_apart(
    samples: list[Sample], tmp_path: Path
) -> None:
    store = taught(samples, tmp_path / "store").store
    ids = file_ids(samples)
    ids[3, 1] += 1  # the same name, another content
    keys = [sample.key for sample in samples]
    with pytest.raises(DataError) as caught:
        Stores((store,), (1.0,), 3).table("train", keys, ids)
    message = str(caught.value)
    assert "4 are not in it, e.g. 096.png" in message  # those are of the other split
    assert "1 have another content than the teacher saw, e.g. 003.png" in message
    assert "\n" not in message


def test_a_store_of_more_shards_than_files_may_be_open_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    pictures = [Picture(f"{number}.png", lambda: content) for number in range(3200)]
    plan = TeachPlan(pictures, [], ViewPlan(AugmentConfig(), 0, 0), rows_per_shard=32)
    taught = teach(CountingTeacher(), plan, tmp_path / "store")
    assert len(taught.store.manifest.shards) == 100
    store = TeacherStore(tmp_path / "store")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    already = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 30
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (already + 80, hard))
        for _ in range(2):
            assert len(store.names("train")) == 3200
            rows = store.embeddings(np.arange(100, dtype=np.int64) << 32, np.zeros(100, np.int64))
        assert rows.shape[0] == 100
        # too few even for those: that is said, and no good file is called damaged
        resource.setrlimit(resource.RLIMIT_NOFILE, (already, hard))
        with pytest.raises(LoadError, match="may open no more files") as caught:
            TeacherStore(tmp_path / "store", store.manifest).names("train")
        assert "damaged" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_reading_every_row_of_a_large_store_does_not_load_it(tmp_path: Path) -> None:
    """A store of 80 MB: a teacher that says wide rows of one tiny picture under many names."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    pictures = [Picture(f"{number}.png", lambda: content) for number in range(2048)]
    plan = TeachPlan(pictures, [], ViewPlan(AugmentConfig(), 0, 0))
    store_path = tmp_path / "store"
    teach(CountingTeacher(dim=10_000), plan, store_path)
    size = sum(shard.size_bytes for shard in read_manifest(store_path).shards)
    assert size > 80e6
    store = TeacherStore(store_path)
    before = resident_bytes()
    places = np.array([(shard << 32) + row for row in range(512) for shard in range(4)])
    most = 0
    for at in range(0, 2048, 32):
        store.embeddings(places[at : at + 32], np.ones(32, np.int64))
        most = max(most, resident_bytes() - before)
    assert most < 0.25 * size


def test_two_teachers_are_joined_by_the_roots_of_their_weights(samples: list[Sample], tmp_path: Path) -> None:
    one = taught(samples, tmp_path / "one").store
    two = teach(CountingTeacher(dim=7), planned(samples[:96], samples[96:]), tmp_path / "two").store
    keys, ids = [sample.key for sample in samples[:96]], file_ids(samples[:96])
    table = Stores((one, two), (0.8, 0.2), 3).table("train", keys, ids)
    assert isinstance(table, JoinedTable)
    rows, numbers = np.arange(96), np.arange(96) % 3
    joined = table.embeddings(rows, numbers)
    assert joined.shape == (96, 19) and table.embed_dim == 19
    assert np.abs(np.linalg.norm(joined, axis=1) - 1).max() < 1e-6
    alone = [Stores((store,), (1.0,), 3).table("train", keys, ids).embeddings(rows, numbers) for store in (one, two)]
    cosines = [part[:48] @ part[48:].T for part in alone]
    assert np.abs(joined[:48] @ joined[48:].T - (0.8 * cosines[0] + 0.2 * cosines[1])).max() < HALF
    views, theirs = table.views(rows, numbers), two.views(two.places("train", ids[:, 1]), numbers)
    for name in VIEW_FIELDS:
        assert (getattr(views, name) == getattr(theirs, name)).all()  # both saw the same views

"""The teacher store: what is stored is what the teacher says of the stored view; killed, damaged, stale, extended."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgekit.compress.pictures.views import Views, colour
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.store.format import StoreMismatchError, ViewPlan, read_manifest
from edgekit.compress.store.reader import VIEW_FIELDS, TeacherStore
from edgekit.compress.store.table import JoinedTable, Stores, plain_rows
from edgekit.compress.store.teach import Picture, Taught, TeachPlan, file_ids, pictures_of, teach
from edgekit.data import Sample
from edgekit.errors import DataError, LoadError
from edgekit.models.teacher import weights_hash
from edgekit.preprocess import Preprocess, load_batch
from tests.teachers_for_tests import ColourNet

AUGMENT = AugmentConfig(crop_scale=(0.4, 1.0), crop_ratio=(0.8, 1.25), flip=0.5, brightness=0.3, erase=0.5)
HALF = 2e-3
"""float16 rows, and one rounding of pixels to 8 bits."""


class CountingTeacher:
    """A real small network as teacher, which counts the pictures it was shown, and may be killed while it works."""

    name = "colours"
    preprocess = Preprocess(32, 36)
    parameters = None

    def __init__(self, dim: int = 12, dies_after: int | None = None) -> None:
        self.net, self.embed_dim = ColourNet(dim).eval(), dim
        self.shown, self.dies_after = 0, dies_after

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        if self.dies_after is not None and self.shown > self.dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        rows: Tensor = self.net(images)
        return rows

    def class_scores(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        return None

    def fingerprint(self) -> str:
        return weights_hash(self.net)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """A hundred pictures of several shapes."""
    folder, found = tmp_path_factory.mktemp("data"), []
    rng = np.random.default_rng(0)
    for number in range(100):
        path = folder / f"{number:03d}.png"
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((60 + number, 50), Image.Resampling.BICUBIC).save(path)
        found.append(Sample(path.name, path, number % 2))
    return found


def planned(train: Sequence[Sample], val: Sequence[Sample], count: int = 3, **change: object) -> TeachPlan:
    """Shards of 32 pictures, so that a few of them are enough."""
    views = replace(ViewPlan(AUGMENT, count, seed=1), **change)  # type: ignore[arg-type]
    return TeachPlan(list(pictures_of(train)), list(pictures_of(val)), views, rows_per_shard=32)


def taught(samples: list[Sample], path: Path, count: int = 3) -> Taught:
    return teach(CountingTeacher(), planned(samples[:96], samples[96:], count), path)


def rows_of(store: TeacherStore, samples: Sequence[Sample], number: int) -> NDArray[np.float16]:
    places = store.places("train", file_ids(samples)[:, 1])
    assert (places >= 0).all()
    return store.embeddings(places, np.full(len(samples), number))


def views_of(store: TeacherStore, samples: Sequence[Sample], number: int) -> Views:
    return store.views(store.places("train", file_ids(samples)[:, 1]), np.full(len(samples), number))


def seen(sample: Sample, view: Views, size: int = 32) -> Tensor:
    """Cut one view from the full picture, independently of the code under test."""
    left, top, width, height = view.boxes[0]
    with Image.open(sample.path) as picture:
        w, h = picture.size
        corners = (left * w, top * h, min((left + width) * w, w), min((top + height) * h, h))
        cut = picture.resize((size, size), Image.Resampling.BICUBIC, box=corners)
    if view.flips[0]:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1)[None].float() / 255
    return colour(image, view)  # what is erased, only the student sees


def plain(samples: Sequence[Sample]) -> Tensor:
    return torch.from_numpy(load_batch([sample.path for sample in samples], CountingTeacher.preprocess))


def test_a_stored_row_is_what_the_teacher_says_of_the_stored_view(samples: list[Sample], tmp_path: Path) -> None:
    done, teacher = taught(samples, tmp_path / "store"), CountingTeacher()
    assert done.pictures == len(done.store) == 100
    for number in range(3):
        rows, views = rows_of(done.store, samples[:96], number), views_of(done.store, samples[:96], number)
        for row in (0, 31, 32, 95):
            expected = teacher(seen(samples[row], views.take(np.array([row]))))[0].numpy()
            assert np.abs(rows[row] - expected).max() < HALF
    assert len({rows_of(done.store, samples[:1], number).tobytes() for number in range(3)}) == 3
    val = Stores((done.store,), (1.0,), 3).table("val", [s.key for s in samples[96:]], file_ids(samples[96:]))
    assert np.abs(plain_rows(val, 4) - teacher(plain(samples[96:])).numpy()).max() < HALF


def test_without_views_the_plain_picture_and_its_flip_are_stored(samples: list[Sample], tmp_path: Path) -> None:
    store, images = taught(samples, tmp_path / "store", count=0).store, plain(samples[:96])
    assert (store.replays, store.num_views) == (False, 2)
    teacher = CountingTeacher()
    assert np.abs(rows_of(store, samples[:96], 0) - teacher(images).numpy()).max() < HALF
    assert np.abs(rows_of(store, samples[:96], 1) - teacher(images.flip(3)).numpy()).max() < HALF


def test_a_second_run_shows_the_teacher_nothing_and_writes_nothing(samples: list[Sample], tmp_path: Path) -> None:
    taught(samples, tmp_path / "store")
    before = contents(tmp_path / "store")
    teacher, reports = CountingTeacher(), list[int]()
    again = teach(teacher, planned(samples[:96], samples[96:]), tmp_path / "store", advance=reports.append)
    assert (teacher.shown, again.pictures, sum(reports)) == (0, 0, 100)
    assert contents(tmp_path / "store") == before


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name != "lock"}


def _teach_and_die(samples: list[Sample], path: Path, dies_after: int) -> None:
    torch.set_num_threads(1)
    teach(CountingTeacher(dies_after=dies_after), planned(samples[:96], samples[96:]), path)


@pytest.mark.parametrize("dies_after", [10, 150, 291])
def test_killed_and_gone_on_with_it_is_bitwise_the_same_store(
    samples: list[Sample], tmp_path: Path, dies_after: int
) -> None:
    taught(samples, tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(
        target=_teach_and_die, args=(samples, tmp_path / "store", dies_after)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    written = sum(shard.count for shard in read_manifest(tmp_path / "store").shards) if dies_after >= 96 else 0
    assert written == dies_after // 96 * 32  # the shards before the kill stay
    done = taught(samples, tmp_path / "store")
    assert done.pictures == 100 - written
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_pictures_that_are_added_or_changed_are_taught_alone(samples: list[Sample], tmp_path: Path) -> None:
    first = teach(CountingTeacher(), planned(samples[:50], samples[96:]), tmp_path / "store")
    before = rows_of(first.store, samples[:50], 2)
    teacher = CountingTeacher()
    more = teach(teacher, planned(samples[:96], samples[96:]), tmp_path / "store")
    assert (more.pictures, teacher.shown) == (46, 46 * 3)
    assert (rows_of(more.store, samples[:50], 2) == before).all()
    whole = taught(samples, tmp_path / "whole").store
    for number in range(3):
        assert np.abs(rows_of(more.store, samples[:96], number) - rows_of(whole, samples[:96], number)).max() < HALF
    path = tmp_path / "other.png"
    Image.new("RGB", (50, 50), "red").save(path)
    changed = [Sample(samples[0].key, path, 0), *samples[1:96]]
    assert teach(CountingTeacher(), planned(changed, samples[96:]), tmp_path / "store").pictures == 1


def test_fewer_views_than_are_stored_are_the_first_ones_and_new_pictures_get_all(
    samples: list[Sample], tmp_path: Path
) -> None:
    taught(samples[:50] + samples[96:], tmp_path / "store")
    done = teach(CountingTeacher(), planned(samples[:96], samples[96:], count=2), tmp_path / "store")
    assert done.store.num_views == 3
    whole = taught(samples, tmp_path / "whole").store
    assert np.abs(rows_of(done.store, samples[:96], 2) - rows_of(whole, samples[:96], 2)).max() < HALF
    table = Stores((done.store,), (1.0,), 2).table("train", [s.key for s in samples[:96]], file_ids(samples[:96]))
    assert table.num_views == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 4}, "3 views of each picture, wanted 4"),
        ({"count": 0}, "3 views of each picture, wanted 0"),
        ({"seed": 2}, "other views (seed 1, wanted 2)"),
        ({"augment": AUGMENT.model_copy(update={"flip": 0.25})}, "augment.flip 0.5, wanted 0.25"),
    ],
)
def test_a_store_of_other_views_is_refused_with_what_differs(
    samples: list[Sample], tmp_path: Path, change: dict[str, object], words: str
) -> None:
    taught(samples, tmp_path / "store")
    before = contents(tmp_path / "store")
    plan = planned(samples[:96], samples[96:])
    with pytest.raises(StoreMismatchError) as caught:
        teach(CountingTeacher(), replace(plan, views=replace(plan.views, **change)), tmp_path / "store")  # type: ignore[arg-type]
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path / "store") == before


def test_a_store_of_another_teacher_or_preprocessing_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    taught(samples, tmp_path / "store")
    other = CountingTeacher()
    with torch.no_grad():
        other.net.project.bias[0] += 1e-4
    with pytest.raises(StoreMismatchError, match="another teacher"):
        teach(other, planned(samples[:96], samples[96:]), tmp_path / "store")
    wider = CountingTeacher()
    wider.preprocess = Preprocess(32, 40)
    with pytest.raises(StoreMismatchError, match=r"other preprocessing \(resize 36, wanted 40\)"):
        teach(wider, planned(samples[:96], samples[96:]), tmp_path / "store")


def test_the_central_square_counts_only_where_views_are_not_cropped(samples: list[Sample]) -> None:
    cropped, whole = planned(samples, []), planned(samples, [], augment=AugmentConfig(flip=0.5))
    teacher, wide = CountingTeacher(), Preprocess(32, 64)
    assert cropped.key(teacher) == replace(cropped, centre=wide).key(teacher)
    assert whole.key(teacher) != replace(whole, centre=wide).key(teacher)


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


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"x" * 500,
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_and_only_its_pictures_are_taught_again(
    samples: list[Sample], tmp_path: Path, damage: str
) -> None:
    taught(samples, tmp_path / "store")
    before = contents(tmp_path / "store")
    shard = tmp_path / "store" / "train-00001.safetensors"
    shard.write_bytes(DAMAGE[damage](before[shard.name]))
    with pytest.raises(LoadError, match="Delete this file") as caught:
        rows_of(TeacherStore(tmp_path / "store"), samples[:96], 0)
    assert str(shard) in str(caught.value) and "\n" not in str(caught.value)
    shard.unlink()
    with pytest.raises(LoadError, match="No such file"):
        TeacherStore(tmp_path / "store")
    assert taught(samples, tmp_path / "store").pictures == 32
    assert {name: content for name, content in contents(tmp_path / "store").items() if "json" not in name} == {
        name: content for name, content in before.items() if "json" not in name
    }


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "something else"},
        {"schema_version": 99},
        {"shards": [{"file": "../../etc/passwd", "split": "train", "count": 1, "size_bytes": 1, "sha256": ""}]},
        {"shards": "no list"},
        {"key": {}},
        {"embed_dim": None},
    ],
)
def test_a_manifest_that_cannot_be_ours_is_refused(
    samples: list[Sample], tmp_path: Path, change: dict[str, object]
) -> None:
    taught(samples[:4], tmp_path / "store")
    path = tmp_path / "store" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(LoadError, match="not the manifest of a teacher store") as caught:
        TeacherStore(tmp_path / "store")
    assert "\n" not in str(caught.value)


def test_a_shard_whose_header_lies_reads_nothing_outside(samples: list[Sample], tmp_path: Path) -> None:
    """The manifest vouches for it, so only the checks of the header itself are left."""
    import hashlib

    taught(samples[:4], tmp_path / "store")
    manifest_path = tmp_path / "store" / "manifest.json"
    for entry in ({"data_offsets": [0, 1 << 40]}, {"shape": [-4, 3, 12]}, {"dtype": "F64"}, {"shape": [1 << 40]}):
        header = {"embeddings": {"dtype": "F16", "shape": [4, 3, 12], "data_offsets": [0, 288], **entry}}
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(288)
        values = json.loads(manifest_path.read_text())
        shard = values["shards"][0] | {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (tmp_path / "store" / shard["file"]).write_bytes(content)
        manifest_path.write_text(json.dumps({**values, "shards": [shard]}))
        with pytest.raises(LoadError, match="Delete this file"):
            TeacherStore(tmp_path / "store").places("train", np.zeros(1, np.uint64))


def test_a_folder_of_other_things_is_left_alone(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(Exception, match="exists already"):
        taught(samples, tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"x"}


def test_broken_pictures_are_named_and_the_others_taught(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    bad = [
        Sample("broken.png", tmp_path / "broken.png", 0),
        Sample("missing.png", tmp_path / "missing.png", 0),
    ]
    train = [*samples[:10], *bad, *samples[10:50]]
    done = teach(CountingTeacher(), planned(train, samples[96:]), tmp_path / "store")
    assert set(done.broken) == {"broken.png", "missing.png"}
    assert done.pictures == 54
    again = teach(CountingTeacher(), planned(train, samples[96:]), tmp_path / "store")
    assert (again.pictures, set(again.broken)) == (0, {"broken.png", "missing.png"})


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

"""Data sets in folders, as people have them, and what a data set can do."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets_for_tests import ROWS, draw, keys, one_folder, refusal, two_splits, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.data import ImageDataset, check_broken, content_hashes, load_dataset
from edgekit.errors import DataError
from edgekit.images import ImageError, read_rgb


def test_train_and_val_folders(tmp_path: Path) -> None:
    data = load_dataset(two_splits(tmp_path))
    assert data.root == tmp_path and data.classes == ("cat", "dog")
    assert keys(data.train) == [f"train/{label}/{i}.png" for label in ("cat", "dog") for i in range(3)]
    assert [sample.label for sample in data.train] == [0, 0, 0, 1, 1, 1]
    assert keys(data.val) == [f"val/{label}/{i}.png" for label in ("cat", "dog") for i in range(2)]
    assert all(sample.path == tmp_path / sample.key for sample in data.train + data.val)
    assert {read_rgb(sample.path).size for sample in data.train + data.val} == {(8, 6)}


@pytest.mark.parametrize("val", ["valid", "validation", "test", "VAL"])
def test_other_names_of_the_validation_split(tmp_path: Path, val: str) -> None:
    data = load_dataset(two_splits(tmp_path, "Train", val))
    assert keys(data.val)[0] == f"{val}/cat/0.png" and len(data.train) == 6


def test_val_goes_before_test_and_test_is_left_alone(tmp_path: Path) -> None:
    two_splits(tmp_path, val="test")
    two_splits(tmp_path)
    data = load_dataset(tmp_path)
    assert {key.split("/")[0] for key in keys(data.train + data.val)} == {"train", "val"}


def test_classes_are_sorted_plainly(tmp_path: Path) -> None:
    labels = ("class10", "class2", "Zebra", "ähre", "a b")
    draw(*(tmp_path / split / label / "0.png" for split in ("train", "val") for label in labels))
    assert load_dataset(tmp_path).classes == ("Zebra", "a b", "class10", "class2", "ähre")


def test_what_is_no_picture_is_passed_over(tmp_path: Path) -> None:
    expected = load_dataset(two_splits(tmp_path))
    draw(
        tmp_path / "train" / "cat" / ".hidden.png",
        tmp_path / "train" / "cat" / "._0.png",  # macOS writes these onto foreign disks
        tmp_path / "train" / "cat" / "@eaDir" / "thumbnail.png",
        tmp_path / "train" / ".ipynb_checkpoints" / "0.png",
        tmp_path / "train" / "__MACOSX" / "cat" / "0.png",
        tmp_path / "__MACOSX" / "0.png",
        tmp_path / "overview.png",
    )
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "labels.csv", "0.xml", "no_suffix", "clip.mp4"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"x")
    assert load_dataset(tmp_path) == expected


def test_suffixes_of_any_case_and_folders_inside_of_classes(tmp_path: Path) -> None:
    two_splits(tmp_path)
    draw(tmp_path / "train" / "cat" / "A.JPG", tmp_path / "train" / "cat" / "day 1" / "x.jpg" / "b.JpEg")
    assert keys(load_dataset(tmp_path).train)[3:5] == ["train/cat/A.JPG", "train/cat/day 1/x.jpg/b.JpEg"]


def test_unlabelled_training_pictures(tmp_path: Path) -> None:
    two_splits(tmp_path)
    draw(tmp_path / "train" / "_unlabeled" / "u.png", tmp_path / "train" / "_unlabeled" / "deep" / "v.png")
    data = load_dataset(tmp_path)
    unlabelled = [sample.key for sample in data.train if sample.label is None]
    assert unlabelled == ["train/_unlabeled/deep/v.png", "train/_unlabeled/u.png"]
    assert data.classes == ("cat", "dog")
    draw(tmp_path / "val" / "_unlabeled" / "w.png")
    assert "1 validation pictures have no label: val/_unlabeled/w.png" in refusal(tmp_path)


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    two_splits(tmp_path / "data")
    draw(tmp_path / "disk" / "far.png", tmp_path / "single.png")
    cat = tmp_path / "data" / "train" / "cat"
    (cat / "linked").symlink_to(tmp_path / "disk")
    (cat / "single.png").symlink_to(tmp_path / "single.png")
    (cat / "up").symlink_to(cat)
    (cat / "top").symlink_to(tmp_path / "data" / "train" / "cat" / "linked")
    (tmp_path / "disk" / "back").symlink_to(cat)
    (cat / "self").symlink_to(cat / "self")
    (cat / "gone.png").symlink_to(tmp_path / "gone.png")
    found = keys(load_dataset(tmp_path / "data").train)
    assert {"train/cat/linked/far.png", "train/cat/single.png", "train/cat/top/far.png"} <= set(found)
    assert not [key for key in found if "/up/" in key or key.count("/back/") > 1]
    # a dangling link is a broken picture: it must show up, so that it is counted
    assert "train/cat/gone.png" in found
    with pytest.raises(ImageError, match="no such file"):
        read_rgb(cat / "gone.png")


def test_a_class_may_be_called_train_or_valid(tmp_path: Path) -> None:
    draw(*(tmp_path / "a" / label / f"{i}.png" for label in ("car", "plane", "train") for i in range(4)))
    assert load_dataset(tmp_path / "a", val_fraction=0.5).classes == ("car", "plane", "train")
    draw(*(tmp_path / "b" / label / f"{i}.png" for label in ("valid", "invalid") for i in range(4)))
    assert load_dataset(tmp_path / "b", val_fraction=0.5).classes == ("invalid", "valid")


def test_val_fraction_splits_each_class(tmp_path: Path) -> None:
    one_folder(tmp_path, 200)
    draw(tmp_path / "_unlabeled" / "u.png")
    data = load_dataset(tmp_path, val_fraction=0.25)
    assert len(data.train) + len(data.val) == 401 and not set(keys(data.train)) & set(keys(data.val))
    for label in (0, 1):
        assert 32 <= sum(sample.label == label for sample in data.val) <= 68  # 200 draws at 0.25: 50, 3 sigma 18
    assert [sample.key for sample in data.train if sample.label is None] == ["_unlabeled/u.png"]
    assert load_dataset(tmp_path, val_fraction=0.25) == data
    assert load_dataset(tmp_path, val_fraction=0.25, seed=1) != data


def test_further_pictures_move_no_other(tmp_path: Path) -> None:
    before = load_dataset(one_folder(tmp_path), val_fraction=0.3)
    draw(*(tmp_path / label / f"new{i}.png" for label in ("cat", "bird") for i in range(30)))
    after = load_dataset(tmp_path, val_fraction=0.3)
    old = set(keys(before.train + before.val))
    assert [key for key in keys(after.val) if key in old] == keys(before.val)
    # neither does a larger share take a picture out of the validation split
    assert set(keys(after.val)) < set(keys(load_dataset(tmp_path, val_fraction=0.6).val))


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(2, 9), min_size=2, max_size=5),
    val_fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32),
)
def test_each_class_has_both_splits(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], val_fraction: float, seed: int
) -> None:
    root = tmp_path_factory.mktemp("data")
    for label, count in enumerate(counts):
        (root / str(label)).mkdir()
        for i in range(count):
            (root / str(label) / f"{i}.png").touch()  # listing opens no picture
    data = load_dataset(root, val_fraction=val_fraction, seed=seed)
    for samples in (data.train, data.val):
        assert {sample.label for sample in samples} == set(range(len(counts)))
    assert len({*keys(data.train), *keys(data.val)}) == sum(counts) == len(data.train) + len(data.val)
    shutil.rmtree(root)


def test_a_class_of_one_picture_cannot_be_split(tmp_path: Path) -> None:
    one_folder(tmp_path)
    draw(tmp_path / "eel" / "0.png")
    assert "1 classes have no training pictures: eel" in refusal(tmp_path, val_fraction=0.1)


def test_fingerprint_sees_every_change_but_the_place(tmp_path: Path) -> None:
    first = load_dataset(two_splits(tmp_path / "a")).fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert load_dataset(tmp_path / "b").fingerprint() == first and len(first) == 64
    seen = {first}

    def changed(change: Callable[[Path], object]) -> None:
        root = tmp_path / f"c{len(seen)}"
        shutil.copytree(tmp_path / "a", root)
        change(root)
        seen.add(load_dataset(root).fingerprint())

    changed(lambda root: draw(root / "train" / "cat" / "new.png"))
    changed(lambda root: (root / "train" / "cat" / "0.png").unlink())
    changed(lambda root: (root / "train" / "cat" / "0.png").rename(root / "train" / "dog" / "x.png"))
    changed(lambda root: (root / "train" / "cat" / "0.png").rename(root / "val" / "cat" / "x.png"))
    changed(lambda root: [(root / split / "cat").rename(root / split / "cow") for split in ("train", "val")])
    changed(lambda root: (root / "train" / "cat" / "0.png").write_bytes(b"other size"))
    assert len(seen) == 7


def test_fingerprint_sees_a_changed_label(tmp_path: Path) -> None:
    rows = "path,label,split\ne.png,cat,train\nf.png,dog,train\n" + ROWS
    swapped = rows.replace("e.png,cat", "e.png,dog").replace("f.png,dog", "f.png,cat")
    first, second = (load_dataset(write_csv(tmp_path, text)) for text in (rows, swapped))
    assert keys(first.train) == keys(second.train) and first.fingerprint() != second.fingerprint()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    two_splits(tmp_path)
    draw(Path(os.fsdecode(os.fsencode(tmp_path) + b"/train/cat/\xff\n.png")))
    data = load_dataset(tmp_path)
    assert len(data.train) == 7 and len(data.fingerprint()) == 64
    (odd,) = (sample for sample in data.train if "\n" in sample.key)
    with pytest.raises(DataError) as caught:
        check_broken({odd.key: "broken"}, 7)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def test_without_leaves_broken_pictures_out(tmp_path: Path) -> None:
    data = load_dataset(two_splits(tmp_path))
    less = data.without(["train/cat/0.png", "val/dog/1.png", "unknown"])
    assert (len(less.train), len(less.val)) == (5, 3) and less.classes == data.classes
    assert "train/cat/0.png" not in keys(less.train) and less.fingerprint() != data.fingerprint()
    with pytest.raises(DataError, match="without 2 broken files: 1 classes have no validation pictures: dog"):
        data.without({"val/dog/0.png", "val/dog/1.png"})


def test_check_broken() -> None:
    broken = {f"train/cat/{i}.jpg": "broken: image file is truncated" for i in range(7)}
    check_broken({}, 0)
    check_broken(broken, 700)
    check_broken(broken, 7, max_broken=1.0)
    with pytest.raises(DataError) as caught:
        check_broken(broken, 699)
    message = str(caught.value)
    assert message.startswith("7 of 699 pictures cannot be read, more than --max-broken 0.01 allows")
    assert message.count("truncated") == 5 and "and 2 more" in message
    # the way out that the message names is one
    check_broken(broken, 699, max_broken=float(message.split("--max-broken ")[-1].rstrip(".")))
    with pytest.raises(DataError, match=r"train/cat/0\.jpg"):
        check_broken(dict(list(broken.items())[:1]), 10**9, max_broken=0)
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        check_broken({}, 10, max_broken=5)


def test_content_hashes_find_copies(tmp_path: Path) -> None:
    data = load_dataset(two_splits(tmp_path))
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "val" / "cat" / "copy.png")
    (tmp_path / "val" / "cat" / "large.png").write_bytes(bytes(3_000_000))
    data = load_dataset(tmp_path)
    train, val = content_hashes(data.train), content_hashes(data.val)
    assert train.keys() == set(keys(data.train))
    assert val["val/cat/copy.png"] == train["train/cat/0.png"]
    assert len(set(train.values()) & set(val.values())) == 1
    assert val["val/cat/large.png"] == hashlib.sha256(bytes(3_000_000)).hexdigest()
    (tmp_path / "train" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"train/cat/0\.png"):
        content_hashes(data.train)


@pytest.mark.realdata
def test_real_photos(real_data: Path) -> None:
    data: ImageDataset = load_dataset(real_data / "har15")
    assert (len(data.classes), len(data.train), len(data.val)) == (15, 10080, 1260)
    assert {min(read_rgb(sample.path).size) for sample in data.val[::100]} == {160}

"""Data sets that cannot be used: what is said about each."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from datasets_for_tests import ROWS, OrdinaryUser, draw, one_folder, refusal, two_splits, write_csv

from edgekit.data import load_dataset
from edgekit.errors import DataError


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    assert "No such file or directory. Give DIR/{train,val}" in refusal(tmp_path / "nowhere")
    assert "No such file" in refusal(tmp_path / "nowhere.csv")
    (tmp_path / "data.parquet").touch()
    assert "is a file of type '.parquet'" in refusal(tmp_path / "data.parquet")
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in refusal(tmp_path / "empty") and "no files at all" in refusal(tmp_path / "empty")


def test_no_pictures_says_what_was_found(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "IMG_1.HEIC").touch()
    message = refusal(tmp_path)
    assert "found 2 x .heic" in message and ".jpg" in message


def test_one_of_the_splits_only(tmp_path: Path) -> None:
    shutil.rmtree(two_splits(tmp_path / "a") / "val")
    message = refusal(tmp_path / "a")
    assert "has train/ but no val/ (valid, validation, test will do as well)" in message
    assert f"give {tmp_path / 'a' / 'train'} with --val-fraction 0.1" in message
    load_dataset(tmp_path / "a" / "train", val_fraction=0.4)  # the way out that the message names
    assert "has train/ but no val/" in refusal(tmp_path / "a", val_fraction=0.1)
    draw(tmp_path / "a" / "annotations" / "0.png")
    assert "has train/ but no val/" in refusal(tmp_path / "a")
    shutil.rmtree(two_splits(tmp_path / "b", val="test") / "train")
    assert "has test/ but no train/" in refusal(tmp_path / "b")


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -0.1, 10.0, float("nan")])
def test_val_fraction_outside_of_its_range(tmp_path: Path, val_fraction: float) -> None:
    one_folder(tmp_path, 3)
    with pytest.raises(DataError, match=r"--val-fraction is .* between 0 and 1"):
        load_dataset(tmp_path, val_fraction=val_fraction)


def test_val_fraction_given_and_needed(tmp_path: Path) -> None:
    assert "leave --val-fraction 0.2 out" in refusal(two_splits(tmp_path / "a"), val_fraction=0.2)
    assert "add --val-fraction 0.1" in refusal(one_folder(tmp_path / "b", 3))
    file = write_csv(tmp_path / "c", "path,label,split\n" + ROWS)
    assert "leave --val-fraction 0.2 out" in refusal(file, val_fraction=0.2)


def test_classes_missing_in_a_split(tmp_path: Path) -> None:
    two_splits(tmp_path)
    draw(*(tmp_path / "train" / f"extra{i}" / "0.png" for i in range(7)))
    message = refusal(tmp_path)
    assert "7 classes have no validation pictures: extra0, extra1, extra2, extra3, extra4 and 2 more" in message
    for i in range(7):
        shutil.rmtree(tmp_path / "train" / f"extra{i}")
    draw(tmp_path / "val" / "eel" / "0.png")
    (tmp_path / "train" / "eel").mkdir()
    assert "1 classes have no training pictures: eel" in refusal(tmp_path)


def test_one_class_only(tmp_path: Path) -> None:
    draw(*(tmp_path / split / "cat" / "0.png" for split in ("train", "val")))
    assert "one class only (cat)" in refusal(tmp_path)


def test_pictures_outside_of_any_class(tmp_path: Path) -> None:
    two_splits(tmp_path)
    draw(tmp_path / "train" / "loose.png")
    message = refusal(tmp_path)
    assert "1 pictures lie in" in message and "loose.png" in message and "_unlabeled/" in message


def test_one_file_in_both_splits_is_a_leak(tmp_path: Path) -> None:
    two_splits(tmp_path)
    (tmp_path / "val" / "cat" / "again.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    assert "1 pictures are in train and in val" in refusal(tmp_path)
    (tmp_path / "val" / "cat" / "again.png").unlink()
    (tmp_path / "val" / "cat" / "again").symlink_to(tmp_path / "train" / "cat")
    assert "3 pictures are in train and in val" in refusal(tmp_path)


def test_a_link_across_splits_in_a_csv_is_a_leak(tmp_path: Path) -> None:
    text = "path,label,split\n" + ROWS + "link.png,cat,val\n"
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    message = refusal(write_csv(tmp_path, text))
    assert "a.png = link.png" in message


def test_one_file_with_two_labels(tmp_path: Path) -> None:
    two_splits(tmp_path)
    (tmp_path / "train" / "dog" / "again.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    assert "1 pictures have two labels: train/cat/0.png = train/dog/again.png" in refusal(tmp_path)


def test_a_split_made_here_keeps_the_names_of_one_file_together(tmp_path: Path) -> None:
    one_folder(tmp_path)
    for i in range(40):
        (tmp_path / "cat" / f"link{i}.png").symlink_to(tmp_path / "cat" / f"{i:03d}.png")
    data = load_dataset(tmp_path, val_fraction=0.5)
    real = [{os.path.realpath(sample.path) for sample in samples} for samples in (data.train, data.val)]
    assert not real[0] & real[1]


def test_unreadable_folders(open_tmp: Path, without_root: OrdinaryUser) -> None:
    two_splits(open_tmp / "data")
    locked = open_tmp / "data" / "train" / "cat"
    locked.chmod(0o000)
    with without_root():
        assert f"cannot read the folder {locked}: Permission denied" in refusal(open_tmp / "data")
    locked.chmod(0o755)
    file = write_csv(open_tmp / "csv", "path,label,split\n" + ROWS)
    file.chmod(0o000)
    with without_root():
        assert "Permission denied" in refusal(file)
    file.chmod(0o644)
    (open_tmp / "csv").chmod(0o000)
    with without_root():
        for source in (file, open_tmp / "csv"):
            assert "Permission denied" in refusal(source)
    (open_tmp / "csv").chmod(0o755)

"""Data sets of clips: what counts as one, in folders and in a CSV, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.data import content_hashes, load_dataset
from edgekit.errors import DataError
from tests.datasets_for_tests import keys
from tests.videos_for_tests import grey_frames, moving_dot, write_frames

FRAMES = grey_frames([10, 20, 30], size=(16, 16))


def clips(root: Path) -> Path:
    for label in ("jump", "run"):
        write_frames(root / label / "a", FRAMES)
        write_frames(root / label / "session 2" / "b", FRAMES[:2])
        (root / label / "c.MP4").write_bytes(b"a video")
        (root / label / "notes.txt").touch()
    return root


def refusal(source: Path, **options: float) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(source, kind="clips", **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_videos_and_folders_of_frames(tmp_path: Path) -> None:
    dataset = load_dataset(clips(tmp_path), kind="clips", val_fraction=0.3)
    found = sorted(keys(dataset.train) + keys(dataset.val))
    assert found == [f"{label}/{name}" for label in ("jump", "run") for name in ("a", "c.MP4", "session 2/b")]
    assert dataset.kind == "clips" and dataset.classes == ("jump", "run")


def test_splits(tmp_path: Path) -> None:
    clips(tmp_path / "train")
    clips(tmp_path / "val")
    dataset = load_dataset(tmp_path, kind="clips")
    assert len(dataset.train) == len(dataset.val) == 6 and dataset.train[0].key == "train/jump/a"


def test_csv(tmp_path: Path) -> None:
    clips(tmp_path)
    rows = "jump/a,jump,train\njump/c.MP4,jump,val\nrun/a,run,train\nrun/c.MP4,run,val\n"
    (tmp_path / "clips.csv").write_text("path,label,split\n" + rows)
    dataset = load_dataset(tmp_path / "clips.csv", kind="clips")
    assert keys(dataset.train) == ["jump/a", "run/a"] and keys(dataset.val) == ["jump/c.MP4", "run/c.MP4"]
    (tmp_path / "clips.csv").write_text("path,label,split\n" + rows + "run/z,run,val\n")
    assert "1 files that are not there: run/z" in refusal(tmp_path / "clips.csv")


def test_fingerprint_sees_a_frame_that_changes(tmp_path: Path) -> None:
    before = load_dataset(clips(tmp_path), kind="clips", val_fraction=0.3)
    print_before, hashes = before.fingerprint(), content_hashes((*before.train, *before.val))
    assert hashes["jump/a"] == hashes["run/a"] != hashes["run/session 2/b"]
    write_frames(tmp_path / "run" / "a", moving_dot(0, right=True, count=3))
    after = load_dataset(tmp_path, kind="clips", val_fraction=0.3)
    assert print_before != after.fingerprint()
    assert hashes["run/a"] != content_hashes((*after.train, *after.val))["run/a"]


def test_pictures_outside_of_a_clip(tmp_path: Path) -> None:
    clips(tmp_path)
    write_frames(tmp_path / "run", FRAMES)
    message = refusal(tmp_path, val_fraction=0.3)
    assert "3 pictures lie in" in message and "leave --frames out to train on pictures" in message


def test_no_clips_and_no_pictures_say_what_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "no clips in" in refusal(tmp_path, val_fraction=0.3)
    (tmp_path / "run" / "a.mp4").touch()
    with pytest.raises(DataError, match=r"Clips train with --frames 8"):
        load_dataset(tmp_path, val_fraction=0.3)

"""The demo's drawings: pure functions of (seed, index), honest captions, and the folders that `distill` reads."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.data import load_dataset
from edgekit.demo.drawings import draw, write_drawings
from edgekit.demo.shapes import CLASSES, OUTLINES, TEXTURES, outline_mask, texture_field
from edgekit.errors import OutputExistsError


def test_a_drawing_is_a_function_of_seed_and_index() -> None:
    first, again = draw(7, 3, 48), draw(7, 3, 48)
    np.testing.assert_array_equal(first.picture, again.picture)
    assert first.caption == again.caption
    for other in (draw(8, 3, 48), draw(7, 3 + len(CLASSES), 48)):
        assert other.label == first.label
        assert np.abs(other.picture.astype(int) - first.picture).mean() > 5


def test_classes_take_turns_and_captions_name_theirs_alone() -> None:
    for index in range(240):
        drawing = draw(0, index, 32)
        assert drawing.label == CLASSES[index % len(CLASSES)]
        named = [name for name in CLASSES if name.replace("_", " ") in drawing.caption]
        assert named == [drawing.label], drawing.caption
        assert "  " not in drawing.caption
        assert " a orange" not in f" {drawing.caption}"


def test_captions_vary() -> None:
    captions = {draw(0, index, 32).caption for index in range(0, 2400, len(CLASSES))}
    assert len(captions) > 120  # of 200 about the same class; 145 when written


def test_colour_alone_does_not_give_the_class_away() -> None:
    """Nearest class mean of the colour histogram, fitted on 480 drawings, must stay near the chance of 1/12."""

    def histogram(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        coarse = draw(0, index, 48).picture.reshape(-1, 3) // 64
        counts = np.bincount(coarse @ np.array([16, 4, 1]), minlength=64).astype(np.float64)
        return counts / counts.sum()

    train = np.stack([histogram(index) for index in range(480)])
    test = np.stack([histogram(index) for index in range(480, 960)])
    means = np.stack([train[at :: len(CLASSES)].mean(0) for at in range(len(CLASSES))])
    predicted = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (predicted == np.arange(480) % len(CLASSES)).mean() < 0.3


@pytest.mark.parametrize("name", CLASSES)
def test_outlines_lie_in_the_unit_disc_and_are_filled(name: str) -> None:
    assert np.hypot(*OUTLINES[name].T).max() < 1.3
    mask = outline_mask(name, 64, np.array([[25.0, 0, 32], [0, 25.0, 32]]))
    assert mask.shape == (64, 64)
    assert 0.08 < mask.mean() < 0.5
    assert mask[0].max() == mask[-1].max() == mask[:, 0].max() == mask[:, -1].max() == 0  # nothing is cut off


def test_a_ring_has_a_hole_and_a_circle_has_not() -> None:
    transform = np.array([[25.0, 0, 32], [0, 25.0, 32]])
    assert outline_mask("ring", 64, transform)[32, 32] == 0
    assert outline_mask("circle", 64, transform)[32, 32] == 1


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_mix_two_tones(name: str) -> None:
    field = texture_field(name, 64, 6.0, 0.3)
    assert field.shape == (64, 64)
    assert 0 <= field.min() <= field.max() <= 1
    assert (field.std() > 0.2) == (name != "plain")


def test_the_folder_is_a_data_set_with_few_labels(tmp_path: Path) -> None:
    drawn = write_drawings(tmp_path / "drawings", labelled=24, unlabelled=60, val=36, size=40, seed=1)
    data = load_dataset(drawn.folder)
    assert data.classes == drawn.classes == CLASSES
    assert sum(sample.label is not None for sample in data.train) == 24
    assert len(data.train) == 84
    assert len(data.val) == 36
    for count in np.bincount([sample.label for sample in data.val if sample.label is not None]):
        assert count == 3
    with (drawn.folder / "captions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["image"] for row in rows) == [sample.key for sample in data.train]
    sample = next(row for row in rows if row["image"].startswith("train/_unlabeled"))
    index = int(Path(sample["image"]).stem)
    assert sample["caption"] == draw(1, index, 40).caption
    with Image.open(drawn.folder / sample["image"]) as picture:
        assert picture.size == (40, 40)
        error = np.asarray(picture, dtype=int) - draw(1, index, 40).picture
    assert np.abs(error).mean() < 8  # JPEG


def test_no_picture_is_in_two_places(tmp_path: Path) -> None:
    drawn = write_drawings(tmp_path / "drawings", labelled=12, unlabelled=24, val=24, size=32, seed=0)
    contents = [path.read_bytes() for path in drawn.folder.rglob("*.jpg")]
    assert len(contents) == len(set(contents)) == 60


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        write_drawings(tmp_path / "drawings", labelled=12, unlabelled=0, val=12, size=32, seed=0)
    assert (tmp_path / "drawings" / "mine.txt").read_text() == "mine"


def test_thousands_take_seconds() -> None:
    started = time.process_time()
    for index in range(100):
        draw(0, index, 96)
    assert (time.process_time() - started) / 100 < 0.010  # about 1.5 ms on an idle core; 10 would be 50 s for 5000

"""Decoded pictures: what is kept, what is broken, and where it lies."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekit.atomic import WriteError
from edgekit.compress.pictures import pixels
from edgekit.compress.pictures.pixels import decode_eval, decode_train, image_batches, squeeze_pixels, to_images
from edgekit.data import Sample
from edgekit.images import read_rgb
from edgekit.preprocess import Preprocess, fit_pixels

CONTRACT = Preprocess(24, 28)


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Seventy pictures (more than one report of progress), of several shapes and formats."""
    found = []
    for number in range(70):
        path = tmp_path / f"{number:02d}.{('png', 'jpg')[number % 2]}"
        noise(30 + number, 60 - number // 2, number).save(path)
        found.append(Sample(path.name, path, number % 3))
    return found


def test_training_pictures_are_squeezed_whole_and_keep_their_aspect(samples: list[Sample]) -> None:
    store = decode_train(samples, 32)
    assert store.samples == tuple(samples)
    assert store.pixels.shape == (70, 32, 32, 3)
    assert not store.broken
    for row in (0, 7, 69):
        with Image.open(samples[row].path) as picture:
            assert store.aspects[row] == pytest.approx(picture.width / picture.height)
        assert (store.pixels[row] == squeeze_pixels(read_rgb(samples[row].path, at_least=32), 32)).all()


def test_evaluation_pictures_go_through_the_contract(samples: list[Sample]) -> None:
    store = decode_eval(samples, CONTRACT)
    for row in (0, 7, 69):
        assert (store.pixels[row] == fit_pixels(read_rgb(samples[row].path), CONTRACT)).all()


def test_an_upright_picture_has_the_aspect_it_is_shown_with(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise(40, 20, 0).save(tmp_path / "turned.jpg", exif=exif)
    store = decode_train([Sample("turned.jpg", tmp_path / "turned.jpg", 0)], 16)
    assert store.aspects.tolist() == [0.5]


def test_broken_pictures_are_named_and_the_others_close_the_gap(samples: list[Sample]) -> None:
    samples[0].path.write_bytes(b"")
    samples[33].path.write_bytes(samples[33].path.read_bytes()[:200])
    samples[34].path.unlink()
    whole = [sample for number, sample in enumerate(samples) if number not in (0, 33, 34)]
    store = decode_train(samples, 32)
    assert list(store.broken) == ["00.png", "33.jpg", "34.png"]
    for reason, name in zip(store.broken.values(), store.broken, strict=True):
        assert name in reason
    expected = decode_train(whole, 32)
    assert store.samples == expected.samples
    assert (store.pixels == expected.pixels).all()
    assert (store.aspects == expected.aspects).all()


def test_progress_adds_up_to_the_number_of_pictures(samples: list[Sample]) -> None:
    reports: list[int] = []
    decode_train(samples, 16, advance=reports.append)
    assert reports == [64, 6]


def test_the_number_of_threads_changes_nothing(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    samples[5].path.write_bytes(b"no picture")
    stores = []
    for count in (1, 8):
        monkeypatch.setattr(pixels, "usable_cores", lambda count=count: count)
        stores.append(decode_train(samples, 32))
    assert (stores[0].pixels == stores[1].pixels).all()
    assert stores[0].samples == stores[1].samples
    assert stores[0].broken == stores[1].broken


def test_a_large_store_lies_in_a_file_that_is_gone_already(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "IN_MEMORY_BYTES", 1000)
    samples[3].path.write_bytes(b"no picture")
    scratch = tmp_path / "deep" / "scratch"
    mapped = decode_train(samples, 32, scratch=scratch)
    assert isinstance(mapped.pixels, np.memmap)
    assert list(scratch.iterdir()) == []  # unlinked: the space is free when the process ends, however it ends
    assert (mapped.pixels == decode_train(samples, 32).pixels).all()  # without scratch folder: in memory
    assert not isinstance(decode_train(samples, 32).pixels, np.memmap)


def test_a_disk_too_small_for_the_store_is_one_clear_line(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "IN_MEMORY_BYTES", 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(WriteError, match="decoded pictures") as caught:
            decode_train(samples, 32, scratch=tmp_path / "scratch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("shape", [(5, 6, 4, 3), (5, 2, 6, 4, 3)])
def test_pixels_become_images_of_the_net(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)[..., ::-1, :]  # flipped: a negative step
    parts = list(image_batches(pixels, 2))
    assert [len(part) for part in parts] == [2, 2, 1]
    images = torch.cat(parts)
    assert images.dtype == torch.float32
    np.testing.assert_array_equal(images.movedim(-3, -1).numpy(), pixels.astype(np.float32) / 255)
    torch.testing.assert_close(to_images(pixels[0]), images[0], rtol=0, atol=0)

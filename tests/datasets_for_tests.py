"""Data sets of small real pictures for the tests, and how a bad one must be refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from edgekit.data import Sample, load_dataset
from edgekit.errors import DataError

OrdinaryUser = Callable[[], AbstractContextManager[None]]


def draw(*paths: Path) -> None:
    """Write a small real picture at each path; its colour depends on the path, so that contents differ."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = sum(bytes(path)) * 7919 % (1 << 24)
        Image.new("RGB", (8, 6), (colour >> 16, colour >> 8 & 255, colour & 255)).save(path, format="PNG")


def two_splits(root: Path, train: str = "train", val: str = "val") -> Path:
    draw(*(root / train / label / f"{i}.png" for label in ("cat", "dog") for i in range(3)))
    draw(*(root / val / label / f"{i}.png" for label in ("cat", "dog") for i in range(2)))
    return root


def keys(samples: Sequence[Sample]) -> list[str]:
    return [sample.key for sample in samples]


def refusal(source: Path, **options: float) -> str:
    """Return the message that refuses a source; always one line that names it."""
    with pytest.raises(DataError) as caught:
        load_dataset(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and source.name in message
    return message


def one_folder(root: Path, count: int = 40) -> Path:
    draw(*(root / label / f"{i:03d}.png" for label in ("cat", "dog") for i in range(count)))
    return root


def write_csv(root: Path, text: str, encoding: str = "utf-8") -> Path:
    draw(*(root / f"{name}.png" for name in "abcdef"))
    (root / "labels.csv").write_bytes(text.encode(encoding))
    return root / "labels.csv"


ROWS = "a.png,cat,train\nb.png,dog,train\nc.png,cat,val\nd.png,dog,val\n"

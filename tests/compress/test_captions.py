"""Caption files: what is read, and what is refused with a line number."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgekit.compress.captions import load_captions
from edgekit.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, content: str, encoding: str = "utf-8") -> Path:
    (folder / "captions.csv").write_bytes(content.encode(encoding))
    return folder / "captions.csv"


def test_a_picture_may_have_several_captions(folder: Path) -> None:
    file = write(folder, 'image,caption\nb.png,"a star, red"\na.png,one\n\nb.png, two \n')
    found = load_captions(file)
    assert [sample.key for sample in found.samples] == ["a.png", "b.png"]
    assert found.captions == (("one",), ("a star, red", "two"))
    assert found.texts() == ["one", "a star, red", "two"]
    assert found.take({"b.png"}).captions == (("a star, red", "two"),)
    assert found.samples[0].path == folder / "a.png"


def test_other_tools_column_names_and_a_picture_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = write(tmp_path / "elsewhere", "\ufefffile_name,split,Text\na.png,train,hello\n")
    found = load_captions(file, pictures=folder)
    assert found.captions == (("hello",),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\na.png,\n", "line 2: the caption is empty"),
        ("image,caption\na.png,x\n,y\n", "line 3: the image is empty"),
        ("image,caption\nc.png,x\n", "1 pictures that are not in .*c.png"),
        ("image,caption\n", "no rows"),
        ("", "no column image .*empty"),
        ("image,words\na.png,x\n", "no column caption or text; its header is: image, words"),
        ("image,caption\na.png\n", "line 2: 1 columns"),
        ('image,caption\na.png,"x\n', "closed quotes"),
    ],
)
def test_refusals_name_the_line(folder: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_captions(write(folder, content))


def test_other_encodings_and_missing_files_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        load_captions(write(folder, "image,caption\na.png,café\n", encoding="latin-1"))
    with pytest.raises(DataError, match="cannot read"):
        load_captions(folder / "none.csv")

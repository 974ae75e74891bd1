"""Caption files: what is read, and what is refused with a line number."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgekit.captions import CaptionedSet, load_captions, split_captions
from edgekit.data import Sample
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
        (
            "image,caption\na.png,a dog, running\n",
            "line 2: 3 columns, the header has 2. A caption with commas needs quotes",
        ),
        ("image,caption,split\na.png,x,trian\n", "line 2: unknown split 'trian', did you mean 'train'"),
        ("image,caption,split\na.png,x,train\na.png,y,val\n", "line 3: a.png is in 'train' and in 'val'"),
        ("image,caption,split\na.png,x,train\nb.png,y,\n", "1 pictures have no split, others do: b.png"),
        ("image,caption\na.png,\u00a0\u2003\n", "line 2: the caption is empty"),
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


def sidecars(root: Path, **texts: str) -> Path:
    root.mkdir()
    for name, text in texts.items():
        Image.new("RGB", (8, 8)).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(text, encoding="utf-8")
    return root


def test_a_folder_with_a_text_file_beside_each_picture(tmp_path: Path) -> None:
    found = load_captions(sidecars(tmp_path / "set", a="one\n\n two \n", b="ein Bär 🐻 في الغابة\n"))
    assert [sample.key for sample in found.samples] == ["a.png", "b.png"]
    assert found.captions == (("one", "two"), ("ein Bär 🐻 في الغابة",))


def test_a_folder_with_a_table_and_pictures_below(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "mute.png")
    (tmp_path / "captions.txt").write_text("image,caption\na.png,x\n", encoding="utf-8")
    found = load_captions(tmp_path)
    assert found.samples[0].path == tmp_path / "images" / "a.png"
    assert found.notes == ("1 pictures beside the captioned ones have no caption in captions.txt: mute.png",)


def test_pictures_without_captions_and_captions_without_pictures(tmp_path: Path) -> None:
    root = sidecars(tmp_path / "set", a="x", b="y")
    (root / "a.txt").unlink()
    with pytest.raises(DataError, match=r"1 pictures have no caption file: a\.png"):
        load_captions(root)
    (root / "a.txt").write_text("x", encoding="utf-8")
    (root / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 caption files have no picture: b\.txt"):
        load_captions(root)
    (root / "b.txt").unlink()
    (root / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        load_captions(root)
    (root / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"not UTF-8 .byte 0xe9"):
        load_captions(root)
    (root / "a.png").unlink()
    with pytest.raises(DataError, match="no pictures with captions"):
        load_captions(root)


def captioned(count: int) -> CaptionedSet:
    samples = tuple(Sample(f"{at}.png", Path(f"{at}.png"), None) for at in range(count))
    return CaptionedSet(samples, tuple((f"{at}", f"again {at}") for at in range(count)))


def test_the_split_is_by_picture_exact_and_a_function_of_the_seed() -> None:
    whole = captioned(1000)
    split = split_captions(whole, None, seed=0)
    assert (len(split.train.samples), len(split.val.samples), len(split.val.texts())) == (900, 100, 200)
    assert not {s.key for s in split.train.samples} & {s.key for s in split.val.samples}
    assert split_captions(whole, 0.1, seed=0).fingerprint() == split.fingerprint()
    assert split_captions(whole, 0.1, seed=1).fingerprint() != split.fingerprint()


def test_the_split_of_the_file_counts(folder: Path) -> None:
    rows = [f"{name}.png,x,{split}" for name, split in (("c", "train"), ("d", "train"), ("e", "test"), ("f", "test"))]
    for name in "cdef":
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    found = load_captions(write(folder, "\n".join(["image,caption,split", *rows])))
    split = split_captions(found, None, seed=5)
    assert [sample.key for sample in split.val.samples] == ["e.png", "f.png"]
    with pytest.raises(DataError, match="have a split column"):
        split_captions(found, 0.5, seed=5)


def test_a_test_split_beside_a_validation_split_chooses_nothing(folder: Path) -> None:
    sides = {"c": "train", "d": "train", "e": "val", "f": "val", "g": "test", "h": "test"}
    for name in "cdefg":  # h is not there, and nobody asks for it
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    lines = [f"{name}.png,{name} {at},{split}" for name, split in sides.items() for at in (1, 2)]
    found = load_captions(write(folder, "\n".join(["image,caption,split", *lines])))
    split = split_captions(found, None, seed=0)
    assert [sample.key for sample in split.train.samples] == ["c.png", "d.png"]
    assert [sample.key for sample in split.val.samples] == ["e.png", "f.png"]
    assert found.test is not None and [sample.key for sample in found.test.samples] == ["g.png", "h.png"]
    assert found.test.captions == (("g 1", "g 2"), ("h 1", "h 2"))
    assert found.notes[0] == "2 pictures of the split 'test' are left out: those of 'val' are for validation"
    assert "g.png" not in "".join(found.notes[1:]), "what is left out is not without captions"


@pytest.mark.parametrize(("count", "share", "message"), [(10, 1.0, "between 0 and 1"), (5, 0.1, "0 of 5 .*validation")])
def test_a_split_that_leaves_nothing_is_refused(count: int, share: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_captions(captioned(count), share, seed=0)


def test_pictures_of_absolute_names_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    file = write(tmp_path / "tables", f"image,caption\n{folder / 'a.png'},one\n")
    found = load_captions(file)
    assert found.samples[0].path == folder / "a.png"
    (note,) = found.notes
    assert note.endswith(f": {folder / 'b.png'}")

"""Data sets in a CSV, good and bad, as real files."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets_for_tests import ROWS, draw, keys, refusal, write_csv

from edgekit.data import load_dataset
from edgekit.images import read_rgb


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_with_split(tmp_path: Path, encoding: str, newline: str) -> None:
    file = write_csv(tmp_path, ("path,label,split\n" + ROWS).replace("\n", newline), encoding)
    data = load_dataset(file)
    assert data == load_dataset(file)
    assert data.root == tmp_path and data.classes == ("cat", "dog")
    assert [(s.key, s.label) for s in data.train] == [("a.png", 0), ("b.png", 1)]
    assert [(s.key, s.label) for s in data.val] == [("c.png", 0), ("d.png", 1)]


def test_csv_oddities(tmp_path: Path) -> None:
    draw(tmp_path / "with, comma.png", tmp_path / "sub" / "größe.PNG", tmp_path / "other" / "far.png")
    text = (
        "Split, Path ,Label,photographer\n"
        'train,"with, comma.png",cat,x\n'
        "\n"
        f"TRAIN,./sub//größe.PNG, dog ,\n"
        f"train,{tmp_path / 'a.png'},cat,\n"
        f"train,{tmp_path.parent / tmp_path.name / 'other' / 'far.png'},,\n"
        "train,e.png,_unlabeled,\n"
        "validation,c.png,cat,\n,,,\nvalidation,d.png,dog,\n"
    )
    data = load_dataset(write_csv(tmp_path, text))
    assert [(s.key, s.label) for s in data.train] == [
        ("a.png", 0),
        ("e.png", None),
        ("other/far.png", None),
        ("sub/größe.PNG", 1),
        ("with, comma.png", 0),
    ]
    assert all(read_rgb(s.path).size == (8, 6) for s in data.train + data.val)


def test_csv_outside_of_its_folder(tmp_path: Path) -> None:
    draw(tmp_path / "pictures" / "far.png")
    text = f"path,label,split\n../pictures/far.png,cat,train\n{ROWS.replace('a.png', str(tmp_path / 'csv' / 'a.png'))}"
    data = load_dataset(write_csv(tmp_path / "csv", text))
    assert keys(data.train) == ["../pictures/far.png", "a.png", "b.png"]


def test_csv_without_split(tmp_path: Path) -> None:
    rows = "".join(f"{name}.png,{label},\n" for name, label in zip("abcdef", ["x", "y"] * 3, strict=True))
    file = write_csv(tmp_path, "path,label,comment\n" + rows)
    data = load_dataset(file, val_fraction=0.4)
    assert len(data.train) + len(data.val) == 6 and {s.label for s in data.val} == {0, 1}
    assert "--val-fraction 0.1" in refusal(file)


def test_csv_test_rows_are_left_alone_where_val_rows_are(tmp_path: Path) -> None:
    data = load_dataset(write_csv(tmp_path, "path,label,split\n" + ROWS + "e.png,cat,test\nnowhere.png,dog,test\n"))
    assert keys(data.train + data.val) == ["a.png", "b.png", "c.png", "d.png"]
    data = load_dataset(write_csv(tmp_path, "path,label,split\n" + ROWS.replace("val", "test")))
    assert keys(data.val) == ["c.png", "d.png"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "path and label not so in: an empty file"),
        ("\n\n", "path and label not so in: an empty file"),
        ("path,label,split\n", "has no rows below its header"),
        ("path,class\na.png,cat\n", "label not so in: path, class"),
        ("path,label,label\na.png,cat,x\n", "label not so in: path, label, label"),
        ("path;label;split\na.png;cat;train\n", "columns are separated by ';': use commas"),
        ("path\tlabel\na.png\tcat\n", "columns are separated by '\\t': use commas"),
        (
            "path,label,split\na.png,cat,train\nb.png,dog\n",
            "line 3: a cell of path,label,split is missing in: 'b.png,dog'",
        ),
        ("path,label,split\n,cat,train\n", "line 2: a cell of path,label,split is missing"),
        ("path,label,split\na.png,cat,trian\n", "line 2: unknown split 'trian', did you mean 'train'?"),
        ("path,label,split\na.png,cat,\n", "line 2: unknown split '', allowed: test, train, val, valid, validation"),
        ("path,label,split\n" + ROWS + "a.png,cat,train\n", "names 1 pictures more than once: a.png (lines 2, 6)"),
        ("path,label,split\n" + ROWS + "./a.png,dog,val\n", "names 1 pictures more than once: a.png (lines 2, 6)"),
        ('path,label,split\na.png,"cat,train\nb.png,dog,train\n', "unexpected end of data"),
        ("path,label,split\na.png,cat,train\nc.png,cat,val\n", "one class only (cat)"),
        ("path,label,split\na.png,,train\n", "no labelled pictures"),
        ("path,label,split\n" + ROWS + "e.png,,val\n", "1 validation pictures have no label: e.png"),
        ("path,label,split\n" + ROWS.replace("d.png,dog", "d.png,cat"), "1 classes have no validation pictures: dog"),
        ("path,label,split\n" + ROWS + "f.png,eel,val\n", "1 classes have no training pictures: eel"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(write_csv(tmp_path, text))


def test_bad_csv_bytes(tmp_path: Path) -> None:
    text = "path,label,split\n" + ROWS.replace("cat", "Mäuse")
    assert "is not UTF-8 (byte 0xe4)" in refusal(write_csv(tmp_path, text, "latin-1"))
    assert "is not UTF-8 (byte 0xff)" in refusal(write_csv(tmp_path, text, "utf-16"))
    assert "line contains NUL" in refusal(write_csv(tmp_path, "path,label,split\na\0.png,cat,train\n"))
    assert "field larger" in refusal(write_csv(tmp_path, "path,label\na.png," + "x" * 200_000 + "\n"))


def test_csv_with_missing_files(tmp_path: Path) -> None:
    rows = "".join(f"gone{i}.png,cat,train\n" for i in range(8))
    message = refusal(write_csv(tmp_path, "path,label,split\n" + ROWS + rows + ".,cat,train\n"))
    assert "names 9 files that are not there" in message and "and 4 more" in message
    assert message.count("gone") == 5 and f"relative to {tmp_path}" in message

"""Texts with labels: every form that is read, and a clear line for each that cannot be."""

from __future__ import annotations

import json
from collections import Counter
from csv import field_size_limit
from pathlib import Path

import numpy as np
import pytest
from texts_for_tests import reviews, write_reviews

from edgekit.errors import DataError, UsageError
from edgekit.text_data import limited, load_split, load_texts
from edgekit.text_files import TextFiles, read_rows


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode("utf-8", errors="surrogatepass"))
    return path


GOOD = "a fine film\t1\na dull film\t0\nlovely\t1\nawful\t0\n"


def test_all_forms_give_the_same(tmp_path: Path) -> None:
    pairs = reviews(20, 0)
    plain = "".join(f"{text}\t{name}\n" for text, name in pairs)
    files = [
        write(tmp_path / "plain.tsv", plain),
        write(tmp_path / "headed.tsv", "label\ttext\n" + "".join(f"{name}\t{text}\n" for text, name in pairs)),
        write(tmp_path / "bom.csv", "\ufefftext,label\r\n" + "".join(f'"{text}",{name}\r\n' for text, name in pairs)),
        write(
            tmp_path / "lines.jsonl",
            "\n".join(json.dumps({"text": text, "label": name}) for text, name in pairs) + "\n\n",
        ),
    ]
    found = [load_texts(TextFiles(path, path)) for path in files]
    assert {dataset.fingerprint() for dataset in found} == {found[0].fingerprint()}
    assert found[0].classes == ("bad", "good") and not found[0].soft
    assert found[0].train.texts == tuple(text for text, _ in pairs)
    assert [found[0].classes[label] for label in found[0].train.labels] == [name for _, name in pairs]


def test_quotes_are_letters_in_tsv_and_quotes_in_csv(tmp_path: Path) -> None:
    tsv = write(tmp_path / "a.tsv", 'he said " no\t0\n" yes\t1\n')
    csv = write(tmp_path / "a.csv", '"he said "" no",0\n"two\nlines, yes",1\n')
    assert load_texts(TextFiles(tsv, tsv)).train.texts == ('he said " no', '" yes')
    assert load_texts(TextFiles(csv, csv)).train.texts == ('he said " no', "two\nlines, yes")


def test_numbers_are_ordered_as_numbers_and_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "".join(f"text {n}\t{n}\n" for n in (10, 9, 2, 10)))
    assert load_texts(TextFiles(path, path)).classes == ("2", "9", "10")
    good = write(tmp_path / "b.tsv", GOOD)
    named = load_texts(TextFiles(good, good, classes=("bad", "good")))
    assert named.classes == ("bad", "good") and named.train.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "content",
    [
        "text,p_bad,p_good\na,0.25,0.75\nb,1,0\nc,0.5,0.5\n",
        'text,label\na,"[0.25, 0.75]"\nb,"[1, 0]"\nc,"[0.5, 0.5]"\n',
        'text,label\na,"{""bad"": 0.25, ""good"": 0.75}"\nb,"{""bad"": 1, ""good"": 0}"\n'
        'c,"{""bad"": 0.5, ""good"": 0.5}"\n',
    ],
)
def test_soft_labels(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "soft.csv", content)
    dataset = load_texts(TextFiles(path, path, classes=("bad", "good")))
    assert dataset.soft
    np.testing.assert_allclose(dataset.train.targets, [[0.25, 0.75], [1, 0], [0.5, 0.5]])


def test_soft_labels_may_be_tested_on_hard_ones_in_a_split_of_their_own(tmp_path: Path) -> None:
    hard = load_split(write(tmp_path / "t.tsv", GOOD), TextFiles(tmp_path), ("0", "1"))
    np.testing.assert_array_equal(hard.targets, [[0, 1], [1, 0], [0, 1], [1, 0]])


REFUSED = {
    "odd label": ("a\t0\nb\t1\nc\tgood\n", ".tsv", r"a\.tsv:3: the label 'good' is no number, while 2 other labels"),
    "header of other names": (
        "review\tstars\na\t0\nb\t1\n",
        ".tsv",
        r"a\.tsv:1: the label 'stars' is no number, .* name a header's columns with --text-column and --label-column",
    ),
    "header without text": (
        "sentence\tlabel\na\tgood\nb\tbad\n",
        ".tsv",
        r"a\.tsv:1 names the columns sentence, label, none of them 'text'; say which holds the texts",
    ),
    "too many probabilities": (
        'a,"[0, 1]"\nb,"[1, 0]"\nc,"[0.2, 0.3, 0.5]"\n',
        ".csv",
        r"a\.csv:3 has 3 probabilities for 2 classes",
    ),
    "one class": ("a\t1\nb\t1\n", ".tsv", "all 2 texts are of the class '1': nothing to tell apart"),
    "empty file": ("", ".tsv", "holds no texts"),
    "header alone": ("text\tlabel\n", ".tsv", "holds no texts"),
    "columns": ("a\t0\nb\t1\tc\n", ".tsv", r"a\.tsv:2 has 3 columns, not 2"),
    "no label": ("a\t0\nb\t\n", ".tsv", r"a\.tsv:2 has no label"),
    "all texts empty": (" \t0\n \t1\n", ".tsv", "no text that is not empty"),
    "sum": ('a,"[0.5, 0.6]"\nb,"[0, 1]"\n', ".csv", r"a\.csv:1: the soft label sums to 1\.1, not to 1"),
    "negative": ('a,"[-0.5, 1.5]"\nb,"[0, 1]"\n', ".csv", r"is -0\.5, not between 0 and 1"),
    "not finite": ('a,"[NaN, 1]"\nb,"[0, 1]"\n', ".csv", "nan, not between 0 and 1"),
    "words as probabilities": (
        "text,p_a,p_b\nx,much,0.5\n",
        ".csv",
        r"a\.csv:2: the probability of 'a' is 'much', no number",
    ),
    "broken list": ('a,"[0.5, "\n', ".csv", "no JSON list of probabilities"),
    "hard among soft": ('a,"[0.5, 0.5]"\nb,1\n', ".csv", r"a\.csv:2 has the hard label '1' among soft ones"),
    "soft among hard": ('a,1\nb,0\nc,"[0.5, 0.5]"\n', ".csv", r"a\.csv:3 has a soft label"),
    "one class of soft": ('a,"[0.9, 0.1]"\nb,"[0.8, 0.2]"\n', ".csv", "nothing to tell apart"),
    "not JSON": ('{"text": "a", "label": 0}\n{"text"\n', ".jsonl", r"a\.jsonl:2 is not JSON"),
    "not an object": ("[1]\n", ".jsonl", r"a\.jsonl:1 holds no JSON object"),
    "text is a number": ('{"text": 5, "label": 0}\n', ".jsonl", "no text under 'text'"),
    "fraction": ('{"text": "a", "label": 0.5}\n', ".jsonl", r"the label 0\.5 is no class"),
    "escape sequence": ("a\t0\nb\t1\nc\t\x1b[2J\n", ".tsv", r"\N{REPLACEMENT CHARACTER}\[2J"),
    "suffix": (GOOD, ".txt", r"texts come as \.csv, \.tsv, \.jsonl"),
}


@pytest.mark.parametrize(("content", "suffix", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path: Path, content: str, suffix: str, message: str) -> None:
    path = write(tmp_path / f"a{suffix}", content)
    with pytest.raises(DataError, match=message) as error:
        load_texts(TextFiles(path, path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_unknown_labels_of_other_splits_are_named(tmp_path: Path) -> None:
    train, val = write(tmp_path / "a.tsv", GOOD), write(tmp_path / "b.tsv", "x\t0\ny\t2\n")
    with pytest.raises(DataError, match=r"b\.tsv:2: the label '2' is not known; the classes are 0, 1"):
        load_texts(TextFiles(train, val))
    with pytest.raises(DataError, match=r"a\.tsv:1: the label '1' is not known; the classes are only"):
        load_texts(TextFiles(train, train, classes=("only",)))
    with pytest.raises(UsageError, match="names a class twice"):
        load_texts(TextFiles(train, train, classes=("a", "a")))


@pytest.mark.parametrize(
    ("train", "test", "classes", "unknown"),
    [
        (("-1", "1"), ("1", "0"), (), "0"),  # class number 0 is not the class "0"
        (("1", "2", "3"), ("1", "0"), (), "0"),  # a file that counts from 0 beside one that counts from 1
        (("bad", "good"), ("good", "0"), (), "0"),
        (("1", "2"), ("2", "0"), ("1", "2"), "0"),  # names that are numbers are names
    ],
)
def test_a_number_is_no_class_unless_classes_says_so(
    tmp_path: Path, train: tuple[str, ...], test: tuple[str, ...], classes: tuple[str, ...], unknown: str
) -> None:
    files = [
        write(tmp_path / f"{name}.tsv", "".join(f"text {at}\t{label}\n" for at, label in enumerate(labels)))
        for name, labels in (("train", train), ("test", test))
    ]
    with pytest.raises(DataError, match=rf"test\.tsv:2: the label '{unknown}' is not known; the classes are"):
        load_texts(TextFiles(files[0], files[0], files[1], classes=classes))
    assert load_texts(TextFiles(files[0], files[0], classes=classes)).classes == train


def test_numbers_are_places_for_a_model_with_named_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", GOOD)
    assert load_split(path, TextFiles(path), ("bad", "good")).labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match="label '1' is not known"):
        load_split(path, TextFiles(path), ("-1", "0"))


def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"good\t1\nbad\t0\ncaf\xe9\t1\n")
    with pytest.raises(DataError, match=r"a\.tsv:3 is not UTF-8 \(byte 16\)"):
        load_texts(TextFiles(path, path))
    with pytest.raises(DataError, match="cannot be read"):
        load_texts(TextFiles(tmp_path / "absent.tsv"))


def test_odd_unicode_passes(tmp_path: Path) -> None:
    odd = [
        "\u2028 line separator",
        "nul \u0000 byte",
        "👩‍👩‍👧",
        "\u202e right to left",
        "vertical \x0b tab",
        "lone \ud800",
    ]
    lines = [json.dumps({"text": text, "label": n % 2}) for n, text in enumerate(odd)]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    found = load_texts(TextFiles(path, path)).train.texts
    assert found[:-1] == tuple(odd[:-1]) and found[-1] == "lone ?"


def test_a_line_separator_is_a_letter_of_a_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\u2028b\x0bc\t0\nd\x85e\t1\n")
    assert load_texts(TextFiles(path, path)).train.texts == ("a\u2028b\x0bc", "d\x85e")


def test_texts_of_any_length_leave_the_limit_of_cells_as_it_was(tmp_path: Path) -> None:
    limit = field_size_limit()
    files = [write(tmp_path / f"{name}.tsv", "long " * 50_000 + "\t0\nshort\t1\n") for name in "ab"]
    halted = [read_rows(path, TextFiles(path)) for path in files]
    assert [len(next(rows).text) for rows in halted] == [250_000, 250_000]
    while halted:
        del halted[0]  # in this order the second used to put back what the first had set
    assert field_size_limit() == limit


def test_empty_and_shared_texts_are_said(tmp_path: Path) -> None:
    train = write(tmp_path / "a.tsv", GOOD + " \t1\n")
    val = write(tmp_path / "b.tsv", "\t0\nlovely\t1\nnew\t0\n")
    dataset = load_texts(TextFiles(train, val))
    assert len(dataset.train) == 4 and len(dataset.val) == 3
    assert [note.split(" texts")[0] for note in dataset.notes] == ["1 training", "1 val", "1 of 3 val"]


def test_held_out_texts_are_a_share_of_each_class_and_a_function_of_the_seed(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "a.tsv", 200, 0)
    path.write_text(path.read_text() + "\n".join(path.read_text().split("\n")[1:20]) + "\n")  # some texts twice
    first, again, other = (load_texts(TextFiles(path, val_fraction=0.2), seed) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert not set(first.train.texts) & set(first.val.texts)
    assert 36 <= len(first.val) <= 52 and min(Counter(first.val.labels.tolist()).values()) >= 18
    with pytest.raises(UsageError, match="--val-fraction 0"):
        load_texts(TextFiles(path, val_fraction=0))


def test_a_class_with_one_text_keeps_it_for_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", GOOD + "alone\t2\n")
    dataset = load_texts(TextFiles(path, val_fraction=0.5))
    assert "alone" in dataset.train.texts


def test_limited_takes_evenly_spaced_rows(tmp_path: Path) -> None:
    split = load_split(write_reviews(tmp_path / "a.tsv", 100, 0), TextFiles(tmp_path), ("bad", "good"))
    assert limited(split, 200) is split
    assert limited(split, 10).texts[-1] == split.texts[-1] and len(limited(split, 10)) == 10

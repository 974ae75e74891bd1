"""`edgekit train text` as a user runs it: from labels to a verified bundle, and one clear line for each bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands_for_tests import one_error_line
from texts_for_tests import reviews, write_reviews

from edgekit.cli.main import run

Capture = pytest.CaptureFixture[str]
SMALL = ("--recipe", "text-tiny", "--vocab-size", "500", "--max-length", "12", "--device", "cpu")


def train(data: Path, out: Path, *more: object) -> list[str]:
    return ["train", "text", "--data", str(data), *SMALL, "-o", str(out), "-q", *map(str, more)]


def test_from_labels_to_a_verified_bundle(tmp_path: Path, capsys: Capture) -> None:
    data = write_reviews(tmp_path / "a.tsv", 120, 0)
    out, bundle = tmp_path / "run", tmp_path / "bundle"
    assert run([*train(data, out, "--epochs", 2, "--lr", 0.01), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "train-text"
    assert facts["data"]["val"] == 12 and set(facts["judged"]) == {"val"}
    assert run(["export", str(out), "--format", "onnx", "--precision", "fp32", "-o", str(bundle), "-q"]) == 0
    assert run(["verify", str(bundle), "-q"]) == 0
    assert "ids (1, 12)" in (bundle / "MODEL_CARD.md").read_text()


def test_settings_come_from_a_file_and_a_student_from_a_teacher(tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "a.tsv", 80, 0)
    assert run(train(data, tmp_path / "teacher", "--epochs", 1)) == 0
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"data: {data}\nrecipe: text-tiny\nmax-length: 12\nepochs: 1\nteacher: {tmp_path / 'teacher'}\n"
    )
    assert run(["train", "text", "--config", str(settings), "-o", str(tmp_path / "student"), "-q"]) == 0
    rows = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    assert "response" in json.loads(rows[-1])


def test_long_texts_are_cut_and_said(tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "a.tsv"
    data.write_text("".join(f"{text} {'and so on ' * 9}\t{name}\n" for text, name in reviews(40, 0)))
    assert run(train(data, tmp_path / "run", "--epochs", 1)) == 0
    assert (
        "36 train, 4 val texts are longer than 12 ids and lose their end; see --max-length" in capsys.readouterr().err
    )


REFUSED = {
    "one class": ("a\t1\nb\t1\n", (), "nothing to tell apart"),
    "odd label": ("a\t1\nb\t0\nc\tgood\n", (), "is no number, while 2 other labels"),
    "soft sums": ("a\t[0.5, 0.6]\nb\t[0, 1]\n", (), "sums to 1.1, not to 1"),
    "recipe": ("a\t1\nb\t0\n", ("--recipe", "text-tinny"), "did you mean 'text-tiny'"),
    "length": ("a\t1\nb\t0\n", ("--max-length", "1"), "max_length: Input should be greater than or equal to 2"),
    "teacher": ("a\t1\nb\t0\nc\t1\nd\t0\n", ("--teacher", "."), "holds no text classifier"),
    "alpha alone": ("a\t1\nb\t0\n", ("--alpha", "2"), "--alpha 2 is of learning from a teacher; give --teacher"),
    "beta alone": ("a\t1\nb\t0\n", ("--beta", "0.5"), "--beta 0.5 is of learning from a teacher"),
    "temperature alone": ("a\t1\nb\t0\n", ("--temperature", "4"), "--temperature 4 is of learning from a teacher"),
    "share beside a file": (
        "a\t1\nb\t0\n",
        ("--val", "{data}", "--val-fraction", "0.1"),
        "--val-fraction 0.1 holds out training texts, while --val",
    ),
    "few texts": ("a\t1\nb\t0\n", (), "too few to hold out"),
}


@pytest.mark.parametrize(("content", "more", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path: Path, capsys: Capture, content: str, more: tuple[str, ...], message: str) -> None:
    data = tmp_path / "a.tsv"
    data.write_text(content)
    more = tuple(part.format(data=data) for part in more)
    assert run(train(data, tmp_path / "run", *more)) in (2, 3)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_unknown_training_is_named(capsys: Capture) -> None:
    assert run(["train", "txt"]) == 2
    assert "there is no training 'txt'; did you mean 'text'" in one_error_line(capsys.readouterr().err)

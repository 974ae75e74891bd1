"""A classifier trained from tar shards is the one trained from the folder they were written from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgekit.cli.main import run
from edgekit.data import load_dataset
from edgekit.models.checkpoint import STUDENT_FILE
from edgekit.shard_writer import write_shards
from edgekit.tars import list_tar
from edgekit.terminal import Terminal
from tests.cli.commands_for_tests import draw_colours

SMALL = ("--model", "test_byobnet", "--image-size", "32", "--embed-dim", "16", "--device", "cpu", "--batch-size", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_colours(tmp_path_factory.mktemp("image") / "data")


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tars") / "shards"
    write_shards(load_dataset(folder), path, shard_bytes=60_000)
    return path


def train(data: str | Path, output: Path, *more: str) -> dict[str, torch.Tensor]:
    settings = ("--epochs", "2", "--mixup", "0.4", *SMALL, *more, "-q")
    assert run(["train", "image", "--data", str(data), *settings, "-o", str(output)]) == 0
    return load_file(output / STUDENT_FILE)


def test_shards_train_the_classifier_of_their_folder_bit_for_bit(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = train(folder, tmp_path / "folder")
    count = len(list(shards.glob("train-*.tar")))
    assert count > 2
    other = train(f"{shards}/train-{{000000..{count - 1:06d}}}.tar", tmp_path / "shards")
    assert all(torch.equal(one[name], other[name]) for name in one)
    facts = json.loads((tmp_path / "shards" / "run.json").read_text(encoding="utf-8"))["data"]
    assert (facts["train"], facts["val"], facts["shards"]) == (42, 18, count)
    for more in ((), ("--data", str(shards))):
        capsys.readouterr()
        assert run(["export", str(tmp_path / "shards"), *more, "-o", str(tmp_path / "bundle")]) == 2
        assert "pass --data with the pictures as files" in " ".join(capsys.readouterr().err.split())


def test_a_streamed_run_goes_on_where_it_was_cut(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(shards, tmp_path / "whole", "--checkpoint-every", "1")
    say = Terminal.say

    def interrupt(self: Terminal, text: str) -> None:
        say(self, text)
        if text.lstrip().startswith("1 "):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Terminal, "say", interrupt)
        settings = ("--epochs", "2", "--mixup", "0.4", *SMALL, "--checkpoint-every", "1")
        assert run(["train", "image", "--data", str(shards), *settings, "-o", str(tmp_path / "cut")]) == 130
    cut = train(shards, tmp_path / "cut", "--checkpoint-every", "1", "--resume", "auto")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_shards_that_a_classifier_cannot_learn_from_are_refused(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw_colours(tmp_path / "data", train=4, val=2, unlabelled=2)
    write_shards(load_dataset(data), tmp_path / "mute", shard_bytes=60_000)
    assert list_tar(next((tmp_path / "mute").glob("train-*.tar"))).pictures
    for given, more, said in (
        (tmp_path / "mute", (), "6 of 18 training pictures have no label"),
        (shards, ("--val-fraction", "0.1"), "shards are split already"),
        (f"{shards}/train-{{000000..000099}}.tar", (), "shards are not there"),
    ):
        assert run(["train", "image", "--data", str(given), *SMALL, *more, "-o", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "run").exists()

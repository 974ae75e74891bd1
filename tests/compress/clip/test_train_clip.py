"""`train clip` from captions to a teacher: phases, resuming, and a student distilled from what came out."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgekit.cli.main import run
from edgekit.compress.clip.pairs import PairsConfig, embed_captions
from edgekit.compress.clip.recipe import ClipRecipe, load_clip_recipe, with_changes
from edgekit.compress.clip.train import TrainClipConfig, recipe_of_run, train_clip
from edgekit.compress.training.run_folder import RunFolder
from edgekit.demo.drawings import write_drawings
from edgekit.errors import DataError, LoadError, OutputExistsError, StoppedError, UsageError
from edgekit.models.clip import CLIP_FILE
from edgekit.terminal import Terminal

QUIET = Terminal(-1)


def recipe(**changes: object) -> ClipRecipe:
    fit = {"epochs": 2, "batch_size": 16, "device": "cpu"}
    small = {"image_size": 32, "text_width": 32, "text_layers": 1, "embed_dim": 32, "memory_slots": 4, "patch_size": 8}
    return load_clip_recipe("memory", {**small, "fit": fit, **changes})


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-clip") / "drawings"
    return write_drawings(folder, labelled=36, unlabelled=28, val=24, size=40, seed=0).folder


@pytest.fixture(scope="module")
def trained(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "clip"
    train_clip(TrainClipConfig(drawings / "captions.csv", out, recipe(), val_fraction=0.25), QUIET)
    return out


def test_a_run_folder_holds_all_that_the_next_commands_read(trained: Path) -> None:
    facts = RunFolder(trained).facts()
    assert facts["data"] | {"fingerprint": ""} == {
        **dict.fromkeys(("fingerprint",), ""),
        **dict.fromkeys(("train", "labelled"), 48),
        **dict.fromkeys(("val", "val_captions"), 16),
        **{name: [] for name in ("classes", "broken")},
    }
    assert facts["summary"]["selected_by"] == "mean_r1"
    rows = [row for row in RunFolder(trained).read_metrics() if row["kind"] == "epoch"]
    assert len(rows) == 2 and rows[1]["loss"] < rows[0]["loss"]
    assert rows[0]["mean_r1"] == pytest.approx((rows[0]["text_r1"] + rows[0]["image_r1"]) / 2)
    assert (trained / "plots" / "training.png").is_file()


class _Impatient(Terminal):
    """Ends its process politely when the first epoch's row is shown."""

    def say(self, text: str) -> None:
        super().say(text)
        if text.lstrip().startswith("1 "):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_ends_as_an_undisturbed_one(drawings: Path, trained: Path, tmp_path: Path) -> None:
    config = TrainClipConfig(drawings / "captions.csv", tmp_path / "clip", recipe(), val_fraction=0.25)
    with pytest.raises(StoppedError):
        train_clip(config, _Impatient(0))
    with pytest.raises(OutputExistsError):
        train_clip(config, QUIET)
    changed = TrainClipConfig(config.data, config.output, recipe(loss="sigmoid"), val_fraction=0.25)
    with pytest.raises(UsageError, match="loss was infonce, now sigmoid"):
        train_clip(changed, QUIET, resume=True)
    train_clip(config, QUIET, resume=True)
    one, other = load_file(trained / CLIP_FILE), load_file(config.output / CLIP_FILE)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_second_phase_begins_where_the_first_was_best_and_joins_its_history(
    drawings: Path, trained: Path, tmp_path: Path
) -> None:
    second = with_changes(recipe_of_run(trained), {"fit": {"lr": 1e-9, "epochs": 1}}, "")
    config = TrainClipConfig(drawings / "captions.csv", tmp_path / "two", second, None, 0.25, init_from=trained)
    train_clip(config, QUIET)
    folder, before = RunFolder(config.output), RunFolder(trained).facts()["summary"]
    assert folder.facts()["init_from"]["epoch"] == before["best_epoch"]
    assert [row["phase"] for row in folder.read_history()] == [1] * before["best_epoch"]
    # a rate of next to nothing leaves it as good as it was
    assert folder.facts()["summary"]["val_loss"] == pytest.approx(folder.read_history()[-1]["val_loss"], abs=1e-3)
    other = TrainClipConfig(config.data, tmp_path / "three", recipe(embed_dim=16), None, 0.25, init_from=trained)
    with pytest.raises(UsageError, match="holds another CLIP: embed_dim 32, now 16"):
        train_clip(other, QUIET)
    letters = TrainClipConfig(
        config.data, tmp_path / "four", recipe(tokenizer="characters"), None, 0.25, init_from=trained
    )
    with pytest.raises(UsageError, match="tokenizer bpe, now characters"):
        train_clip(letters, QUIET)
    with pytest.raises(LoadError, match="not the run folder of a CLIP"):
        recipe_of_run(tmp_path)


def test_a_student_is_distilled_from_it(
    drawings: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--student", "test_byobnet", "--image-size", "32", "--epochs", "1", "--batch-size", "16", "--views", "2")
    where = ("--data", str(drawings), "--teacher", str(trained), "-o", str(tmp_path / "student"), "--device", "cpu")
    assert run(["distill", *where, *small, "-q", "--json"]) == 0
    teacher = json.loads(capsys.readouterr().out)["teacher"]
    assert (teacher["name"], teacher["class_scores"], teacher["embed_dim"]) == (str(trained), "prompts", 32)


def test_it_is_judged_on_what_it_held_out(drawings: Path, trained: Path) -> None:
    captions = drawings / "captions.csv"
    found = embed_captions(PairsConfig(str(trained), captions), QUIET)
    assert (len(found.images), len(found.texts)) == (16, 16)
    assert found.subset == "the 16 of 64 pictures that the run held out"
    assert len(embed_captions(PairsConfig(str(trained), captions, everything=True), QUIET).images) == 64
    with pytest.raises(DataError, match="would be judged on what it was trained on"):
        embed_captions(PairsConfig(str(trained), captions, val_fraction=0.5), QUIET)


def captions_of(drawings: Path, count: int, file: Path, splits: str = "") -> Path:
    """Write the captions of the first `count` drawings, with a split column where `splits` has a letter for each."""
    names = {"t": "train", "v": "val", "T": "test"}
    with (drawings / "captions.csv").open(encoding="utf-8") as whole:
        rows = list(csv.reader(whole))[: count + 1]
    if splits:
        rows = [[*row, name] for row, name in zip(rows, ["split", *(names[s] for s in splits)], strict=True)]
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file


@pytest.mark.parametrize(
    ("count", "splits", "subset"),
    [
        (10, "", "all 10 pictures"),
        (4, "", "all 4 pictures"),  # a quarter of them, as the run held out, would be 1
        (10, "ttttttvvvv", "4 held-out pictures of 10"),  # the run held out a fraction, which nobody gave here
    ],
)
def test_other_data_is_judged_whatever_the_run_held_out_of_its_own(
    drawings: Path, trained: Path, tmp_path: Path, count: int, splits: str, subset: str
) -> None:
    found = embed_captions(
        PairsConfig(str(trained), captions_of(drawings, count, tmp_path / "x.csv", splits), drawings), QUIET
    )
    assert found.subset == f"{subset}, which are not the data that the run was trained on"


def test_a_test_split_is_judged_on_when_asked(
    drawings: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = captions_of(drawings, 9, tmp_path / "x.csv", "ttttvvTTT")
    asked = ["eval", "retrieval", str(trained), "--data", str(data), "--pictures", str(drawings), "-q", "--json"]
    for more, part in (((), "2 held-out pictures of 6"), (("--split", "test"), "the 3 test pictures")):
        assert run([*asked, *more]) == 0
        assert json.loads(capsys.readouterr().out)["source"].startswith(f"{data}: {part}, which are not the data")
    assert run([*asked, "--split", "test", "--all"]) == 2
    assert "leave --all and --val-fraction out" in capsys.readouterr().err
    captions_of(drawings, 9, data, "ttttvvvvv")
    assert run([*asked, "--split", "test"]) == 2
    assert "no test split beside a validation split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"chunk_size": 4, "family": "clip", "vision": "test_resnet"}, {}, "--chunk-size with test_resnet"),
        ({"checkpoint_blocks": True, "family": "clip", "vision": "selecsls42b"}, {}, "no gradient checkpointing"),
        ({"patch_size": 7}, {}, "not a multiple of the patch size"),
        ({}, {"vision_weights": Path("x.pt")}, "--vision-weights needs a timm image tower"),
        ({}, {"vision_weights": Path("x.pt"), "init_from": Path("x")}, "exclude each other"),
    ],
)
def test_what_cannot_work_is_refused(
    drawings: Path, tmp_path: Path, changes: dict[str, object], options: dict[str, Path], message: str
) -> None:
    config = TrainClipConfig(drawings / "captions.csv", tmp_path / "run", recipe(**changes), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        train_clip(config, QUIET)

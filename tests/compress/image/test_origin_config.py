"""Another trainer's config.json: every key is an option, without effect, or named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.cli.main import run
from edgekit.compress.image.origin_config import read_origin_config
from edgekit.errors import UsageError

ORIGIN = {
    "model": "resnet50",
    "num_epochs": 80,
    "batch_size": 256,
    "initial_lr": 0.05,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "T_0": 30,
    "T_mult": 1,
    "eta_min": 1e-5,
    "patience": 10,
    "num_workers": 8,
}


def write(folder: Path, content: object) -> Path:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_origins_keys_become_options(tmp_path: Path) -> None:
    found = read_origin_config(write(tmp_path, {**ORIGIN, "cutout_holes": 1}))
    assert found.options == {
        "model": "resnet50",
        "epochs": 80,
        "batch_size": 256,
        "lr": 0.05,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 1e-4,
        "t_0": 30,
        "t_mult": 1,
        "min_lr": 1e-5,
        "patience": 10,
        "schedule": "cosine-restarts",
        "warmup_epochs": 0.0,
    }
    assert found.notes() == ["not read, edgekit does not know: cutout_holes", "without effect here: num_workers"]


def test_groups_are_opened_and_classes_are_named(tmp_path: Path) -> None:
    groups = {
        "optimizer": {"type": "torch.optim.SGD", "lr": 0.1},
        "scheduler": {"name": "CosineAnnealingLR", "T_max": 90, "eta_min": 0.0},
    }
    found = read_origin_config(write(tmp_path, groups))
    assert found.options == {"optimizer": "sgd", "lr": 0.1, "schedule": "cosine", "min_lr": 0.0, "warmup_epochs": 0.0}
    assert found.without_effect == ("T_max",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"inital_lr": 0.1}, "'inital_lr' is not a setting; did you mean 'initial_lr'"),
        ({"lr": 0.1, "initial_lr": 0.2}, "'lr' is 0.1 and 'initial_lr' is 0.2; keep one"),
        ({"scheduler": "ExponentialDecayish"}, "'scheduler' 'ExponentialDecayish' is not known"),
        ({"optimizer": "Lion"}, "'optimizer' 'Lion' is not there; take SGD or AdamW"),
        ({"batch_size": [1, 2]}, "'batch_size' is .*expected one value"),
        ([1], "expected a mapping"),
        ("{", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_origin_config(write(tmp_path, content))
    with pytest.raises(UsageError, match="cannot be read"):
        read_origin_config(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--t0", "10"), "the schedule cosine does not read --t0; read by cosine-restarts. Leave it out"),
        (("--t-mult", "3", "--schedule", "wsd"), "the schedule wsd does not read --t-mult; read by cosine-restarts"),
        (
            ("--min-lr", "1e-5", "--schedule", "constant"),
            "the schedule constant does not read --min-lr; read by cosine,",
        ),
        (("--t0", "10", "--schedule", "cosin"), "cosin"),
    ],
)
def test_options_that_the_schedule_does_not_read_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert run(["train", "image", "--data", str(tmp_path), *options, "-o", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_what_another_trainer_says_of_its_own_schedule_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    theirs = ("--config", str(write(tmp_path, ORIGIN)), "--schedule", schedule)
    assert run(["train", "image", "--data", str(tmp_path / "none"), *theirs, "-o", str(tmp_path / "run")]) != 0
    said = capsys.readouterr().err
    assert f"warning: the schedule {schedule} does not read --t0" in said
    assert "error: the schedule" not in said and "none" in said, "only the missing pictures stop it"

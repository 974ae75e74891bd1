"""The comparison on small sets of clips, from photos to its table, on a tiny setting; and its intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edgekit.compress.recipe import load_recipe
from edgekit.demo.drawings import write_drawings
from edgekit.demo.small_clips import main, recipe_of
from edgekit.demo.small_clips_table import Result, difference, mean_of_seeds, render
from edgekit.errors import UsageError
from edgekit.models.checkpoint import load_student, save_student
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, student_preprocess
from tests.teachers_for_tests import onnx_teacher


def result(name: str, seed: int, right: list[int], *, epoch: int = 3) -> Result:
    return Result(name, seed, 0.9, epoch, 0.4, np.array(right, bool))


def test_the_origins_settings_are_without_what_edgekit_adds() -> None:
    recipe, ego4d = recipe_of("origin@5e-4:backbone", 2, 7), load_recipe("ego4d")
    assert (recipe.alpha, recipe.beta, recipe.gamma, recipe.temperature) == (0.5, 1.0, 1.0, 3.0)
    assert (recipe.fit.lr, recipe.fit.seed, recipe.fit.epochs) == (5e-4, 2, 7)
    assert not recipe.init_classifier and not recipe.freeze_backbone and recipe.views == 0 and recipe.dropout == 0
    assert recipe.augment.flip == 0.5 and recipe.augment.crop_scale == (1, 1) and recipe.augment.brightness == 0
    assert recipe.fit.patience == 0 and recipe.fit.ema_decay == 0
    assert recipe_of("origin", 0).fit.epochs == ego4d.fit.epochs and recipe_of("ego4d", 0) == ego4d
    with pytest.raises(UsageError, match="'fast' is no learning rate"):
        recipe_of("ego4d@fast", 0)


def test_intervals_cover_seeds_and_clips() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.random((3, 400)) < 0.3).astype(float)
    interval = mean_of_seeds(rows)
    assert interval.value == rows.mean() and interval.low < interval.value < interval.high
    alone = 1.96 * (0.3 * 0.7 / 1200) ** 0.5
    assert alone < (interval.high - interval.low) / 2 < 2.5 * alone
    # answers that do not depend on the seed are 400, not 1200
    same = mean_of_seeds(np.repeat(rows[:1], 3, axis=0))
    assert (same.high - same.low) / 2 == pytest.approx(1.96 * (same.value * (1 - same.value) / 400) ** 0.5, rel=0.1)
    # seeds that do not agree widen it
    apart = mean_of_seeds(np.repeat([[0.1], [0.3], [0.5]], 400, axis=1))
    assert apart.low == pytest.approx(0.1, abs=0.07) and apart.high == pytest.approx(0.5, abs=0.07)


def test_differences_are_paired_by_seed() -> None:
    ours = [result("ours", 0, [1, 1, 1, 0]), result("ours", 1, [1, 1, 0, 0])]
    theirs = [result("theirs", 1, [1, 0, 0, 0]), result("theirs", 2, [1, 1, 1, 1])]
    assert difference(ours, theirs).value == 0.25
    table = render([result("probe", 1, [1, 1, 0, 0], epoch=0), *theirs, *ours], "head")
    assert table.startswith("head\n") and "minus theirs" in table
    assert "| probe | 1 | 90.0 | 50.0 (" in table and "| ours | 2 | 90.0 | 62.5 (" in table
    assert "| 40.0 | – | +25.0 (" in table.splitlines()[4] and "+25.0 (" in table.splitlines()[-1]


def test_a_tiny_comparison(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    write_drawings(data, labelled=12, unlabelled=0, val=36, size=48, seed=0)
    teacher = onnx_teacher(tmp_path / "colours.onnx")
    classes = tuple(sorted(folder.name for folder in (data / "val").iterdir()))
    torch.manual_seed(0)
    save_student(
        tmp_path / "still.safetensors",
        Student(StudentSpec("test_byobnet", 12, classes, student_preprocess("test_byobnet", 32))),
    )
    arguments = {
        "--data": data,
        "--teacher": teacher,
        "--still": tmp_path / "still.safetensors",
        "--recipes": "origin:backbone,ego4d",
        "--seeds": 1,
        "--train": 1,
        "--val": 1,
        "--test": 1,
        "--frames": 2,
        "--epochs": 1,
        "--work": tmp_path / "work",
        "-o": tmp_path / "table.md",
    }
    command = [str(part) for pair in arguments.items() for part in pair]
    outcome = CliRunner().invoke(main, command, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    table = (tmp_path / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines()[4:]]
    assert rows == ["still student, mean of frames", "teacher, linear probe", "origin:backbone", "ego4d"]
    student = load_student(tmp_path / "work" / "runs" / "ego4d-0")
    assert student.spec.classes == tuple(f"{name} (clip)" for name in classes)
    # what is finished is not done again
    (tmp_path / "colours.onnx").unlink()
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "table.md").read_text() == table

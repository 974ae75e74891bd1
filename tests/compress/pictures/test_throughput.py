"""Loops that are timed in turns live in processes of their own; what fails there is told here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.compress.pictures.throughput import Contender, Step
from edgekit.compress.pictures.training_loops import Setting
from edgekit.data import load_dataset
from edgekit.errors import LoadError, UsageError

pytestmark = pytest.mark.slow  # each process imports torch


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("one", "two"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(noise.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return Setting(tmp_path, load_dataset(tmp_path), "nonsense", "test_byobnet", 32, 4, compiled=False)


def test_a_loop_steps_in_its_process_and_tells_its_stages(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    contender = Contender("no teacher", setting, tmp_path / "scratch")
    contender.wait()
    contender.step()
    assert isinstance(contender.steps[0], Step)
    assert contender.steps[0].wall_s > 0
    assert {"forward", "backward", "optimizer"} <= contender.stages().keys()
    contender._process.kill()
    with pytest.raises(LoadError, match="'no teacher' ended"):
        contender.step()
    contender.close()


def test_a_teacher_that_is_not_there_is_told(setting: Setting, tmp_path: Path) -> None:
    contender = Contender("online", setting, tmp_path)
    with pytest.raises(UsageError, match="nonsense"):
        contender.wait()
    contender.close()

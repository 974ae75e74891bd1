"""`edgekit distill` in two processes, as a launcher starts it: the numbers of one, said once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes_for_tests import launch
from tolerances import PROCESSES

from edgekit.cli.main import run as edgekit
from edgekit.compress.distill.task import EVAL_BATCH, DistillData, DistillTask
from edgekit.compress.parallel.processes import join
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.pictures.source import StoredSource
from edgekit.compress.recipe import Recipe
from edgekit.compress.store.probe import ClassHead
from edgekit.compress.training.run_folder import RunFolder
from edgekit.data import Sample
from edgekit.models.spec import StudentSpec
from edgekit.models.student import build_student, student_preprocess
from tests.cli.commands_for_tests import ALONE, SMALL, draw_colours
from tests.teachers_for_tests import onnx_teacher

# batch norms over micro-batches of 8 would make 1e-6 in the first epoch 1e-3 in the third
HALVES = ("--accumulate", "2", "--batch-size", "32")
EVERY_LOSS = """
alpha: 1.0
beta: 1.0
gamma: 1.0
affinity: 0.5
contrastive: 0.5
views: 3
augment: {crop_scale: [0.5, 1.0], flip: 0.5}
# Adam would turn the rounding of gradients that are truly 0, as a bias before a batch norm has, into steps
fit: {epochs: 3, lr: 0.002, optimizer: sgd, ema_decay: 0.9, channels_last: true, clip_norm: 5.0}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data, of which a part has no labels, a teacher and a recipe with every loss."""
    folder = tmp_path_factory.mktemp("place")
    draw_colours(folder / "data", unlabelled=5)
    onnx_teacher(folder / "teacher.onnx")
    (folder / "every.yaml").write_text(EVERY_LOSS, encoding="utf-8")
    (folder / "mixed.yaml").write_text(EVERY_LOSS + "mixup: 0.4\ncutmix: 1.0\n", encoding="utf-8")
    return folder


def command(place: Path, out: Path, *more: object) -> list[str]:
    words = ("distill", "--data", place / "data", *SMALL, "--teacher", place / "teacher.onnx", "-o", out)
    return [str(word) for word in (*words, "--recipe", place / "every.yaml", *more)]


def speak(folder: Path, arguments: list[str], own: Mapping[str, list[str]]) -> None:
    """Run the command line with what it says in files, one per process; `own` arguments go to one rank alone."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ["RANK"]
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    raise SystemExit(edgekit([*arguments, *own.get(rank, [])]))


def said(folder: Path, name: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{name}-*"))]


@pytest.mark.parametrize(("recipe", "more"), [("every", ()), ("every", HALVES), ("mixed", HALVES)])
def test_two_processes_end_where_one_does_and_one_of_them_speaks(
    recipe: str, more: tuple[str, ...], place: Path, tmp_path: Path
) -> None:
    """Every loss, those over pairs of a micro-batch, unlabelled pictures, a teacher store, and mixed pictures."""
    more = ("--recipe", str(place / f"{recipe}.yaml"), *more)
    rows = []
    for world in (1, 2):
        out = tmp_path / str(world) / "run"
        group = launch(world, speak, tmp_path / f"said-{world}", command(place, out, "--json", *more), {})
        assert group.wait() == [0] * world, said(tmp_path / f"said-{world}", "err")
        rows.append([row for row in RunFolder(out).read_metrics() if row["kind"] == "epoch"])
    for one, two in zip(*rows, strict=True):
        for name in ("loss", "feature", "response", "task", "affinity", "contrastive", "grad_norm", "val_loss"):
            assert one[name] == pytest.approx(two[name], rel=PROCESSES, abs=PROCESSES), name
        for name in ("val_acc", "train_acc", "agreement", "steps", "best"):
            assert one.get(name) == two.get(name), name
        assert ("train_acc" in one) == (recipe == "every")  # a mixed picture shows two classes
    result, silence = said(tmp_path / "said-2", "out")
    assert json.loads(result)["summary"]["best_epoch"] >= 1
    assert silence == ""
    talk, silence = said(tmp_path / "said-2", "err")
    assert talk.count("Summary") == talk.count("embeds 3 views") == 1
    assert silence == ""


@pytest.mark.parametrize(
    ("more", "own", "expected"),
    [
        ([], {"1": ["--data", "other"]}, "the processes disagree on the settings or the data: data is "),
        ([], {"1": ["--lr", "0.5"]}, "recipe.fit.lr is 0.002 in process 0 and 0.5 in process 1"),
        (["--batch-size", "1"], {}, "a batch of 1 cannot be divided between 2 process(es)"),
        (["--output", "full"], {}, "full exists already"),
    ],
)
def test_what_cannot_be_is_refused_by_all_with_one_line(
    more: list[str], own: dict[str, list[str]], expected: str, place: Path, tmp_path: Path
) -> None:
    other, full = tmp_path / "other", tmp_path / "full"
    draw_colours(other, train=13, unlabelled=5)
    full.mkdir()
    (full / "file").touch()
    names = {"other": str(other), "full": str(full)}
    more = [names.get(word, word) for word in more]
    own = {rank: [names.get(word, word) for word in words] for rank, words in own.items()}
    group = launch(2, speak, tmp_path / "said", command(place, tmp_path / "run", *more), own)
    assert group.wait() == [2, 2]
    lines = [line for text in said(tmp_path / "said", "err") for line in text.splitlines() if "error" in line]
    assert len(lines) == 1
    assert expected in lines[0]


def evaluate(out: Path) -> None:
    """Evaluate a net of random weights on random pictures, 3 batches and a piece of one."""
    rng = np.random.default_rng(0)
    count, dim = 3 * EVAL_BATCH + 7, 6
    samples = tuple(Sample(f"{n}.png", Path(f"{n}.png"), n % 3) for n in range(count))
    pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    store = PixelStore(samples, pixels, np.ones(count, np.float32), {})
    contract = student_preprocess("test_byobnet", 32)
    torch.manual_seed(0)
    student = build_student(StudentSpec("test_byobnet", dim, ("a", "b", "c"), contract)).eval()
    recipe = Recipe(name="test")
    head = ClassHead(torch.randn(3, dim), torch.zeros(3), "random")
    teacher = rng.normal(size=(count, dim)).astype(np.float16)
    data = DistillData(StoredSource(store, None, recipe, contract), store, teacher, head)
    processes = join(torch.device("cpu"))
    with torch.no_grad():
        values = DistillTask(student, recipe, data).evaluate(student, torch.device("cpu"))
    (out / f"{processes.world}-{processes.rank}.json").write_text(json.dumps(dict(values)), encoding="utf-8")


def test_a_shared_evaluation_gives_the_numbers_of_one_process(tmp_path: Path) -> None:
    for world in (1, 2, 3):
        assert launch(world, evaluate, tmp_path).wait() == [0] * world
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(found) == 6
    assert all(values == found[0] for values in found)
    assert found[0].keys() == {"val_acc", "val_loss", "agreement", "cosine"}


def torchrun(*arguments: object) -> subprocess.Popen[str]:
    words = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "edgekit")
    return subprocess.Popen(
        [str(word) for word in (*words, *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_torchrun_is_interrupted_and_goes_on(place: Path, tmp_path: Path) -> None:
    """With the real launcher, whose Ctrl-C reaches the processes by way of it."""
    words: list[Any] = ["distill", "--data", place / "data", *SMALL, *ALONE, "--epochs", 6, "--checkpoint-every", 2]
    whole = torchrun(*words, "-o", tmp_path / "whole")
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    first = torchrun(*words, "-o", tmp_path / "run")
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("run/last/state-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert err.count("go on with --resume") == 1, err
    again = torchrun(*words, "-o", tmp_path / "run", "--resume", "auto")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    one, other = (torch.load(sorted(tmp_path.glob(f"{n}/last/*.pt"))[-1], weights_only=True) for n in ("run", "whole"))
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())

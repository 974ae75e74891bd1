"""Run `edgekit` as a user does, and draw small data sets for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.cli.main import run

SMALL = ("--student", "test_byobnet", "--image-size", "32", "--batch-size", "16", "--device", "cpu")
ALONE = ("--alpha", "0", "--beta", "0")
COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}


def draw_colours(root: Path, *, train: int = 14, val: int = 6, classes: int = 3, unlabelled: int = 0) -> Path:
    """Write noisy pictures of one colour per class: easy, but not the same picture twice."""
    rng = np.random.default_rng(0)
    chosen = list(COLOURS.items())[:classes]
    plan = [
        (f"{split}/{name}", count, rgb) for split, count in (("train", train), ("val", val)) for name, rgb in chosen
    ]
    plan += [("train/_unlabeled", unlabelled, rgb) for _, rgb in chosen]
    for number, (folder, count, rgb) in enumerate(plan):
        for index in range(count):
            path = root / folder / f"{number}-{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = np.array(rgb) + rng.normal(0, 40, (40, 48, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
    return root


def start(
    *args: object, cwd: Path | None = None, before: Callable[[], object] | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start `edgekit` in a process of its own, with Ctrl-C switched on (a shell's background jobs have it off)."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()

    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        preexec_fn=prepare,
    )


def call(
    *args: object, cwd: Path | None = None, before: Callable[[], object] | None = None, **environment: str
) -> tuple[int, str, str]:
    """Run `edgekit` to its end and return exit code, standard output and standard error."""
    process = start(*args, cwd=cwd, before=before, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def one_error_line(err: str) -> str:
    """Return the last line, after checking that it is the error and that nothing else looks like a traceback."""
    assert "Traceback" not in err, err
    last = err.strip().splitlines()[-1]
    assert last.startswith(("error: ", "Error: ")), err
    return last


def refused(capsys: pytest.CaptureFixture[str], code: int, *args: object) -> str:
    """Run `edgekit` in this process to a refusal; return its line."""
    capsys.readouterr()
    assert run([*map(str, args)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return one_error_line(captured.err)

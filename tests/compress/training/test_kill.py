"""A training process is really killed, again and again; what it ends with is bit for bit what it would have been."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killable_for_tests import BEST, CONFIG, Training, newest_state, server, start
from torch import Tensor

from edgekit.compress.training.checkpointing import Checkpoints
from edgekit.compress.training.run_folder import RunFolder

KILLS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(folder).wait() == 0
    return folder


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Compare nested values to the last bit; wall times aside."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one.keys() - {"seconds", "images_per_s", "peak_memory_bytes"}:
            assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{place}[{number}]")
    else:
        assert one == other or one != one, place


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    """Compare weights, average, optimizer, schedule, best checkpoint and metrics of two finished runs."""
    state = newest_state(folder)
    assert state["ema"] and state["optimizer"]["state"]
    assert state["position"]["epoch"] == CONFIG.epochs + 1
    assert_same(state, newest_state(undisturbed))
    assert_same(*(torch.load(path / BEST, weights_only=True) for path in (folder, undisturbed)))
    assert_same(*(RunFolder(path).read_metrics() for path in (folder, undisturbed)))


@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments_it_ends_bitwise_the_same(tmp_path: Path, undisturbed: Path, seed: int) -> None:
    rng = random.Random(seed)
    metrics = tmp_path / "run" / "metrics.jsonl"
    reached = []
    manifest = tmp_path / "run" / "last" / "manifest.json"
    for number in range(KILLS):
        before = manifest.read_bytes() if manifest.is_file() else b""
        started = server().Event()
        process = start(tmp_path / "run", pause_s=0.1, started=started)
        assert started.wait(60)
        # every third one is let to its next state, so that all of them get on where the machine is busy
        while number % 3 == 1 and (not manifest.is_file() or manifest.read_bytes() == before):
            assert process.running
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        assert process.running, "it ended before it could be killed; slow it down"
        process.kill()
        assert process.wait() == -signal.SIGKILL
        reached.append([(e.epoch, e.step) for e in Checkpoints(tmp_path / "run" / "last", pytest.fail).entries()][:1])
    assert start(tmp_path / "run").wait() == 0
    assert any(position and position[0][1] for position in reached), f"no resume began within an epoch: {reached}"
    for line in metrics.read_text(encoding="utf-8").splitlines():
        json.loads(line)
    assert_same_run(tmp_path / "run", undisturbed)


def check_full_disk(folder: Path, undisturbed: Path, process: Training) -> bool:
    """Check what a training left that could not write; then continue it with room. Return whether it had failed."""
    code = process.wait()
    if code == 0:
        return False
    assert code == 3
    said = process.said()
    assert "cannot write" in said
    assert "\n" not in said
    store = Checkpoints(folder / "last", pytest.fail)  # damage would be warned of
    assert len(list(store.load())) == len(store.entries())
    assert not [path for path in folder.rglob(".*") if path.is_file()]  # nothing half-written lies about
    assert start(folder).wait() == 0
    assert_same_run(folder, undisturbed)
    return True


@pytest.mark.parametrize("limit_bytes", [0, 3, 300, 700, 1200, 10_000, 30_000])
def test_a_disk_that_fills_up_in_the_middle_of_a_file_costs_nothing(
    tmp_path: Path, undisturbed: Path, limit_bytes: int
) -> None:
    assert check_full_disk(tmp_path / "run", undisturbed, start(tmp_path / "run", limit_bytes=limit_bytes))


@pytest.mark.slow
def test_any_write_may_fail(tmp_path: Path, undisturbed: Path) -> None:
    failed = 0
    for number in range(1, 60):
        folder = tmp_path / str(number)
        failed += check_full_disk(folder, undisturbed, start(folder, fail_from=number))
    assert failed > 50


@pytest.mark.slow
def test_killed_before_any_file_operation_it_ends_bitwise_the_same(tmp_path: Path, undisturbed: Path) -> None:
    """Between opening, renaming and removing lie all states that the disk can be in."""
    killed = 0
    for number in range(1, 60):
        folder = tmp_path / str(number)
        process = start(folder, die_at=number)
        if process.wait() == 0:
            break
        assert process.wait() == -signal.SIGKILL
        killed += 1
        assert not [path for path in folder.rglob("state-*.pt") if path.stat().st_size == 0]
        assert start(folder).wait() == 0
        assert_same_run(folder, undisturbed)
    assert killed > 50

"""Training in several real processes: the result of one, one writer, and one end for all."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killable_for_tests import BEST, newest_state
from processes_for_tests import CONFIG, Group, Patterns, launch, train
from tolerances import PROCESSES
from torch import Tensor, nn

from edgekit.compress.parallel.shares import Share, Split
from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import DataError, UsageError

KILLS = 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the finished run of one process."""
    return finished(1, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the finished run of two processes."""
    return finished(2, tmp_path_factory.mktemp("pair") / "run")


def finished(world: int, folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> Path:
    group = launch(world, train, folder, changes or {}, options)
    assert group.wait() == [0] * world, group.said()
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the best weights, their average, and the optimizer's memory at the end, all by name."""
    state = newest_state(folder)
    best = torch.load(folder / BEST, weights_only=True)
    moments = {f"{n}.{k}": v for n, s in state["optimizer"]["state"].items() for k, v in s.items()}
    found: dict[str, Tensor] = {f"best.{k}": v for k, v in best.items()}
    for part in ("model", "ema"):
        found |= {f"{part}.{name}": tensor for name, tensor in state[part].items()}
    return found | moments


def furthest(one: Path, other: Path) -> float:
    """Return the largest difference between the weights and losses of two runs, and check all that has no rounding."""
    rows, others = ([row for row in RunFolder(path).read_metrics() if row["kind"] == "epoch"] for path in (one, other))
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in others] == [1, 2, 3, 4]
    for name in ("best", "steps", "train_acc", "val_acc", "lr"):
        assert [row[name] for row in rows] == [row[name] for row in others], name
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(rows, others, strict=True)]
    gaps += [float((tensor.double() - theirs[name].double()).abs().max()) for name, tensor in ours.items()]
    return max(gaps)


@pytest.mark.parametrize("world", [2, 3])
def test_the_curve_is_that_of_one_process(world: int, alone: Path, tmp_path: Path) -> None:
    """With batch norm, samples without labels, and shares of unequal size."""
    assert 0 < furthest(finished(world, tmp_path / "run"), alone) < PROCESSES


@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 2)])
def test_micro_batches_sum_to_the_whole_batch(world: int, accumulate: int, tmp_path: Path) -> None:
    whole = finished(1, tmp_path / "whole", norm=False)
    assert 0 < furthest(finished(world, tmp_path / "parts", {"accumulate": accumulate}, norm=False), whole) < PROCESSES


def test_micro_batches_are_the_same_in_one_process_and_in_two(tmp_path: Path) -> None:
    """Batch norm sees each micro-batch alone, but all of it."""
    one, two = (finished(world, tmp_path / str(world), {"accumulate": 3}) for world in (1, 2))
    assert furthest(one, two) < PROCESSES


def test_a_run_goes_on_in_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    for first, then in ((2, 1), (1, 2)):
        folder = tmp_path / f"{first}-{then}"
        group = launch(first, train, folder, {}, {"before": interrupt_in_third_epoch})
        assert group.wait() == [143] * first
        assert furthest(finished(then, folder), alone) < PROCESSES


def interrupt_in_third_epoch(rank: int, epoch: int, step: int) -> None:
    if rank == 0 and (epoch, step) == (3, 2):
        os.kill(os.getpid(), signal.SIGTERM)


def test_killed_at_random_moments_it_ends_as_if_undisturbed(pair: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(KILLS):
        size = metrics.stat().st_size if metrics.is_file() else 0
        # three epochs of the four may be behind it already, and what is left must take longer than the wait below
        group = launch(2, train, tmp_path / "run", {}, {"pause_s": 0.1})
        wait_for(lambda size=size: metrics.is_file() and metrics.stat().st_size != size)  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, 0.3))
        for training in group.trainings:
            assert training.running, "it ended before it could be killed; slow it down"
            training.kill()
        assert group.wait() == [-signal.SIGKILL] * 2
    # gloo adds in a fixed order, so that on a CPU not even rounding differs
    assert furthest(finished(2, tmp_path / "run"), pair) == 0


def wait_for(condition: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_any_process_stops_all_after_the_same_step(
    told: tuple[int, ...], number: signal.Signals, code: int, pair: Path, tmp_path: Path
) -> None:
    group = launch(2, train, tmp_path / "run", {}, {"pause_s": 0.05})
    wait_for(lambda: list(tmp_path.glob("run/last/state-*")))
    for rank in told:
        os.kill(group.trainings[rank].pid, number)
    assert group.wait() == [code, code]
    [said] = group.said()
    assert "go on with --resume" in said
    assert furthest(finished(2, tmp_path / "run"), pair) == 0


def fail_with_bad_data(rank: int, epoch: int, step: int) -> None:
    if rank == 1 and (epoch, step) == (2, 3):
        raise DataError("this picture is bad")


def fail_unforeseen(rank: int, epoch: int, step: int) -> None:
    if rank == 1 and (epoch, step) == (2, 3):
        raise ZeroDivisionError


def die(rank: int, epoch: int, step: int) -> None:
    if rank == 1 and (epoch, step) == (2, 3):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("before", "codes", "said"),
    [
        (fail_with_bad_data, [2, 2], ["this picture is bad"]),
        (fail_unforeseen, [1, 1], []),
        (die, [1, -9], ["another process of this run is gone"]),
    ],
)
def test_an_error_of_one_process_ends_all_at_once_and_is_told_once(
    before: Any, codes: list[int], said: list[str], pair: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    group = launch(2, train, tmp_path / "run", {}, {"before": before})
    assert group.wait(30) == codes
    assert time.monotonic() - started < 25
    messages = group.said()
    assert len(messages) == len(said)
    assert all(expected in message for expected, message in zip(said, messages, strict=True))
    assert furthest(finished(2, tmp_path / "run"), pair) == 0


def train_with_own_rate(folder: Path) -> None:
    train(folder, {"lr": 0.01 * (1 + int(os.environ["RANK"]))}, {})


def train_with_own_net(folder: Path) -> None:
    train(folder, {}, {"norm": os.environ["RANK"] == "0"})


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (train_with_own_rate, "lr is 0.01 in process 0 and 0.02 in process 1"),
        (train_with_own_net, "shapes of the weights"),
    ],
)
def test_processes_that_disagree_are_refused_before_the_first_step(work: Any, expected: str, tmp_path: Path) -> None:
    group = launch(2, work, tmp_path / "run")
    assert group.wait() == [2, 2]
    [said] = group.said()
    assert expected in said
    assert not list(tmp_path.glob("run/last/state-*"))


class PoisonedOnce(Patterns):
    """The second process meets a picture of NaN in the second step of the third epoch, on its first way through."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.cat([self.x, torch.full_like(self.x[:1], math.nan)])
        self.met = False

    def shares(self, epoch: int, device: torch.device, start: int, split: Split) -> Iterator[Any]:
        for number, (rows, share) in enumerate(super().shares(epoch, device, start, split), start):
            if (epoch, number, split.rank) == (3, 1, 1) and not self.met:
                self.met, rows[0] = True, -1
            yield rows, share

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        return {"val_acc": float((model(self.x[:-1]).argmax(1) == self.y).float().mean())}


def train_poisoned(folder: Path, guard: str) -> None:
    run = RunFolder(folder)
    if os.environ["RANK"] == "0":
        run.create({}, {})
    task = PoisonedOnce()
    fit(task, FitConfig.model_validate({**CONFIG.model_dump(), "guard": guard}), run)


def test_nan_in_one_process_is_seen_by_all_and_rolled_back_by_all(tmp_path: Path) -> None:
    group = launch(2, train_poisoned, tmp_path / "run", "rollback")
    assert group.wait() == [0, 0], group.said()
    rows = RunFolder(tmp_path / "run").read_metrics()
    [found] = [row for row in rows if row["kind"] == "guard"]
    assert found["action"] == "rollback"
    # the other process met it only in the batch norm that both share
    assert "became nan at step 14, first in the output of layer 0, whose input is so already" in found["message"]
    assert [row["epoch"] for row in rows if row["kind"] == "epoch"] == [1, 2, 3, 4]
    assert newest_state(tmp_path / "run")["lr_scale"] == 0.5


def test_nan_in_one_process_ends_all_with_one_message(tmp_path: Path) -> None:
    group = launch(2, train_poisoned, tmp_path / "run", "warn")
    assert group.wait() == [1, 1]
    [said] = group.said()
    assert "became nan at step 14, first in the output of layer 0" in said


def train_indivisible(folder: Path) -> None:
    from killable_for_tests import Pictures

    fit(Pictures(), CONFIG, RunFolder(folder))


def test_a_task_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    group: Group = launch(2, train_indivisible, tmp_path / "run")
    assert group.wait() == [2, 2]
    [said] = group.said()
    assert "cannot be divided into 2 process(es)" in said


def train_on_a_full_disk(folder: Path) -> None:
    import resource

    RunFolder(folder).create({}, {}) if os.environ["RANK"] == "0" else None
    if os.environ["RANK"] == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))
    fit(Patterns(), CONFIG, RunFolder(folder))


def test_a_full_disk_of_the_main_process_ends_all(tmp_path: Path) -> None:
    group = launch(2, train_on_a_full_disk, tmp_path / "run")
    assert group.wait() == [3, 3]
    [said] = group.said()
    assert "cannot write" in said


@pytest.mark.parametrize("count", [12, 13, 17, 64])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_shares_cover_every_row_once_and_weigh_to_one(count: int, world: int, accumulate: int) -> None:
    rows = np.random.default_rng(0).permutation(count)
    labels = np.where(rows % 3 == 0, -1, 1)
    parts = [list(Split(rank, world, accumulate).parts(rows)) for rank in range(world)]
    assert sorted(np.concatenate([part for own in parts for part in own])) == list(range(count))
    sizes = [len(part) for own in parts for part in own]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= (1 if accumulate == 1 else 2)
    # the m-th parts of all processes together are the m-th micro-batch of one
    for number, micro in enumerate(Split(0, 1, accumulate).parts(rows)):
        assert np.array_equal(np.concatenate([own[number] for own in parts]), micro)
    order = np.argsort(rows)
    shares = [Share.of(labels[order[part]], labels) for own in parts for part in own]
    assert sum(share.samples for share in shares) == pytest.approx(1)
    assert sum(share.labelled for share in shares) == pytest.approx(1)


def test_a_share_without_labels_weighs_nothing_and_an_empty_one_is_refused() -> None:
    none = np.array([-1, -1])
    assert Share.of(none, np.array([-1, -1, 2, 2])).labelled == 0
    assert Share.of(none, none) == Share(1.0, 0.0)
    with pytest.raises(UsageError, match="a batch of 5 cannot be divided between 3"):
        list(Split(0, 3, 2).parts(np.arange(5)))

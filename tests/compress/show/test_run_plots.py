"""Histories join over phases and survive damaged metrics; pictures of one and of several runs show what they should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from killable_for_tests import CONFIG, Pictures
from PIL import Image

from edgekit.atomic import WriteError
from edgekit.compress.show.run_plots import plot_runs
from edgekit.compress.training.history import read_history
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import LoadError


def make_run(folder: Path, epochs: int = 3, first_loss: float = 2.0) -> RunFolder:
    run = RunFolder(folder)
    run.create({}, {})
    for epoch in range(1, epochs + 1):
        for step in (50, 100):
            run.append_metrics(
                {"kind": "step", "epoch": epoch, "step": step, "lr": 0.01 / epoch, "grad_norm": 1.0 + step / 100}
            )
        row = {"kind": "epoch", "epoch": epoch, "loss": first_loss / epoch, "val_acc": 0.2 * epoch, "lr": 0.01 / epoch}
        run.append_metrics({**row, "steps": 120, "seconds": 60.0, "images_per_s": 100.0, "best": True})
    return run


def pixels(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).copy()


def test_steps_lie_within_their_epochs(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    history = read_history(tmp_path / "a")
    assert history.name == "a"
    curve = history.curve("grad_norm", by_step=True)
    assert curve.epochs[:3] == pytest.approx([50 / 120, 100 / 120, 1 + 50 / 120])
    assert history.curve("val_acc", scale=100.0).values == pytest.approx([20, 40, 60])
    assert history.curve("nothing").values == []


def test_phases_are_joined_in_order(tmp_path: Path) -> None:
    run = make_run(tmp_path / "b", first_loss=0.5)
    earlier = [{"kind": "epoch", "epoch": epoch, "loss": 3.0, "lr": 1.0, "phase": 1} for epoch in (1, 2, 3, 4)]
    run.write_history([*earlier, {"kind": "epoch", "epoch": 1, "loss": 1.0, "lr": 1.0, "phase": 2}])
    history = read_history(tmp_path / "b")
    assert history.phase_ends == [4.0, 5.0]
    assert history.curve("loss").epochs == [1, 2, 3, 4, 5, 6, 7, 8]
    assert history.curve("loss").values[3:6] == [3.0, 1.0, 0.5]
    rate = history.curve("lr", by_step=True)
    assert rate.epochs[:6] == pytest.approx([1, 2, 3, 4, 5, 5 + 50 / 120])


def test_gaps_nan_repeats_disorder_and_torn_lines_are_survived(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create({}, {})
    lines = [{"kind": "epoch", "epoch": 5, "loss": 1.0, "lr": 1.0}, {"epoch": 2, "loss": float("nan"), "lr": 1.0}]
    lines += [{"kind": "epoch", "epoch": 2, "loss": 3.0, "lr": 1.0}, {"kind": "epoch", "epoch": 1, "loss": None}]
    text = "\n".join(json.dumps(line) for line in lines) + '\n[1]\n"x"\n{"epoch": "two"}\n{"kind": "ep'
    run.metrics_path.write_text(text, encoding="utf-8")
    curve = read_history(tmp_path).curve("loss")
    assert (curve.epochs, curve.values) == ([2, 5], [3.0, 1.0])
    plot_runs([read_history(tmp_path)], tmp_path / "x.png")


def test_what_is_no_run_or_has_no_epoch_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no metrics"):
        read_history(tmp_path / "nowhere")
    make_run(tmp_path / "a", epochs=0).metrics_path.touch()
    with pytest.raises(LoadError, match="no finished epoch"):
        read_history(tmp_path / "a")


def test_the_picture_shows_each_run_its_phases_and_rollbacks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    plot_runs([read_history(run.path)], tmp_path / "plain.png")
    plain = pixels(tmp_path / "plain.png")
    assert plain.shape[1] > 1200
    assert (plain < 128).any(axis=2).mean() > 0.01
    run.append_metrics({"kind": "guard", "epoch": 2, "step": 0, "action": "rollback"})
    plot_runs([read_history(run.path)], tmp_path / "back.png")
    red = lambda picture: int(((picture[..., 0] > 200) & (picture[..., 1] < 90) & (picture[..., 2] < 90)).sum())  # noqa: E731
    assert red(pixels(tmp_path / "back.png")) > red(plain) + 500
    other = make_run(tmp_path / "b", epochs=5)
    plot_runs([read_history(path) for path in (run.path, other.path)], tmp_path / "two.png")
    two = pixels(tmp_path / "two.png").reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # C0 and C1
        assert (np.abs(two.astype(int) - colour).sum(axis=1) < 12).sum() > 500


def test_a_dollar_in_a_path_is_no_formula(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name).path for name in ("$a_$x", "$b_$x")]
    plot_runs([read_history(runs[0])], tmp_path / "one.png", title=str(runs[0]))
    plot_runs([read_history(run) for run in runs], tmp_path / "two.png")
    assert (pixels(tmp_path / "one.png")[:40] < 128).any(), "the title is there"


def test_one_epoch_can_be_drawn(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create({}, {})
    fit(Pictures(), CONFIG.model_copy(update={"epochs": 1}), run)
    plot_runs([read_history(tmp_path)], tmp_path / "one.png")
    history = read_history(tmp_path)
    for name in ("images_per_s", "peak_memory_bytes", "grad_norm", "seconds"):
        (value,) = history.curve(name).values
        assert value > 0
    assert 50e6 < history.curve("peak_memory_bytes").values[0] < 50e9


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError):
        plot_runs([read_history(tmp_path / "a")], tmp_path / "file" / "x.png")

"""Training a classifier: mixed batches, divided steps, SGD, and a run folder that the other commands take."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from edgekit.cli.main import run
from edgekit.compress.image.recipe import IMAGE_SGD, ImageRecipe, image_recipe
from edgekit.compress.image.task import ImageTask
from edgekit.compress.image.train import TrainImageConfig, train_image
from edgekit.compress.parallel.shares import Split
from edgekit.compress.pictures.pixels import decode_eval, decode_train
from edgekit.compress.pictures.source import StoredSource
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.training_state import make_optimizer
from edgekit.data import load_dataset
from edgekit.errors import StoppedError, UsageError
from edgekit.models.checkpoint import STUDENT_FILE
from edgekit.models.spec import StudentSpec
from edgekit.models.student import build_student, student_preprocess
from edgekit.models.teacher import load_teacher
from edgekit.terminal import Terminal
from tests.cli.commands_for_tests import draw_colours
from tests.tolerances import FP32_EXACT

CPU = torch.device("cpu")
QUIET = Terminal(-1)


def recipe(**changes: object) -> ImageRecipe:
    fit = {"epochs": 2, "batch_size": 12, "device": "cpu", "lr": 0.05}
    return image_recipe({**changes, "fit": {**fit, **dict(changes.pop("fit", {}))}})  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_colours(tmp_path_factory.mktemp("image") / "data")


def make_task(data: Path, settings: ImageRecipe) -> ImageTask:
    dataset = load_dataset(data)
    contract = student_preprocess("test_byobnet", 32)
    torch.manual_seed(0)
    net = build_student(StudentSpec("test_byobnet", 16, dataset.classes, contract))
    train = StoredSource(decode_train(dataset.train, 40), None, settings, contract)
    return ImageTask(net, settings, train, decode_eval(dataset.val, contract))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_the_parts_of_a_divided_step_sum_to_the_whole(data: Path, mixup: float) -> None:
    task = make_task(data, recipe(mixup=mixup))
    model = task.model.eval()  # batch norm sees the same in parts as in the whole
    for whole, number in zip(task.batches(1, CPU), range(task.steps_per_epoch), strict=True):
        split = Split(accumulate=3)
        parts = list(task.shares(1, CPU, number, split))[:3]
        dealt = np.concatenate(list(split.parts(np.arange(len(whole.images)))))
        torch.testing.assert_close(torch.cat([part.images for part in parts]), whole.images[dealt])
        total = sum(task.loss(model, part)["loss"] for part in parts)
        assert isinstance(total, Tensor)
        torch.testing.assert_close(total, task.loss(model, whole)["loss"], atol=FP32_EXACT, rtol=1e-5)


def test_mixed_pictures_and_labels_are_mixed_alike(data: Path) -> None:
    plain, mixed = make_task(data, recipe()), make_task(data, recipe(mixup=1.0))
    shares, pairs = [], []
    for a, b in zip(plain.batches(3, CPU), mixed.batches(3, CPU), strict=True):
        assert b.partners is not None and a.partners is None
        assert torch.equal(b.labels, a.labels)
        # what was added to each picture is one of the batch, and of the class that its partner is said to have
        added = (b.images - b.kept * a.images) / (1 - b.kept)
        partner = torch.cdist(added.flatten(1), a.images.flatten(1)).argmin(1)
        assert sorted(partner.tolist()) == list(range(len(partner))) and torch.equal(b.partners, a.labels[partner])
        torch.testing.assert_close(b.images, b.kept * a.images + (1 - b.kept) * a.images[partner])
        pairs += zip(b.labels.tolist(), b.partners.tolist(), strict=True)
        shares.append(b.kept)
        logits = mixed.model.eval()(b.images).logits
        one, other = (
            F.cross_entropy(logits, labels, label_smoothing=mixed.recipe.label_smoothing)
            for labels in (b.labels, b.partners)
        )
        torch.testing.assert_close(mixed.loss(mixed.model, b)["loss"], b.kept * one + (1 - b.kept) * other)
        mixed.model.train()
    assert len(set(shares)) == len(shares), "each batch draws its own share"
    assert len(set(pairs)) == 9, "every class meets every class"
    again = [batch.kept for batch in make_task(data, recipe(mixup=1.0)).batches(3, CPU)]
    assert again == shares


def test_label_smoothing_is_that_of_its_paper(data: Path) -> None:
    task = make_task(data, recipe(label_smoothing=0.2))
    batch = next(task.batches(1, CPU))
    log_p = task.model.eval()(batch.images).logits.log_softmax(1)
    target = 0.8 * F.one_hot(batch.labels, 3) + 0.2 / 3
    torch.testing.assert_close(task.loss(task.model, batch)["loss"], -(target * log_p).sum(1).mean())


def test_sgd_with_nesterov_steps_as_its_formula() -> None:
    """v ← μv + g, w ← w − η(g + μv), with the L2 term in g (Sutskever et al. 2013, as PyTorch writes it)."""
    net = torch.nn.Linear(3, 2, bias=False)
    fit = recipe(fit={"weight_decay": 0.1, "lr": 0.5}).fit
    optimizer = make_optimizer(net, fit)
    w, v = net.weight.detach().clone(), torch.zeros(2, 3)
    for number in range(4):
        net.weight.grad = torch.full((2, 3), float(number))
        g = net.weight.grad + 0.1 * w
        v = 0.9 * v + g
        w = w - 0.5 * (g + 0.9 * v)
        optimizer.step()
        torch.testing.assert_close(net.weight.detach(), w)


def test_settings_are_merged() -> None:
    made = image_recipe({"fit": {"lr": 0.05, "schedule": {"name": "cosine-restarts", "t_0": 30.0}}}, min_lr=1e-5)
    assert made.fit.schedule.min_factor == pytest.approx(2e-4)
    assert (made.fit.schedule.t_0, made.fit.nesterov, made.fit.momentum) == (30.0, True, 0.9)
    assert not image_recipe({"fit": {"optimizer": "adamw"}}).fit.nesterov
    assert IMAGE_SGD.fit.schedule.name == "cosine"  # the default needs no restarts
    with pytest.raises(UsageError, match="nesterov needs"):
        image_recipe({"fit": {"momentum": 0.0}})


class _Impatient(Terminal):
    """Ends its process politely when the first epoch's row is shown."""

    def say(self, text: str) -> None:
        super().say(text)
        if text.lstrip().startswith("1 "):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_ends_as_an_undisturbed_one_and_teaches(data: Path, tmp_path: Path) -> None:
    def config(name: str) -> TrainImageConfig:
        return TrainImageConfig(data, tmp_path / name, recipe(), "test_byobnet", 32, embed_dim=16)

    train_image(config("whole"), QUIET)
    with pytest.raises(StoppedError):
        train_image(config("stopped"), _Impatient(0))
    train_image(config("stopped"), QUIET, resume=True)
    one, other = (load_file(tmp_path / name / STUDENT_FILE) for name in ("whole", "stopped"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    summary = RunFolder(tmp_path / "whole").facts()["summary"]
    assert summary["val_acc_low"] < summary["val_acc"] <= summary["val_acc_high"]
    teacher = load_teacher(str(tmp_path / "whole"), CPU)
    rows = teacher(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    assert teacher.embed_dim == 16 and teacher.class_scores(("a", "b"), ("{}",)) is None
    second = TrainImageConfig(
        data,
        tmp_path / "two",
        recipe(fit={"lr": 1e-6, "epochs": 1}),
        "test_byobnet",
        32,
        16,
        init_from=tmp_path / "whole",
    )
    train_image(second, QUIET)
    assert RunFolder(second.output).read_history()


def test_the_origins_restart_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = {"model": "test_byobnet", "epochs": 80, "initial_lr": 0.05, "T_0": 30, "eta_min": 1e-5, "patience": 10}
    (tmp_path / "config.json").write_text(json.dumps(origin), encoding="utf-8")
    where = ("--data", str(data), "--config", str(tmp_path / "config.json"), "-o", str(tmp_path / "run"))
    code = run(["train", "image", *where, "--image-size", "32", "--device", "cpu"])
    message = capsys.readouterr().err
    assert code == 2 and not (tmp_path / "run").exists()
    assert "restarts the learning rate at epoch 31" in message and "20.5 points" in message
    code = run(["train", "image", *where, "--image-size", "32", "--device", "cpu", "--epochs", "1", "-q", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert code == 0 and facts["student"]["arch"] == "test_byobnet"
    assert np.isfinite(facts["summary"]["val_acc"])


def test_unknown_trainings_and_models_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "images"]) == 2
    assert "did you mean 'image'" in capsys.readouterr().err
    assert run(["train", "image", "--data", str(data), "--model", "resnet51", "-o", str(tmp_path / "x")]) == 2
    assert "--model 'resnet51' is not a timm model; did you mean 'resnet" in capsys.readouterr().err

"""Training of text classifiers by the one loop: it learns, resumes bit for bit, takes soft labels and teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_for_tests import write_encoder
from texts_for_tests import reviews, write_reviews

from edgekit.compress.text.pieces import PieceStore
from edgekit.compress.text.recipe import TEXT_RECIPES, TextRecipe, load_text_recipe
from edgekit.compress.text.task import TextTask
from edgekit.compress.text.train import TextConfig, train_text
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import StoppedError, UsageError
from edgekit.models.text_classifier import load_text_classifier
from edgekit.models.text_tokenizer import PADDING, train_bpe
from edgekit.terminal import Terminal
from edgekit.text_files import TextFiles

QUIET = Terminal(-1)
TINY: dict[str, Any] = {
    "vocab_size": 500,
    "width": 16,
    "buckets": 256,
    "max_length": 16,
    "fit": {"epochs": 3, "batch_size": 16, "device": "cpu", "lr": 1e-2, "weight_decay": 0.01},
}


def recipe(name: str = "text-tiny", **changes: Any) -> TextRecipe:
    fit_changes = {**TINY["fit"], **changes.pop("fit", {})}
    return load_text_recipe(name, {**TINY, **changes, "fit": fit_changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    folder = tmp_path_factory.mktemp("texts")
    train, val, test = (write_reviews(folder / f"{n}.tsv", count, n) for n, count in enumerate((160, 60, 60)))
    return TextFiles(train, val, test)


@pytest.fixture(scope="module")
def taught(files: TextFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    train_text(TextConfig(files, run, recipe(width=32)), QUIET)
    return run


def test_it_learns_and_says_how_well(taught: Path) -> None:
    facts = json.loads((taught / "run.json").read_text())
    assert facts["task"] == "text" and facts["teacher"] is None
    test = facts["judged"]["test"]
    assert test["accuracy"]["value"] > 0.9 and test["accuracy"]["low"] < test["accuracy"]["value"]
    assert np.array(test["confusion"]).sum() == 60 == test["texts"]
    assert test["kl_labels"]["value"] == pytest.approx(test["cross_entropy"]["value"])  # hard labels have no entropy
    for picture in ("training", "confusion_val", "confusion_test"):
        assert (taught / "plots" / f"{picture}.png").stat().st_size > 5000
    model, _ = load_text_classifier(taught)
    assert model.spec.classes == ("bad", "good")
    assert facts["model"]["parameters"] == sum(p.numel() for p in model.deployed().parameters())
    rows = RunFolder(taught).read_metrics()
    assert all(row["grad_norm"] > 0 for row in rows if row["kind"] == "epoch")


@pytest.mark.parametrize("name", sorted(set(TEXT_RECIPES) - {"finetune", "text-tiny"}))
def test_every_recipe_trains(name: str, files: TextFiles, tmp_path: Path) -> None:
    config = TextConfig(files, tmp_path / "run", recipe(name, fit={"epochs": 1}, merge_dropout=0.2))
    assert train_text(config, QUIET).result.rows[0]["loss"] < 0.9


def test_interrupted_and_resumed_it_ends_bit_for_bit_the_same(
    files: TextFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(merge_dropout=0.2, fit={"epochs": 2, "checkpoint_every": "3"})
    whole, broken = (TextConfig(files, tmp_path / name, chosen) for name in ("whole", "broken"))
    train_text(whole, QUIET)
    loss, calls = TextTask.loss, 0

    def stopping(self: TextTask, model: torch.nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise StoppedError("pulled the plug", 15)
        return loss(self, model, batch)

    monkeypatch.setattr(TextTask, "loss", stopping)
    with pytest.raises(StoppedError):
        train_text(broken, QUIET)
    train_text(broken, QUIET, resume=True)
    same, again = (load_text_classifier(config.output)[0].state_dict() for config in (whole, broken))
    assert all(torch.equal(same[name], again[name]) for name in same)


def test_a_resumed_run_must_have_the_same_texts(files: TextFiles, taught: Path, tmp_path: Path) -> None:
    other = write_reviews(tmp_path / "other.tsv", 100, 9)
    config = TextConfig(TextFiles(other, files.val, files.test), taught, recipe(width=32))
    with pytest.raises(UsageError, match="begun with other data: train was 160, now 100"):
        train_text(config, QUIET, resume=True)


def test_a_student_learns_from_a_teacher_alone(files: TextFiles, taught: Path, tmp_path: Path) -> None:
    chosen = recipe(alpha=0.5, beta=1.0, gamma=0.0, fit={"epochs": 4})
    summary = train_text(TextConfig(files, tmp_path / "student", chosen, teacher=taught), QUIET)
    row = summary.result.rows[-1]
    assert {"feature", "response"} <= set(row) and "task" not in row
    assert row["response"] < 0.5 * summary.result.rows[0]["response"]
    judged = summary.facts["judged"]["test"]
    assert judged["agreement"]["value"] > 0.9 and judged["kl_teacher"]["value"] < 0.3
    assert summary.facts["teacher"]["parameters"] > summary.facts["model"]["parameters"]
    # what maps the student's features to the teacher's width is of training alone
    assert not any("to_teacher" in name for name in load_text_classifier(tmp_path / "student")[0].state_dict())


def test_a_teacher_must_know_the_same_classes_and_be_used(files: TextFiles, taught: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "n.tsv"
    numbers.write_text("".join(f"{text}\t{int(name == 'good')}\n" for text, name in reviews(40, 0)))
    with pytest.raises(UsageError, match="knows the classes bad, good, the data have 0, 1"):
        train_text(TextConfig(TextFiles(numbers), tmp_path / "a", recipe(), teacher=taught), QUIET)
    with pytest.raises(UsageError, match="nothing learns from it"):
        train_text(TextConfig(files, tmp_path / "b", recipe(alpha=0, beta=0), teacher=taught), QUIET)


def test_soft_labels_are_learned_as_they_are(tmp_path: Path) -> None:
    rows = ["text,p_bad,p_good"]
    rows += [f'"{text}",{"0.3,0.7" if name == "good" else "0.8,0.2"}' for text, name in reviews(160, 0)]
    (tmp_path / "soft.csv").write_text("\n".join(rows) + "\n")
    chosen = recipe(label_smoothing=0, word_dropout=0, dropout=0.1, fit={"epochs": 8})
    facts = train_text(TextConfig(TextFiles(tmp_path / "soft.csv"), tmp_path / "run", chosen), QUIET).facts
    val = facts["judged"]["val"]
    assert val["kl_labels"]["value"] < 0.05 < 0.4 < val["cross_entropy"]["value"]  # the labels' own entropy is 0.55


def test_a_pretrained_encoder_is_trained_on(files: TextFiles, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder")
    fit_changes = {"epochs": 1, "batch_size": 16, "device": "cpu", "lr": 1e-3}
    chosen = load_text_recipe("finetune", {"fit": fit_changes})
    facts = train_text(TextConfig(files, tmp_path / "run", chosen, encoder=str(folder)), QUIET).facts
    assert facts["model"]["arch"] == "bert" and facts["model"]["max_length"] == 48
    assert load_text_classifier(tmp_path / "run")[0].spec.arch == "bert"


def test_pieces_vary_by_epoch_and_are_a_function_of_seed_epoch_and_text() -> None:
    texts = [text for text, _ in reviews(30, 2)]
    tokenizer = train_bpe(texts, 400, 24)
    first, again, other = (PieceStore(texts, tokenizer, seed, 0.3, 0.2) for seed in (0, 0, 1))
    rows = np.arange(30)
    assert np.array_equal(first.rows(rows, 1), again.rows(rows, 1))
    assert np.array_equal(first.rows(rows, 1)[7:9], again.rows(rows[7:9], 1))
    for different in (first.rows(rows, 2), other.rows(rows, 1)):
        assert not np.array_equal(first.rows(rows, 1), different)
    plain = PieceStore(texts, tokenizer, 0, 0.0, 0.0)
    assert np.array_equal(plain.rows(rows, 1), tokenizer(texts).ids)
    kept = (PieceStore(texts, tokenizer, 0, 0.0, 0.5).rows(rows, 1) != PADDING).sum() - 30
    assert 0.35 < kept / ((tokenizer(texts).ids != PADDING).sum() - 30) < 0.65


def test_the_loop_is_the_one_that_distillation_uses() -> None:
    assert train_text.__globals__["fit"] is fit


def test_recipes_are_checked() -> None:
    with pytest.raises(UsageError, match="did you mean 'text-tiny'"):
        load_text_recipe("text-tinny", {})
    with pytest.raises(UsageError, match=r"2 wrong setting\(s\)"):
        load_text_recipe("text-tiny", {"dropout": 2.0, "fit": {"epochs": 0}})
    assert load_text_recipe("finetune", {"fit": {"schedule": {"name": "cosine"}}}).fit.schedule.warmup_fraction == 0.1


@pytest.mark.realdata
@pytest.mark.long
def test_sst2_from_scratch_reaches_80_percent(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "sst2"
    files = TextFiles(folder / "train.tsv", folder / "dev.tsv", folder / "test.tsv")
    facts = train_text(TextConfig(files, tmp_path / "run", load_text_recipe("text-small", {})), QUIET).facts
    assert facts["judged"]["test"]["accuracy"]["value"] >= 0.8

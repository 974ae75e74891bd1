"""Training of a text classifier from start to end: data, tokenizer, teacher, training, judgement."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgekit.compress.guard.plan_ahead import refuse_restarts
from edgekit.compress.show.progress import TrainingDisplay
from edgekit.compress.text.pieces import PieceStore
from edgekit.compress.text.recipe import TextRecipe
from edgekit.compress.text.report import announce, data_facts, model_facts, summarise
from edgekit.compress.text.task import TeacherSays, TextData, TextTask
from edgekit.compress.training.changed_settings import Allowed
from edgekit.compress.training.loop import FitResult, fit
from edgekit.compress.training.order import steps_per_epoch
from edgekit.compress.training.run_folder import RunFolder, plain_settings
from edgekit.compress.training.run_lock import locked
from edgekit.compress.training.start import begin, go_on, look
from edgekit.errors import UsageError
from edgekit.models.text_classifier import (
    SCRATCH,
    TextClassifier,
    TextSpec,
    build_text_classifier,
    load_text_classifier,
    predict,
)
from edgekit.models.text_encoder import EncoderConfig
from edgekit.models.text_tokenizer import TextTokenizer, train_bpe
from edgekit.terminal import Terminal
from edgekit.text_data import TextDataset, load_texts
from edgekit.text_files import TextFiles


@dataclass(frozen=True)
class TextConfig:
    """What to train.

    Attributes:
        files: texts and labels.
        output: the run folder.
        recipe: encoder, tokenizer, loss weights, optimisation.
        encoder: a Hugging Face encoder, by name or as a local folder; None trains a small one from scratch.
        teacher: run folder or checkpoint of a text classifier that the student learns from.
    """

    files: TextFiles
    output: Path
    recipe: TextRecipe
    encoder: str | None = None
    teacher: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved settings, for config.yaml."""
        files = self.files
        settings = {
            "data": files.train,
            "val": files.val,
            "test": files.test,
            "val_fraction": files.val_fraction,
            "classes": files.classes,
            "columns": (files.text_column, files.label_column),
            "output": self.output,
            "encoder": self.encoder,
            "teacher": self.teacher,
            "recipe": self.recipe,
        }
        return plain_settings(settings)


@dataclass(frozen=True)
class TextSummary:
    """What a training reached, for the terminal, run.json and --json."""

    result: FitResult
    facts: Mapping[str, Any]


def train_text(
    config: TextConfig,
    terminal: Terminal,
    *,
    overwrite: bool = False,
    resume: bool = False,
    allow_change: Collection[Allowed] = (),
) -> TextSummary:
    """Train a text classifier and leave a run folder.

    Args:
        config: what to train.
        terminal: shows it.
        overwrite: replace a run that is there.
        resume: continue a run that is there; begin one where none is.
        allow_change: what may differ from the settings that a resumed run was begun with.

    Raises:
        EdgekitError: any of the errors that data, encoder, teacher and training name.
    """
    run, fit_config = RunFolder(config.output), config.recipe.fit
    start = look(run, config.to_dict(), overwrite=overwrite, resume=resume, allow_change=allow_change)
    dataset = _load(config, terminal, resume=start.resume)
    teacher = _teacher(config, dataset)
    model, tokenizer = build_model(config, dataset)
    data, cut = _prepare(config, dataset, tokenizer, teacher)
    facts = data_facts(dataset, cut, tokenizer)
    with locked(run.path):
        if start.resume:
            go_on(run, config.to_dict(), facts, start.changes, terminal)
        else:
            _begin(run, config, {"data": facts, "model": model_facts(model), "teacher": _taught(config, teacher, data)})
        announce(terminal, run.facts())
        task = TextTask(model, tokenizer, config.recipe, data)
        result = fit(task, fit_config, run, display=TrainingDisplay(terminal, "texts"), resume=start.resume)
        summarise(run, dataset, result, teacher, terminal)
        return TextSummary(result, run.facts())


def _load(config: TextConfig, terminal: Terminal, *, resume: bool) -> TextDataset:
    """Read the texts, say what a user must know of them, and refuse a plan that is known to cost accuracy."""
    fit_config = config.recipe.fit
    dataset = load_texts(config.files, fit_config.seed)
    for note in dataset.notes:
        terminal.warn(note)
    if not resume:
        refuse_restarts(fit_config, steps_per_epoch(len(dataset.train), fit_config.batch_size))
    return dataset


def _begin(run: RunFolder, config: TextConfig, facts: Mapping[str, Any]) -> None:
    """Write what a new run knows before its first step."""
    left = (run.path / TextTask.checkpoint_name, *run.plots.glob("*.png"))
    begin(run, config.to_dict(), {"task": "text", "seed": config.recipe.fit.seed, **facts}, left=left)


def build_model(config: TextConfig, dataset: TextDataset) -> tuple[TextClassifier, TextTokenizer]:
    """Return the classifier as it is before the first step, a function of the seed, and its tokenizer.

    Raises:
        EdgekitError: the encoder cannot be had or built.
    """
    recipe = config.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.fit.seed)
        if config.encoder is not None:
            from edgekit.models.text_huggingface import pretrained_classifier

            return pretrained_classifier(config.encoder, dataset.classes, recipe.max_length)
        tokenizer = train_bpe(dataset.train.texts, recipe.vocab_size, recipe.max_length, lowercase=recipe.lowercase)
        names = ("width", "layers", "heads", "kernels", "buckets", "dropout")
        encoder = EncoderConfig(**{name: getattr(recipe, name) for name in names})
        spec = TextSpec(SCRATCH, dataset.classes, tokenizer.vocab_size, tokenizer.max_length, encoder.to_dict())
        return build_text_classifier(spec, tokenizer), tokenizer


def _teacher(config: TextConfig, dataset: TextDataset) -> tuple[TextClassifier, TextTokenizer] | None:
    """Load the teacher.

    Raises:
        LoadError: it is no text classifier.
        UsageError: it knows other classes, or nothing would learn from it.
    """
    if config.teacher is None:
        return None
    if config.recipe.alpha == config.recipe.beta == 0:
        raise UsageError("--teacher is given, but with --alpha 0 --beta 0 nothing learns from it; leave it out")
    teacher, tokenizer = load_text_classifier(config.teacher)
    if teacher.spec.classes != dataset.classes:
        raise UsageError(
            f"--teacher {config.teacher} knows the classes {', '.join(teacher.spec.classes[:8])}, the data have "
            f"{', '.join(dataset.classes[:8])}; the same names in the same order are needed"
        )
    return teacher, tokenizer


def _prepare(
    config: TextConfig,
    dataset: TextDataset,
    tokenizer: TextTokenizer,
    teacher: tuple[TextClassifier, TextTokenizer] | None,
) -> tuple[TextData, dict[str, int]]:
    """Return what the task reads, and how many texts of each split are longer than the model takes."""
    recipe = config.recipe
    store = PieceStore(dataset.train.texts, tokenizer, recipe.fit.seed, recipe.merge_dropout, recipe.word_dropout)
    val = tokenizer(dataset.val.texts)
    cut = {"train": store.truncated, "val": val.truncated}
    if dataset.test is not None:
        cut["test"] = tokenizer(dataset.test.texts).truncated
    says = [teacher_says(teacher, split.texts) if teacher else None for split in (dataset.train, dataset.val)]
    return TextData(store, dataset.train.targets, dataset.val, val.ids, *says), cut


def teacher_says(teacher: tuple[TextClassifier, TextTokenizer], texts: tuple[str, ...]) -> TeacherSays:
    """Run a teacher on plain texts with its own tokenizer."""
    model, tokenizer = teacher
    output = predict(model, tokenizer(texts).ids)
    return TeacherSays(F.normalize(output.embedding, dim=1).numpy(), output.logits.numpy())


def _taught(
    config: TextConfig, teacher: tuple[TextClassifier, TextTokenizer] | None, data: TextData
) -> dict[str, Any] | None:
    if teacher is None or data.val_teacher is None:
        return None
    right = data.val_teacher.logits.argmax(axis=1) == data.val.labels
    return {"name": str(config.teacher), **model_facts(teacher[0]), "val_acc": float(np.mean(right))}

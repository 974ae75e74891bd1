"""What the training of a text classifier says of its data, model and result: to the terminal and to run.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.compress.show.run_plots import plot_runs
from edgekit.compress.text.metrics import judge, plot_confusion
from edgekit.compress.training.history import read_history
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.training_state import FitResult
from edgekit.models.text_classifier import TextClassifier, load_text_classifier, predict
from edgekit.models.text_run import TEXT_FILE
from edgekit.models.text_tokenizer import TextTokenizer
from edgekit.terminal import Terminal, human_count, percent
from edgekit.text_data import TextDataset

_NUMBERS = (
    ("macro_f1", "macro-F1", 100.0, "%"),
    ("cross_entropy", "cross-entropy", 1.0, "nats"),
    ("kl_labels", "KL from the labels", 1.0, "nats"),
    ("kl_teacher", "KL from the teacher", 1.0, "nats"),
    ("agreement", "agreement with the teacher", 100.0, "%"),
)


def data_facts(dataset: TextDataset, cut: Mapping[str, int], tokenizer: TextTokenizer) -> dict[str, Any]:
    """Return the data's facts; `cut` counts the texts that are longer than the model takes."""
    return {
        "fingerprint": dataset.fingerprint(),
        "classes": list(dataset.classes),
        "train": len(dataset.train),
        "labelled": len(dataset.train),
        "val": len(dataset.val),
        "test": len(dataset.test) if dataset.test is not None else 0,
        "broken": [],
        "soft": dataset.soft,
        "truncated": dict(cut),
        "max_length": tokenizer.max_length,
        "notes": list(dataset.notes),
    }


def model_facts(model: TextClassifier) -> dict[str, Any]:
    """Return the model's facts; parameters are those that are deployed."""
    return {
        "arch": model.spec.arch,
        "parameters": sum(p.numel() for p in model.deployed().parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters()),
        "features": model.features,
        "vocab_size": model.spec.vocab_size,
        "max_length": model.spec.max_length,
    }


def announce(terminal: Terminal, facts: Mapping[str, Any]) -> None:
    """Show what is about to be trained on what."""
    data, model, teacher = facts["data"], facts["model"], facts["teacher"]
    test = f", {data['test']} test" if data["test"] else ""
    kind = "soft" if data["soft"] else "hard"
    terminal.say(
        f"data     {data['train']} train, {data['val']} val{test} texts, {len(data['classes'])} classes, {kind} labels"
    )
    if any(data["truncated"].values()):
        cut = ", ".join(f"{count} {name}" for name, count in data["truncated"].items() if count)
        terminal.warn(f"{cut} texts are longer than {data['max_length']} ids and lose their end; see --max-length")
    if teacher is not None:
        terminal.say(
            f"teacher  {teacher['name']}: {human_count(teacher['parameters'])} parameters, "
            f"{percent(teacher['val_acc'])} val accuracy"
        )
    terminal.say(
        f"model    {model['arch']}: {human_count(model['parameters'])} parameters deployed, "
        f"{human_count(model['trained_parameters'])} trained; {model['vocab_size']} ids, {model['max_length']} per text"
    )


def summarise(
    run: RunFolder,
    dataset: TextDataset,
    result: FitResult,
    teacher: tuple[TextClassifier, TextTokenizer] | None,
    terminal: Terminal,
) -> None:
    """Judge the best checkpoint on validation and test texts, record and draw it."""
    model, tokenizer = load_text_classifier(run.path / TEXT_FILE)
    judged: dict[str, Any] = {}
    for name, split in (("val", dataset.val), ("test", dataset.test)):
        if split is None:
            continue
        logits = predict(model, tokenizer(split.texts).ids).logits.numpy()
        against = predict(teacher[0], teacher[1](split.texts).ids).logits.numpy() if teacher else None
        judged[name] = judge(logits, split.targets, against)
        title = f"{name}, {len(split)} texts"
        plot_confusion(judged[name]["confusion"], dataset.classes, run.plots / f"confusion_{name}.png", title=title)
    summary = {
        "best_epoch": result.best_epoch,
        "val_acc": result.best,
        "last_val_acc": result.last,
        "seconds": result.seconds,
    }
    run.update_facts({"summary": summary, "judged": judged})
    if result.rows:
        plot_runs([read_history(run.path)], run.plots / "training.png", title=str(run.path))
    terminal.heading("Summary")
    for name, numbers in judged.items():
        _show(name, numbers, terminal)
    terminal.say(f"run      {run.path}  (best epoch {result.best_epoch}, {result.seconds:.0f} s of training)")


def _show(name: str, numbers: Mapping[str, Any], terminal: Terminal) -> None:
    accuracy = numbers["accuracy"]
    terminal.say(
        f"{name:<8} {percent(accuracy['value'])} accuracy (95 % interval {100 * accuracy['low']:.1f} to "
        f"{100 * accuracy['high']:.1f}), n = {numbers['texts']}"
    )
    for key, label, scale, unit in _NUMBERS:
        if key in numbers:
            found = numbers[key]
            digits = 1 if scale == 100 else 3
            low, high = (f"{scale * found[end]:.{digits}f}" for end in ("low", "high"))
            terminal.say(f"         {label} {scale * found['value']:.{digits + 1}f} {unit} ({low} to {high})")

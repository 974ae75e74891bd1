"""What a distillation says of its data, teacher, student and result: to the terminal and to run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.compress.distill.task import DistillTask
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.show.plots import plot_run
from edgekit.compress.store.probe import ClassHead
from edgekit.compress.training.loop import FitResult
from edgekit.compress.training.run_folder import RunFolder
from edgekit.models.complexity import measure_complexity
from edgekit.models.student import Student
from edgekit.terminal import Terminal, human_bytes, human_count, percent


@dataclass(frozen=True)
class DistillSummary:
    """What a distillation reached, for the terminal, run.json and --json."""

    result: FitResult
    facts: Mapping[str, Any]


def describe_teacher(
    facts: Sequence[Mapping[str, Any]],
    num_views: int,
    said_of_val: NDArray[np.float16],
    head: ClassHead,
    val: PixelStore,
) -> dict[str, Any]:
    """Return the facts of one or several teachers and their accuracy on the validation pictures.

    Args:
        facts: name, fingerprint and parameters of each, as far as they are known.
        num_views: embeddings per training picture; 0 where the teacher runs in the loop.
        said_of_val: (M, D) unit rows.
        head: class scores.
        val: the same M pictures.
    """
    labels = torch.tensor([s.label for s in val.samples])
    scores = head(torch.from_numpy(said_of_val.astype(np.float32)))
    counts = [one.get("parameters") for one in facts]
    prints = [one.get("fingerprint") for one in facts]
    return {
        "name": " + ".join(str(one["name"]) for one in facts),
        "fingerprint": prints[0] if len(prints) == 1 else prints,
        "parameters": sum(counts) if all(counts) else None,
        "embed_dim": said_of_val.shape[1],
        "views": num_views,
        "class_scores": head.source,
        "val_acc": float((scores.argmax(1) == labels).float().mean()),
    }


def describe_student(student: Student) -> dict[str, Any]:
    """Return the student's facts."""
    cost = measure_complexity(student, student.spec.image_size, student.spec.frames)
    return {
        "arch": student.spec.arch,
        "image_size": student.spec.image_size,
        "frames": student.spec.frames,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "size_bytes": cost.size_bytes,
    }


def announce(
    terminal: Terminal, data: Mapping[str, Any], teacher: Mapping[str, Any] | None, student: Mapping[str, Any]
) -> None:
    """Show what is about to be trained on what."""
    unlabelled = data["train"] - data["labelled"]
    note = f" ({unlabelled} of them unlabelled)" if unlabelled else ""
    of_clips = " clips" if "frames" in data else f" in {data['shards']} shards" if "shards" in data else ""
    terminal.say(f"data     {data['train']} train{of_clips}{note}, {data['val']} val, {len(data['classes'])} classes")
    if teacher is None:
        terminal.say("teacher  none")
    else:
        size = f"{human_count(teacher['parameters'])} parameters, " if teacher["parameters"] else ""
        views = f"{teacher['views']} views" if teacher["views"] else "in the loop"
        terminal.say(
            f"teacher  {teacher['name']}: {size}{teacher['embed_dim']}-d, {views}; "
            f"{percent(teacher['val_acc'])} val accuracy by {teacher['class_scores']}"
        )
    terminal.say(
        f"student  {student['arch']} at {_size_of_input(student)}: {_weights(student)} parameters, "
        f"{human_count(student['macs'])} MACs, {human_bytes(student['size_bytes'])}"
    )


def _weights(student: Mapping[str, Any]) -> str:
    """Return the number of weights; of a clip student to the last one, for comparison with others of its kind."""
    count: int = student["parameters"]
    return f"{count:,}" if student["frames"] > 1 else human_count(count)


def _size_of_input(student: Mapping[str, Any]) -> str:
    frames = student["frames"]
    return f"{student['image_size']} px" if frames == 1 else f"{frames} × {student['image_size']} px"


def summarise(run: RunFolder, task: DistillTask, result: FitResult, terminal: Terminal) -> DistillSummary:
    """Record the result, draw it, and show it beside the teacher."""
    facts = run.facts()
    teacher, student = facts["teacher"], facts["student"]
    best = next((row for row in result.rows if row["epoch"] == result.best_epoch), {})
    summary = {
        "best_epoch": result.best_epoch,
        "val_acc": result.best,
        "last_val_acc": result.last,
        "agreement": best.get("agreement"),
        "cosine": best.get("cosine"),
        "seconds": result.seconds,
        "compression": teacher["parameters"] / student["parameters"] if teacher and teacher["parameters"] else None,
    }
    run.update_facts({"summary": summary})
    teacher_acc = teacher["val_acc"] if teacher else None
    if result.rows:
        plot_run(result.rows, run.plots / "training.png", teacher_acc=teacher_acc, title=str(run.path))
    terminal.heading("Summary")
    terminal.say(
        f"student  {percent(result.best)} val accuracy at epoch {result.best_epoch} "
        f"(last epoch {percent(result.last)}), n = {len(task.data.val.samples)}"
    )
    if teacher:
        gap = 100 * (result.best - teacher["val_acc"])
        terminal.say(
            f"teacher  {percent(teacher['val_acc'])}; the student is {gap:+.2f} points from it and agrees with it on "
            f"{percent(summary['agreement'] or 0)} of the {'clips' if task.student.spec.frames > 1 else 'pictures'}"
        )
    if ratio := summary["compression"]:
        compared = f"{ratio:.1f}× fewer than" if ratio >= 1 else f"{1 / ratio:.1f}× as many as"
        terminal.say(f"size     {human_count(student['parameters'])} parameters, {compared} the teacher")
    terminal.say(f"run      {run.path}  ({result.seconds:.0f} s of training)")
    return DistillSummary(result, run.facts())

"""A second phase of training: begin from the student of an earlier run, whose history joins this one's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import UsageError
from edgekit.models.checkpoint import load_student
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student


@dataclass(frozen=True)
class EarlierEpochs:
    """What is known of the run that a phase starts from.

    Attributes:
        facts: for run.json.
        history: epoch rows of all earlier phases up to its best checkpoint, each with its phase number.
        data: what its run.json says of the data it was trained on; empty where that is not known.
    """

    facts: dict[str, Any]
    history: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)

    def judged_on_trained(self, data: Mapping[str, Any]) -> str | None:
        """Return a warning where this phase divides the same pictures otherwise, and judges itself on trained ones.

        Args:
            data: this phase's, for run.json.
        """
        then = self.data
        if not then or then.get("fingerprint") == data["fingerprint"] or then.get("classes") != data["classes"]:
            return None
        if then.get("train", 0) + then.get("val", 0) != data["train"] + data["val"]:
            return None
        return (
            f"{self.facts['run']} was trained on the same number of pictures, divided otherwise: this run's validation "
            f"pictures may have taught it, so that its accuracy says too much. Give the --seed of that run"
        )


@dataclass(frozen=True)
class EarlierPhase(EarlierEpochs):
    """What a new run takes over.

    Attributes:
        student: the best checkpoint of the earlier run.
    """

    student: Student = field(kw_only=True)


def load_phase(run: Path) -> EarlierPhase:
    """Read the run folder, or a checkpoint file without a history, that a new phase starts from.

    Raises:
        LoadError: it holds no student.
    """
    student = load_student(run)
    earlier = earlier_epochs(run)
    return EarlierPhase(earlier.facts, earlier.history, earlier.data, student=student)


def earlier_epochs(run: Path) -> EarlierEpochs:
    """Return what run.json says of the run that a phase starts from, and the epoch rows of all phases up to its best.

    A checkpoint file has no history.
    """
    if not run.is_dir():
        return EarlierEpochs({"run": str(run)}, [])
    folder = RunFolder(run)
    rows = [row for row in folder.read_metrics() if row["kind"] == "epoch"]
    best = max((row["epoch"] for row in rows if row.get("best")), default=0)
    before = folder.read_history()
    number = 1 + max((row["phase"] for row in before), default=0)
    history = [*before, *({**row, "phase": number} for row in rows if row["epoch"] <= best)]
    data = folder.facts().get("data", {}) if folder.facts_path.is_file() else {}
    return EarlierEpochs({"run": str(run), "epoch": best, "phase": number}, history, data)


def take_over(student: Student, earlier: EarlierPhase) -> None:
    """Give `student` the weights of the earlier one.

    Raises:
        UsageError: they are not the same student; every difference is named.
    """
    wanted, given = _plain(student.spec), _plain(earlier.student.spec)
    different = [f"{name} {given[name]}, now {wanted[name]}" for name in wanted if wanted[name] != given[name]]
    pairs = enumerate(zip(earlier.student.spec.classes, student.spec.classes, strict=False))
    other = next((f"class {at} '{then}', now '{now}'" for at, (then, now) in pairs if then != now), None)
    different += [other] if other else []
    if different:
        raise UsageError(
            f"--init-from {earlier.facts['run']} holds another student: {'; '.join(different)}. Give the same "
            f"--student and --image-size, the same classes and a teacher of the same width"
        )
    student.load_state_dict(earlier.student.state_dict())


def _plain(spec: StudentSpec) -> dict[str, object]:
    return {
        "arch": spec.arch,
        "image size": spec.image_size,
        "embedding": spec.embed_dim,
        "pruned layers": len(spec.widths),
        "number of classes": spec.num_classes,
        "normalisation": (spec.preprocess.mean, spec.preprocess.std),
    }

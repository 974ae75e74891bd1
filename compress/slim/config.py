"""What `edgekit compress` does to a run, and the settings of the training that recovers from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from edgekit.compress.distill.config import DistillConfig
from edgekit.compress.recipe import FitConfig, Recipe, validate
from edgekit.compress.slim.simulate import PUT_IN, Precision, Runtime
from edgekit.errors import LoadError, UsageError, did_you_mean
from edgekit.shards import is_shards

Guide = Literal["self", "teacher", "both"]
"""Who teaches: the float student that the run had, the run's own teacher and labels, or both."""

_PATHS = ("data", "output", "student_weights", "init_from", "teacher_embeddings", "teacher_cache")


@dataclass(frozen=True)
class QatConfig:
    """Quantization-aware distillation.

    Attributes:
        runtime: whose int8 file is simulated. LiteRT's holds all that ONNX Runtime's does in 8 bits, and more, but what
            weights learn to make up for one set of roundings is noise to the other.
        precision: of that file, as `edgekit export` names it, but that Core ML's w8a8 is "int8" here. In a "mixed" one
            what costs most accuracy stays float.
        calibration_images: training pictures that set the ranges, chosen as `edgekit export` chooses them.
        learn_ranges: train the ranges with the weights; else they stay as calibration sets them.
    """

    runtime: Runtime = "tflite"
    precision: Precision = "int8"
    calibration_images: int = 256
    learn_ranges: bool = True

    def check(self) -> None:
        """Refuse a runtime or a precision that there is not.

        Raises:
            UsageError: naming what is allowed.
        """
        if self.runtime not in PUT_IN:
            raise UsageError(f"--runtime '{self.runtime}' is not known; {did_you_mean(self.runtime, PUT_IN)}")
        if self.precision not in get_args(Precision):
            known = did_you_mean(self.precision, get_args(Precision))
            raise UsageError(f"--precision '{self.precision}' cannot be trained for; {known}")
        if self.precision == "mixed" and self.runtime == "onnx":
            raise UsageError("--precision mixed is trained for with --runtime tflite or coreml, not onnx; leave it out")


@dataclass(frozen=True)
class CompressConfig:
    """What to compress, and how to recover.

    Attributes:
        run: the run folder of a finished distillation.
        output: the new run folder.
        training: the settings of the run, with what this one trains with in their place.
        guide: who teaches.
        qat: for quantization-aware distillation, else None.
        prune: share of the prunable channels to take away, in (0, 1), else None.
    """

    run: Path
    output: Path
    training: DistillConfig
    guide: Guide = "self"
    qat: QatConfig | None = None
    prune: float | None = None

    def check(self) -> None:
        """Refuse what cannot work, before any work is done.

        Raises:
            UsageError: nothing or two things to do, or a value out of range.
        """
        refuse_tasks(self.qat, self.prune)
        if self.qat is not None:
            self.qat.check()
        if self.training.frames > 1:
            raise UsageError(f"{self.run} is a student of clips; `edgekit compress` is for students of pictures")

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved settings, for config.yaml: a distillation's, and under "compress" what was done."""
        qat = None if self.qat is None else dataclasses.asdict(self.qat)
        done = {"run": str(self.run), "guide": self.guide, "qat": qat, "prune": self.prune}
        return {**self.training.to_dict(), "compress": done}


def refuse_tasks(qat: QatConfig | None, prune: float | None) -> None:
    """Refuse nothing to do, two things, or a share that is none.

    Raises:
        UsageError: saying what to give.
    """
    if (qat is None) == (prune is None):
        raise UsageError(
            "say what to do: --qat trains for 8 bits, --prune SHARE takes channels away; one at a time. To do both, "
            "prune first and give the result to --qat"
        )
    if prune is not None and not 0 < prune < 1:
        raise UsageError(f"--prune is {prune:g}; it is the share to take away, more than 0 and less than 1")


def guide_named(name: str) -> Guide:
    """Return who teaches, by name.

    Raises:
        UsageError: the name is not known.
    """
    known: Mapping[str, Guide] = {guide: guide for guide in get_args(Guide)}
    if name not in known:
        raise UsageError(f"--guide '{name}' is not known; {did_you_mean(name, known)}")
    return known[name]


def recovery(run: Path, given: Mapping[str, Any], *, qat: bool) -> FitConfig:
    """Return how a run's student is trained to recover: gently, for a few epochs.

    Args:
        run: the run folder.
        given: fields of `FitConfig` that were asked for.
        qat: for quantization-aware training: AdamW at a small rate, as Muon's steps have one size however small the
            gradient, and no decay, which would move every range; else the run's own optimizer at a quarter of its rate.

    Raises:
        UsageError: `run` is no run folder of `edgekit distill`, or a field is out of range.
        LoadError: its settings cannot be read.
    """
    own = read_settings(run).recipe.fit
    common = {
        "batch_size": own.batch_size,
        "seed": own.seed,
        "channels_last": own.channels_last,
        "clip_norm": 1.0,
        "schedule": {"name": "cosine", "warmup_fraction": 0.05, "min_factor": 0.01},
    }
    if qat:
        ways = {"epochs": 2, "lr": 3e-5, "optimizer": "adamw", "weight_decay": 0.0}
    else:
        kept = ("optimizer", "momentum", "nesterov", "weight_decay", "betas", "decay_matrices_only", "ema_decay")
        ways = {"epochs": 5, "lr": own.lr / 4, **{name: getattr(own, name) for name in kept}}
    return validate(FitConfig, {**common, **ways, **given}, "edgekit compress")


def training_of(run: Path, data: Path | None, output: Path, fit: FitConfig, guide: Guide) -> DistillConfig:
    """Return the settings that a run was distilled with, with another output and way of training.

    Args:
        run: the run folder.
        data: where the pictures are now; None takes the run's own place.
        output: the new run folder.
        fit: how to train.
        guide: who teaches; the run's teacher is left out where nobody asks it.

    Raises:
        UsageError: the run does not say what it was trained on, or that is not there any more.
        LoadError: its settings cannot be read.
    """
    distilled = read_settings(run)
    source = data if data is not None else distilled.data
    if not is_shards(source) and not source.exists():
        raise UsageError(f"the data that {run} was trained on is not at {source.absolute()}; pass --data DIR")
    # the pictures that the run was judged on stay apart, whatever --seed the recovery has
    place: dict[str, Any] = {"data": source, "output": output, "split_seed": distilled.own_split_seed}
    recipe = distilled.recipe.model_copy(update={"fit": fit, "grow_from": 1.0, "freeze": 0, "dropout": 0.0})
    if guide == "self":
        alone = recipe.model_copy(update={"gamma": 1.0}).without_teacher()  # one weight must be left
        nobody: dict[str, Any] = {"teachers": (), "teacher_weights": (), "teacher_embeddings": None}
        return replace(distilled, **place, recipe=alone, teacher_cache=None, **nobody)
    beside = distilled.teacher_cache or distilled.output.parent / "teacher-store"
    asked = beside if distilled.teachers or distilled.teacher_cache else None
    return replace(distilled, **place, recipe=recipe, teacher_cache=asked)


def read_settings(run: Path) -> DistillConfig:
    """Read the config.yaml of a distillation.

    Raises:
        UsageError: `run` is no run folder of `edgekit distill`.
        LoadError: its settings cannot be read.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UsageError(
            f"{run} does not say what it was trained on: give the run folder of an `edgekit distill` "
            f"(with config.yaml), not a checkpoint"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise LoadError(f"{path} cannot be read: {' '.join(str(e).split())}") from e
    if not isinstance(values, dict) or not {"data", "output", "student", "recipe"} <= values.keys():
        raise UsageError(f"{run} is not the run of a distillation: {path.name} names no data, student and recipe")
    known = {field.name for field in dataclasses.fields(DistillConfig)}
    given = {name: _typed(name, value) for name, value in values.items() if name in known and name != "recipe"}
    return DistillConfig(recipe=validate(Recipe, values["recipe"], str(path)), **given)


def _typed(name: str, value: Any) -> Any:
    if name in _PATHS and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value

"""Read the `config.json` of another trainer, whose keys are PyTorch's own names: T_0, eta_min, initial_lr, …

Every key is accounted for: it becomes an option of `train image`, it changes nothing here, or it is named as unread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError, did_you_mean, first_line

# option of `train image` -> the names that other trainers have for it
_NAMES: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "arch", "architecture", "model_name", "backbone"),
    "image_size": ("image_size", "img_size", "input_size", "crop_size"),
    "epochs": ("epochs", "num_epochs", "n_epochs", "max_epochs", "total_epochs"),
    "batch_size": ("batch_size", "train_batch_size"),
    "lr": ("initial_lr", "lr", "learning_rate", "base_lr"),
    "optimizer": ("optimizer", "optim"),
    "momentum": ("momentum",),
    "nesterov": ("nesterov",),
    "weight_decay": ("weight_decay", "wd"),
    "schedule": ("scheduler", "lr_scheduler", "schedule"),
    "t_0": ("T_0", "t0"),
    "t_mult": ("T_mult",),
    "min_lr": ("eta_min", "min_lr"),
    "warmup_epochs": ("warmup_epochs",),
    "patience": ("patience", "early_stopping_patience"),
    "label_smoothing": ("label_smoothing", "smoothing"),
    "mixup": ("mixup", "mixup_alpha"),
    "clip_norm": ("clip_norm", "grad_clip", "max_grad_norm"),
    "seed": ("seed", "random_seed"),
}
_OPTION_OF = {name.lower(): option for option, names in _NAMES.items() for name in names}
_SCHEDULES: Mapping[str, str] = {
    "cosineannealingwarmrestarts": "cosine-restarts",
    "cosineannealinglr": "cosine",
    "cosine": "cosine",
    "onecyclelr": "one-cycle",
    "steplr": "step",
    "reducelronplateau": "plateau",
    "constantlr": "constant",
    "linearlr": "linear",
}
# where things lie, how they are read and shown: nothing that decides the weights
# fmt: off
_NO_EFFECT = frozenset({
    "num_workers", "workers", "pin_memory", "prefetch_factor", "persistent_workers", "print_freq", "log_interval",
    "log_dir", "save_dir", "output_dir", "checkpoint_dir", "data_dir", "data_path", "data_root", "train_dir", "val_dir",
    "num_classes", "device", "t_max", "verbose", "name", "experiment", "project",
})
# fmt: on


@dataclass(frozen=True)
class OriginConfig:
    """What another trainer's settings mean here.

    Attributes:
        options: of `train image`, by parameter name.
        without_effect: keys that decide nothing here.
        unread: keys that nobody here knows.
    """

    options: dict[str, Any] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Return what the user must know, a line each."""
        notes = []
        if self.unread:
            notes.append(f"not read, edgekit does not know: {', '.join(self.unread)}")
        if self.without_effect:
            notes.append(f"without effect here: {', '.join(self.without_effect)}")
        return notes


def read_origin_config(path: Path) -> OriginConfig:
    """Read a config.json; one level of groups ("scheduler": {"T_0": 30}) is opened.

    Raises:
        UsageError: it cannot be read, a key is a near miss of a known one, two keys contradict each other, or an
            optimizer or schedule is not known.
    """
    options: dict[str, Any] = {}
    given_by: dict[str, str] = {}
    without_effect: list[str] = []
    unread: list[str] = []
    for key, value in _pairs(path):
        option = _OPTION_OF.get(key.lower())
        if option is None:
            (without_effect if key.lower() in _NO_EFFECT else unread).append(key)
            continue
        if isinstance(value, Mapping | list):
            raise UsageError(f"--config {path}: '{key}' is {value!r:.60}; expected one value")
        value = _named(path, key, option, value)
        if options.get(option, value) != value:
            raise UsageError(
                f"--config {path}: '{given_by[option]}' is {options[option]} and '{key}' is {value}; keep one of them"
            )
        options[option], given_by[option] = value, key
    _refuse_near_misses(path, unread)
    if "t_0" in options:
        options.setdefault("schedule", "cosine-restarts")
    if "schedule" in options:
        options.setdefault("warmup_epochs", 0.0)  # theirs has only the warm-up that it names
    return OriginConfig(options, tuple(without_effect), tuple(unread))


def _pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every key and value; of a group its own, and its name or type under the group's name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as e:
        raise UsageError(f"--config {path} cannot be read: {first_line(e)}") from e
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} holds no settings; expected a mapping of names to values")
    for key, value in content.items():
        if not isinstance(value, dict):
            yield key, value
            continue
        for inner, inner_value in value.items():
            yield (key if inner.lower() in ("name", "type", "class") else inner), inner_value


def _named(path: Path, key: str, option: str, value: Any) -> Any:
    """Return the value as the option spells it."""
    if option == "schedule":
        plain = str(value).rpartition(".")[2].replace("_", "").replace("-", "").lower()
        if plain not in _SCHEDULES:
            raise UsageError(f"--config {path}: '{key}' {value!r} is not known; {did_you_mean(plain, _SCHEDULES)}")
        return _SCHEDULES[plain]
    if option == "optimizer":
        plain = str(value).rpartition(".")[2].lower()
        if plain not in ("sgd", "adamw"):
            raise UsageError(f"--config {path}: '{key}' {value!r} is not there; take SGD or AdamW")
        return plain
    return value


def _refuse_near_misses(path: Path, unread: list[str]) -> None:
    """Raise if an unknown key looks like a misspelt one: what it was to set would silently keep its default."""
    for key in unread:
        hint = did_you_mean(key, [name for names in _NAMES.values() for name in names])
        if hint.startswith("did you mean"):
            raise UsageError(f"--config {path}: '{key}' is not a setting; {hint}")

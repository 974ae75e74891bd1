"""Learning-rate schedules: pure functions from a fraction of an epoch to a factor on the base rate. Knows no torch.

`epoch` counts finished epochs as a float: 0.0 before the first step, 2.5 halfway through the third epoch. Being pure,
a schedule can be drawn, resumed, and played ahead before the first step (`planned_jumps`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgekit.errors import UsageError

ScheduleName = Literal["constant", "cosine", "linear", "step", "plateau", "one-cycle", "wsd", "cosine-restarts"]


class ScheduleConfig(BaseModel):
    """A schedule's name and parameters; each parameter says which schedules read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ScheduleName = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0, description="linear rise from start_factor, before any schedule")
    warmup_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="the same as a share of the run; adds to warmup_epochs"
    )
    start_factor: float = Field(default=0.04, ge=0, le=1, description="factor at step 0 of a warm-up and of one-cycle")
    min_factor: float = Field(default=0.0, ge=0, le=1, description="all but constant: the lowest factor")
    step_epochs: float = Field(default=30.0, gt=0, description="step: epochs between two decays")
    gamma: float = Field(default=0.1, gt=0, lt=1, description="step, plateau: factor of each decay")
    patience: int = Field(default=5, ge=0, description="plateau: epochs without a better value before a decay")
    min_delta: float = Field(default=0.0, ge=0, description="plateau: what counts as better, in the metric's unit")
    peak_fraction: float = Field(default=0.3, gt=0, lt=1, description="one-cycle: where in the run the peak is")
    decay_fraction: float = Field(
        default=0.1, gt=0, le=1, description="wsd: the last part of the run, in which it decays"
    )
    decay_shape: Literal["linear", "sqrt"] = Field(default="linear", description="wsd: shape of the decay")
    t_0: float = Field(default=10.0, gt=0, description="cosine-restarts: epochs of the first cycle")
    t_mult: float = Field(
        default=1.0, ge=1, description="cosine-restarts: each cycle is this much longer than the one before"
    )

    @model_validator(mode="after")
    def _one_warm_up_only(self) -> ScheduleConfig:
        if self.name == "one-cycle" and self.warmup(1.0) > 0:
            raise ValueError("one-cycle has its own warm-up (peak_fraction): set warmup_epochs to 0")
        return self

    def warmup(self, total_epochs: float) -> float:
        """Return the epochs of warm-up in a run of `total_epochs`."""
        return self.warmup_epochs + self.warmup_fraction * total_epochs


def _progress(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Return the part in [0, 1] of the run after warm-up that is done."""
    return min(1.0, max(0.0, (epoch - config.warmup(total_epochs)) / (total_epochs - config.warmup(total_epochs))))


def _half_cosine(progress: float, low: float) -> float:
    """Return the half cosine that falls from 1 at progress 0 to `low` at progress 1."""
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Return 1, the base rate throughout."""
    return 1.0


def cosine(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Return m + (1 − m)·(1 + cos πp) / 2 with p the progress and m `min_factor` (SGDR, arXiv 1608.03983 eq. 5)."""
    return _half_cosine(_progress(epoch, total_epochs, config), config.min_factor)


def linear(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Return 1 − (1 − m)·p: a straight line from 1 to `min_factor`."""
    return 1.0 - (1.0 - config.min_factor) * _progress(epoch, total_epochs, config)


def step(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Return γ^⌊epoch / step_epochs⌋, not under `min_factor`; counted from the start, warm-up included."""
    return max(config.min_factor, config.gamma ** _whole(epoch / config.step_epochs))


def plateau(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Return 1: what is planned before anything is measured. `plateau_factor` follows the measured values."""
    return 1.0


def one_cycle(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Rise from `start_factor` to 1 at `peak_fraction` of the run, then fall to `min_factor`, both as half cosines.

    Super-convergence (arXiv 1708.07120 §3), in the two-phase cosine form that PyTorch's OneCycleLR uses by default.
    """
    progress = _progress(epoch, total_epochs, config)
    if progress < config.peak_fraction:
        return _half_cosine(1.0 - progress / config.peak_fraction, config.start_factor)
    return _half_cosine((progress - config.peak_fraction) / (1.0 - config.peak_fraction), config.min_factor)


def wsd(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Stay at 1, then decay over the last `decay_fraction` of the run: warmup-stable-decay.

    MiniCPM (arXiv 2404.06395 §4). The decay is linear or 1 − √p, the best of arXiv 2405.18392 §3.
    """
    decayed = max(0.0, _progress(epoch, total_epochs, config) - (1.0 - config.decay_fraction)) / config.decay_fraction
    shape = math.sqrt(decayed) if config.decay_shape == "sqrt" else decayed
    return 1.0 - (1.0 - config.min_factor) * min(1.0, shape)


def cosine_restarts(epoch: float, total_epochs: float, config: ScheduleConfig) -> float:
    """Return a half cosine over cycles of t_0, t_0·t_mult, t_0·t_mult² … epochs (SGDR, arXiv 1608.03983 §3).

    Each cycle begins again at 1: a jump of the rate that costs accuracy for many epochs.
    """
    into = max(0.0, epoch - config.warmup(total_epochs))
    length = config.t_0
    if config.t_mult == 1.0:
        into -= length * _whole(into / length)
    else:
        # The cycles before number n last t_0·(t_mult^n − 1) / (t_mult − 1) epochs; solve for n.
        cycle = _whole(math.log(1.0 + into * (config.t_mult - 1.0) / length, config.t_mult))
        into -= length * (config.t_mult**cycle - 1.0) / (config.t_mult - 1.0)
        length *= config.t_mult**cycle
    return _half_cosine(min(1.0, max(0.0, into / length)), config.min_factor)


def _whole(ratio: float) -> int:
    """Return ⌊ratio⌋, taking 2.9999999999 for 3: epochs are sums of step fractions, no restart a step late."""
    return math.floor(ratio + 1e-9)


SCHEDULES: Mapping[ScheduleName, Callable[[float, float, ScheduleConfig], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "step": step,
    "plateau": plateau,
    "one-cycle": one_cycle,
    "wsd": wsd,
    "cosine-restarts": cosine_restarts,
}


PARAMETERS: Mapping[ScheduleName, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("min_factor",),
    "linear": ("min_factor",),
    "step": ("step_epochs", "gamma", "min_factor"),
    "plateau": ("gamma", "patience", "min_delta", "min_factor"),
    "one-cycle": ("start_factor", "peak_fraction", "min_factor"),
    "wsd": ("decay_fraction", "decay_shape", "min_factor"),
    "cosine-restarts": ("t_0", "t_mult", "min_factor"),
}
"""What each schedule reads; all but one-cycle read the warm-up's parameters too."""


def reads(name: ScheduleName) -> tuple[str, ...]:
    """Return every parameter that the schedule reads."""
    return (
        PARAMETERS[name]
        if name == "one-cycle"
        else ("warmup_epochs", "warmup_fraction", "start_factor", *PARAMETERS[name])
    )


def factor(config: ScheduleConfig, epoch: float, total_epochs: float, history: Sequence[float] = ()) -> float:
    """Return the factor on the base rate at `epoch`, warm-up included.

    Args:
        config: the schedule.
        epoch: epochs finished, >= 0, fractions allowed.
        total_epochs: length of the run in epochs.
        history: plateau only: the validation values of the finished epochs, higher is better.

    Raises:
        UsageError: the run is empty, not longer than its warm-up, or `epoch` is negative.
    """
    warmup = config.warmup(total_epochs)
    if not total_epochs > warmup:
        raise UsageError(
            f"a run of {total_epochs:g} epochs is not longer than its warm-up of {warmup:g}. "
            "Give more epochs or a lower warmup_epochs."
        )
    if not epoch >= 0:
        raise UsageError(f"epoch {epoch:g} is not a place in a run: give 0 or more.")
    shape = SCHEDULES[config.name]
    if epoch < warmup:
        risen = config.start_factor + (1.0 - config.start_factor) * epoch / warmup
        return risen * shape(warmup, total_epochs, config)
    planned = shape(epoch, total_epochs, config)
    return planned * plateau_factor(history, config) if config.name == "plateau" else planned


def plateau_factor(history: Sequence[float], config: ScheduleConfig) -> float:
    """Return γ^k after the k plateaus in `history`, not under `min_factor`.

    A plateau is more than `patience` epochs without a value above the best by `min_delta`; the count starts anew
    after each decay (PyTorch's ReduceLROnPlateau). Values are higher-is-better; NaN counts as no better.
    """
    best, waited, decays = -math.inf, 0, 0
    for value in history:
        if value > best + config.min_delta or (best == -math.inf and value > best):
            best, waited = value, 0
        else:
            waited += 1
        if waited > config.patience:
            decays, waited = decays + 1, 0
    return max(config.min_factor, config.gamma**decays)


@dataclass(frozen=True)
class Jump:
    """A planned rise of the rate from one step to the next.

    Attributes:
        step: optimizer steps finished when it happens.
        epoch: epochs finished when it happens; a restart after 30 epochs is at 30.0, in epoch number 31.
        before: factor of the step before.
        after: factor of the step that jumps.
    """

    step: int
    epoch: float
    before: float
    after: float

    @property
    def epoch_number(self) -> int:
        """The epoch in which it happens, counted from 1 as logs do."""
        return math.floor(self.epoch) + 1

    @property
    def ratio(self) -> float:
        """How many times higher the rate is; infinite from a rate of 0."""
        return self.after / self.before if self.before > 0 else math.inf

    def __str__(self) -> str:
        times = "from zero" if math.isinf(self.ratio) else f"{self.ratio:.0f}x"
        rise = f"from {self.before:.2g} to {self.after:.2g} of its base ({times})"
        return f"epoch {self.epoch_number}: the rate jumps {rise}"


def planned_jumps(
    config: ScheduleConfig, total_epochs: float, *, steps_per_epoch: int, ratio: float = 3.0
) -> tuple[Jump, ...]:
    """Play the whole planned schedule ahead and name every step that lifts the rate more than `ratio` times.

    The rise of a warm-up, or of one-cycle to its peak, is no jump.

    Raises:
        UsageError: `steps_per_epoch` < 1, or the run is not longer than its warm-up.
    """
    if steps_per_epoch < 1:
        raise UsageError(f"{steps_per_epoch} steps per epoch: give 1 or more.")
    rises_until = config.peak_fraction * total_epochs if config.name == "one-cycle" else config.warmup(total_epochs)
    jumps = []
    before = math.inf
    for at in range(math.ceil(rises_until * steps_per_epoch), math.ceil(total_epochs * steps_per_epoch)):
        now = factor(config, at / steps_per_epoch, total_epochs)
        if now > ratio * before:
            jumps.append(Jump(at, at / steps_per_epoch, before, now))
        before = now
    return tuple(jumps)

"""Backtest the learning-curve models on the log itself, mix them by how well they did, and draw futures.

Knows no torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.forecast.models import MODELS, Curves, ModelName, Timeline, fit

FloatArray = NDArray[np.float64]

FEWEST_EPOCHS = 4
"""The shortest log, and the shortest piece of a log, that a curve is fitted to."""
MOST_ORIGINS = 10

# The constants below were chosen on 17 logs of small trainings and checked on 14 others, which are kept with the tests
# (LOG.md).
# None is critical: halving or doubling one moves the mean error by less than a fifth.
SHARPNESS = 0.25
"""How strongly the backtest decides: a model weighs (mean squared backtest error)^(−SHARPNESS · number of origins)."""
BREAK_DISCOUNT = 6.0
"""Log-weight that a model without the rate loses when the plan breaks with the rate's course by its whole height."""
ANCHOR = 0.5
"""Part of a curve's miss over the last epochs that is taken to stay."""
DRIFT_FLOOR = 0.04
"""Least drift, as a part of today's deficit, of a very long log; a log of SHORT_LOG epochs has twice that."""
SHORT_LOG = 6.0
SPREAD = 0.65
"""Scale on the width of the futures that makes the 80 % intervals hold about 80 % of the time."""
HEAT_SPREAD = 0.5
"""Spread (of the logarithm) of what a restart costs around what the models say: the cost was 0.6 to 3 times that."""


@dataclass(frozen=True)
class Mixture:
    """Fitted models and how much each is believed.

    Attributes:
        curves: the fit of each model to all seen epochs.
        weight: model -> weight, sums to 1.
        backtest_mae: model -> mean absolute error of its forecasts from within the log, in the deficit's unit.
        noise: standard deviation of one measurement around its curve.
        drift: how far the mixture's backtests drifted off, per unit of log(1 + horizon / seen epochs).
    """

    curves: Mapping[ModelName, Curves]
    weight: Mapping[ModelName, float]
    backtest_mae: Mapping[ModelName, float]
    noise: float
    drift: float


def rate_break(timeline: Timeline) -> float:
    """Return how far the rate ahead leaves the straight line of its recent course, as a part of the highest rate."""
    if timeline.rate is None or timeline.seen == len(timeline.epochs):
        return 0.0
    recent = slice(min(timeline.seen - 2, timeline.seen * 2 // 3), timeline.seen)
    slope = float(np.polyfit(timeline.epochs[recent], timeline.rate[recent], 1)[0])
    ahead = timeline.epochs[timeline.seen :] - timeline.epochs[timeline.seen - 1]
    straight = np.maximum(timeline.rate[timeline.seen - 1] + slope * ahead, 0.0)
    return float(np.abs(timeline.rate[timeline.seen :] - straight).max())


def measurement_noise(deficit: FloatArray) -> float:
    """Return the standard deviation of single measurements, from the median second difference of the later part."""
    bends = np.diff(deficit[len(deficit) // 3 :] if len(deficit) > 6 else deficit, 2)
    spread = 1.4826 * float(np.median(np.abs(bends))) / math.sqrt(6.0) if len(bends) else 0.0
    return max(spread, 1e-3 * float(np.median(deficit)), 1e-9)


def mix(timeline: Timeline, deficit: FloatArray) -> Mixture:
    """Fit every model that the timeline allows, and weight it by its backtests on the seen part.

    Args:
        timeline: N epochs of which `seen` are measured; without a rate the scheduled models stay out.
        deficit: (seen,) measured deficits, >= 0.
    """
    names = [name for name, model in MODELS.items() if timeline.rate is not None or not model.scheduled]
    noise = measurement_noise(deficit)
    curves = {name: fit(MODELS[name], timeline, deficit, noise) for name in names}
    trials = _backtest(timeline, deficit, names)
    weight = _weights(trials, noise, rate_break(timeline))
    mae = {
        name: float(np.mean([float(np.abs(trial.error).mean()) for trial in trials[name]] or [0.0])) for name in names
    }
    floor = DRIFT_FLOOR * float(deficit[-1]) * (1.0 + SHORT_LOG / timeline.seen)
    return Mixture(curves, weight, mae, noise, _drift(trials, weight, noise, floor))


def _weights(trials: Trials, noise: float, broken: float) -> dict[ModelName, float]:
    """Weight each model by its mean squared backtest error; equal weights where the log is too short for a backtest.

    A backtest cannot show what a model without the rate will miss at a break that lies ahead: that is discounted here.
    """
    score = {}
    for name, tried in trials.items():
        squared = float(np.mean([float(np.mean(trial.error**2)) for trial in tried] or [0.0]))
        score[name] = -SHARPNESS * len(tried) * math.log(squared + noise**2)
        score[name] -= 0.0 if MODELS[name].scheduled else BREAK_DISCOUNT * broken
    best = max(score.values())
    weight = {name: math.exp(value - best) for name, value in score.items()}
    total = sum(weight.values())
    return {name: value / total for name, value in weight.items()}


@dataclass(frozen=True)
class Trial:
    """One forecast from within the log.

    Attributes:
        error: (ahead,) predicted minus measured deficit.
        variance: (ahead,) variance over the model's curves.
        reach: (ahead,) log(1 + horizon / seen).
    """

    error: FloatArray
    variance: FloatArray
    reach: FloatArray


Trials = dict[ModelName, list[Trial]]


def _backtest(timeline: Timeline, deficit: FloatArray, names: Sequence[ModelName]) -> Trials:
    """Forecast the log from epochs within it, with every model from every origin.

    From each origin it looks as far ahead, in proportion, as the forecast itself does.
    """
    seen, ahead = timeline.seen, len(timeline.epochs) - timeline.seen
    first = max(FEWEST_EPOCHS, math.ceil(0.3 * seen))
    origins = np.unique(np.linspace(first, seen - 1, min(MOST_ORIGINS, max(0, seen - first))).round().astype(int))
    trials: Trials = {name: [] for name in names}
    for origin in origins:
        end = min(seen, origin + max(1, round(origin * ahead / seen)))
        rate = None if timeline.rate is None else timeline.rate[:end] / max(timeline.rate[:origin].max(), 1e-12)
        part = Timeline(timeline.epochs[:end], rate, int(origin))
        noise = measurement_noise(deficit[:origin])
        reach = np.log(part.epochs[origin:] / part.epochs[origin - 1])
        for name in names:
            curves = fit(MODELS[name], part, deficit[:origin], noise)
            predicted = anchored(curves, deficit[:origin])
            mean = curves.weight @ predicted
            variance = curves.weight @ (predicted - mean) ** 2
            trials[name].append(Trial(mean - deficit[origin:end], variance, reach))
    return trials


def anchored(curves: Curves, deficit: FloatArray) -> FloatArray:
    """Return the curves ahead (G, ahead), moved by part of their mean miss over the last three seen epochs."""
    seen = len(deficit)
    recent = slice(max(0, seen - 3), seen)
    miss = (deficit[recent] - curves.deficit[:, recent]).mean(axis=1, keepdims=True)
    ahead: FloatArray = np.maximum(curves.deficit[:, seen:] + ANCHOR * miss, 0.0)
    return ahead


def _drift(trials: Trials, weight: Mapping[ModelName, float], noise: float, floor: float) -> float:
    """Return the drift per unit of log(1 + horizon / seen) that the backtests show beyond noise and the curves' spread.

    Late origins know nearly as much as the forecast and count more. A floor stands for what a short or lucky log
    cannot show.
    """
    squares, reaches = 0.0, 0.0
    for at, first in enumerate(next(iter(trials.values()))):
        error = np.sum([weight[name] * trials[name][at].error for name in weight], axis=0)
        second = np.sum([weight[n] * (trials[n][at].variance + trials[n][at].error ** 2) for n in weight], axis=0)
        lateness = (at + 1.0) ** 2
        squares += lateness * float(np.sum(2.0 * error**2 - second - noise**2))  # error² − (second − error²) − noise²
        reaches += lateness * float(np.sum(first.reach**2))
    measured = max(0.0, squares / reaches) if reaches else 0.0
    return math.sqrt(measured + floor**2)


def draw_futures(
    mixture: Mixture, timeline: Timeline, deficit: FloatArray, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Draw deficits of the epochs ahead (draws, ahead): a model, a curve of it, a drift that stays, and noise."""
    every = np.concatenate([anchored(mixture.curves[name], deficit) for name in mixture.weight])
    weight = np.concatenate([mixture.weight[name] * mixture.curves[name].weight for name in mixture.weight])
    # Systematic sampling: every curve comes as often as it weighs, and the drifts are normal scores. Only how they
    # meet, and the noise, is left to chance: answers hardly change with the seed.
    share = (np.arange(draws) + 0.5) / draws * weight.sum()
    futures = every[np.minimum(np.searchsorted(np.cumsum(weight), share), len(weight) - 1)]
    rng.shuffle(futures)
    reach = np.log(timeline.epochs[timeline.seen :] / timeline.epochs[timeline.seen - 1])
    futures += mixture.drift * rng.permutation(_normal_scores(draws))[:, None] * reach
    futures += mixture.noise * rng.standard_normal(futures.shape)
    middle = np.median(futures, axis=0)
    drawn: FloatArray = np.maximum(middle + SPREAD * (futures - middle), 0.0)
    return drawn


@functools.lru_cache(maxsize=4)
def _normal_scores(count: int) -> FloatArray:
    """Return the normal quantiles at (i + ½) / count."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((at + 0.5) / count) for at in range(count)])


def heat_restarts(futures: FloatArray, last: float, restarts: Sequence[int], rng: np.random.Generator) -> FloatArray:
    """Return the futures (draws, ahead) with what each restart costs made as uncertain as it is.

    Args:
        futures: drawn deficits of the epochs ahead.
        last: the last measured deficit.
        restarts: indices of the first epochs ahead that suffer a restart.
        rng: source of the draws.
    """
    heated = futures.copy()
    factor = np.exp(HEAT_SPREAD * rng.standard_normal((len(futures), 1)))
    for at, start in enumerate(restarts):
        end = restarts[at + 1] if at + 1 < len(restarts) else futures.shape[1]
        before = futures[:, [start - 1]] if start > 0 else np.full((len(futures), 1), last)
        above = np.maximum(futures[:, start:end] - before, 0.0)
        heated[:, start:end] += (factor - 1.0) * above
    return heated

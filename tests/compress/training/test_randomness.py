"""Random numbers by (seed, stream, step, sample): independent of order and of each other, and uniform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgekit.compress.training.randomness import _splitmix, permutation, sample_ids, uniforms

KEYS = [f"train/cat/{number}.jpg" for number in range(4000)]
IDS = sample_ids(KEYS)


def test_numbers_belong_to_the_sample_whatever_its_company() -> None:
    everyone = uniforms(7, "view", 3, IDS, 5)
    order = np.random.default_rng(0).permutation(len(IDS))
    assert (uniforms(7, "view", 3, IDS[order], 5) == everyone[order]).all()
    assert (uniforms(7, "view", 3, IDS[17:18], 5) == everyone[17:18]).all()
    assert (uniforms(7, "view", 3, IDS, 2) == everyone[:, :2]).all()  # asking for more numbers changes none


def test_ids_belong_to_the_key_whatever_its_company() -> None:
    assert (sample_ids(KEYS[100:]) == IDS[100:]).all()
    assert len(set(IDS.tolist())) == len(KEYS)


def test_the_mixer_is_splitmix64() -> None:
    """The first three outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) from seed 0."""
    seeds = np.array([0, 0x9E3779B97F4A7C15, 2 * 0x9E3779B97F4A7C15 % 2**64], np.uint64)
    assert _splitmix(seeds).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_same_numbers_on_every_machine() -> None:
    """Pinned: a change of the generator would silently change every recipe's result and every stored view."""
    ids = sample_ids(["train/a.jpg"])
    assert ids.tolist() == [9278148261056009714]
    assert uniforms(0, "view", 1, ids, 2)[0].tolist() == [0.3369375546325837, 0.298882974709601]


@pytest.mark.parametrize("lane", [0, 1, 4])
def test_numbers_are_uniform_over_samples(lane: int) -> None:
    numbers = uniforms(0, "view", 0, IDS, 5)[:, lane]
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 0.001


def test_numbers_are_uniform_over_epochs_and_over_lanes() -> None:
    epochs = np.array([uniforms(0, "augment", epoch, IDS[:1], 1)[0, 0] for epoch in range(1000)])
    assert stats.kstest(epochs, "uniform").pvalue > 0.001
    assert stats.kstest(uniforms(0, "augment", 0, IDS[:1], 4000)[0], "uniform").pvalue > 0.001


def test_streams_seeds_steps_and_lanes_are_uncorrelated() -> None:
    base = uniforms(0, "view", 0, IDS, 2)
    others = [
        base[:, 1],
        uniforms(1, "view", 0, IDS, 1)[:, 0],
        uniforms(0, "augment", 0, IDS, 1)[:, 0],
        uniforms(0, "view", 1, IDS, 1)[:, 0],
        np.roll(base[:, 0], 1),
    ]
    for other in others:
        assert abs(np.corrcoef(base[:, 0], other)[0, 1]) < 4 / np.sqrt(len(IDS))


def test_each_epoch_visits_every_sample_once_in_its_own_order() -> None:
    first, again, second = permutation(0, 1, IDS), permutation(0, 1, IDS), permutation(0, 2, IDS)
    assert (first == again).all()
    assert sorted(first.tolist()) == list(range(len(IDS)))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(first, np.arange(len(IDS)))[0, 1]) < 4 / np.sqrt(len(IDS))

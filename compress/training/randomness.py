"""Random numbers as a pure function of (seed, stream, sample): no generator state, so no order to depend on.

Results are the same whatever the number of workers or processes, and a resumed run draws what the first would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def sample_ids(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Return a stable 64-bit identity (N,) of each sample, from its key alone: further samples change nothing."""
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def uniforms(seed: int, stream: str, step: int, ids: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Return (N, count) uniform numbers in [0, 1), a function of (seed, stream, step, id) alone.

    Args:
        seed: of the run.
        stream: what the numbers are for, so that two purposes never share them.
        step: epoch or view number.
        ids: (N,) sample identities.
        count: numbers per sample.
    """
    head = hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=8).digest()
    start = np.frombuffer(head, dtype="<u8").astype(np.uint64)
    state = _splitmix(ids[:, None] ^ _splitmix(start)[None, :])
    with np.errstate(over="ignore"):
        lanes = state + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)[None, :]
    bits: NDArray[np.uint64] = _splitmix(lanes) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the order (N,) in which `epoch` visits the samples."""
    order: NDArray[np.int64] = np.argsort(uniforms(seed, "order", epoch, ids, 1)[:, 0], kind="stable")
    return order


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of SplitMix64 (Steele et al. 2014, fig. 16): a bijection that mixes all bits."""
    with np.errstate(over="ignore"):
        z = x + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed

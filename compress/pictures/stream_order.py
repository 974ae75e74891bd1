"""The order in which an epoch visits the pictures of tar shards: a pure function of (seed, epoch), block by block.

The shards of an epoch stand in a random order, and their pictures are cut into blocks of a given size; within a block
the order is random, too. That is a shuffle buffer that is emptied before it is filled again, and unlike one that is
refilled picture by picture it is known ahead: a resumed run goes straight to its block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.training.randomness import permutation, sample_ids, uniforms
from edgekit.shards import Shard
from edgekit.tars import TarPicture, list_tar

BUFFER = 8192
"""Pictures that are shuffled together; 300 bytes each of names and places, no pixels."""


@dataclass(frozen=True)
class Place:
    """A picture that should be in a shard.

    Attributes:
        shard: which one.
        number: its place there.
        picture: None where the shard holds fewer than it should.
    """

    shard: Shard
    number: int
    picture: TarPicture | None

    @property
    def key(self) -> str:
        """The picture's name; of a lost one, its place."""
        return self.picture.key if self.picture is not None else f"{self.shard.path.name}:{self.number}"


class StreamOrder:
    """The order of one data set's training pictures.

    Args:
        shards: of the training split.
        seed: of the run.
        buffer: pictures per block.
    """

    def __init__(self, shards: Sequence[Shard], seed: int, buffer: int = BUFFER) -> None:
        self.shards, self.seed, self.buffer = tuple(shards), seed, buffer
        self._ids = sample_ids([shard.path.name for shard in shards])
        self._listed: dict[int, tuple[TarPicture, ...]] = {}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Place]:
        """Yield the pictures of a 1-based epoch from number `start` on; lists a block's tars when it comes to them."""
        shards = np.argsort(uniforms(self.seed, "shards", epoch, self._ids, 1)[:, 0], kind="stable")
        ends = np.cumsum([self.shards[number].pictures for number in shards])
        total = int(ends[-1])
        for first in range(start // self.buffer * self.buffer, total, self.buffer):
            block = self._block(shards, ends, first, min(first + self.buffer, total))
            order = permutation(self.seed, epoch, sample_ids([place.key for place in block]))
            for row in order[max(0, start - first) :]:
                yield block[row]

    def _block(self, shards: NDArray[np.int64], ends: NDArray[np.int64], first: int, last: int) -> list[Place]:
        """Return the pictures number `first` to `last` in the order of the shards."""
        block: list[Place] = []
        from_shard, to_shard = np.searchsorted(ends, [first, last - 1], side="right")
        needed = range(from_shard, to_shard + 1)
        for at in needed:
            shard, begin = self.shards[shards[at]], int(ends[at]) - self.shards[shards[at]].pictures
            pictures = self._list(int(shards[at]))
            numbers = range(max(first - begin, 0), min(last - begin, shard.pictures))
            block += [Place(shard, n, pictures[n] if n < len(pictures) else None) for n in numbers]
        # the shard that a block ends in goes on in the next one
        self._listed = {number: listed for number, listed in self._listed.items() if number == int(shards[needed[-1]])}
        return block

    def _list(self, number: int) -> tuple[TarPicture, ...]:
        if number not in self._listed:
            self._listed[number] = list_tar(self.shards[number].path).pictures
        return self._listed[number]


def step_sizes(total: int, steps: int) -> NDArray[np.int64]:
    """Return how many pictures each step has; they differ by one at most, as `np.array_split` cuts."""
    sizes = np.full(steps, total // steps, np.int64)
    sizes[: total % steps] += 1
    return sizes


def in_steps(places: Iterator[Place], sizes: Sequence[int], by: Callable[[Place], str]) -> Iterator[list[Place]]:
    """Cut a stream into steps, each sorted by name: a batch is a set, and its sums are those of any other source."""
    for size in sizes:
        yield sorted((next(places) for _ in range(size)), key=by)

"""Captions checked against the tokenizer, and their pictures decoded: what training a CLIP reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekit.captions import CaptionedSet, CaptionSplit, load_captions, split_captions
from edgekit.compress.clip.batches import StreamedPairs, captioned_only, without_caption
from edgekit.compress.clip.recipe import ClipRecipe
from edgekit.compress.clip.task import ClipData
from edgekit.compress.pictures.decoding import decode_both
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.compress.pictures.stream_val import decode_val, listed
from edgekit.data import check_broken
from edgekit.errors import DataError, UsageError
from edgekit.listing import name_some
from edgekit.models.tokenizer import Tokenizer
from edgekit.preprocess import Preprocess
from edgekit.shards import ShardDataset, is_shards, load_shards
from edgekit.terminal import Terminal

_REPLACED = "\N{REPLACEMENT CHARACTER}"


class Captioned(Protocol):
    """Captioned pictures in two splits, unread so far.

    Attributes:
        train_count: training pictures.
        notes: what the user should know of the source, a line each.
    """

    @property
    def train_count(self) -> int: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def train_texts(self) -> Iterator[str]:
        """Yield the training captions."""
        ...

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (picture, caption) of both splits."""
        ...

    def decode(self, how: Decoding) -> DecodedCaptions:
        """Return what the task reads.

        Raises:
            DataError: more than the share `how.max_broken` of the pictures cannot be used.
        """
        ...


@dataclass(frozen=True)
class Decoding:
    """How pictures and captions are read.

    Attributes:
        recipe: decides the batches.
        contract: the image tower's preprocessing.
        tokenizer: makes the ids of streamed captions.
        scratch: folder for memory maps, where they are needed.
        terminal: shows progress, and a warning of each picture that is left out.
        max_broken: share of unreadable pictures that is tolerated.
    """

    recipe: ClipRecipe
    contract: Preprocess
    tokenizer: Tokenizer
    scratch: Path
    terminal: Terminal
    max_broken: float


def load_captioned(source: Path, pictures: Path | None, val_fraction: float | None, seed: int) -> Captioned:
    """Find the captioned pictures of a CSV, a folder or tar shards.

    Raises:
        DataError: no such data, or no way to split them.
        UsageError: shards are to be split, or given a folder of pictures.
    """
    if not is_shards(source):
        captioned = load_captions(source, pictures)
        return FileCaptions(captioned, split_captions(captioned, val_fraction, seed))
    if val_fraction is not None:
        raise UsageError(f"--val-fraction {val_fraction}: shards are split already; leave it out")
    if pictures is not None:
        raise UsageError(f"--pictures {pictures}: shards hold their pictures; leave it out")
    return ShardCaptions(load_shards(source, labels=False))


def check_captions(pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> list[str]:
    """Return what the user should know of captions that the tokenizer does not take whole, a line each.

    Args:
        pairs: (picture, caption).
        tokenizer: of the text tower.

    Raises:
        DataError: nothing is left of a caption: the tokenizer knows none of its characters.
    """
    room = tokenizer.context_length - 2  # start and end mark
    count, long, longest = 0, 0, (0, "")
    silent, broken = [], set()
    for key, caption in pairs:
        length, count = len(tokenizer.encode(caption)), count + 1
        if length == 0:
            silent.append(f"{caption!r} of {key}")
        if length > room:
            long, longest = long + 1, max(longest, (length, key))
        if _REPLACED in caption:
            broken.add(key)
    if silent:
        raise DataError(
            f"{len(silent)} captions hold nothing that the tokenizer knows: {name_some(silent, 3)}. Remove them, or "
            "take --tokenizer bpe, which knows every character"
        )
    notes = []
    if long:
        notes.append(
            f"{long} of {count} captions are longer than the {tokenizer.context_length} tokens that the text tower "
            f"reads (marks included) and are cut; the longest has {longest[0] + 2} ({longest[1]})"
        )
    if broken:
        notes.append(
            f"captions of {len(broken)} pictures hold U+FFFD, the trace of a wrong decoding: "
            f"{name_some(sorted(broken), 3)}"
        )
    return notes


@dataclass(frozen=True)
class DecodedCaptions:
    """Both sides with their pictures read.

    Attributes:
        data: what the task reads.
        facts: for run.json.
    """

    data: ClipData
    facts: dict[str, Any]


@dataclass(frozen=True)
class FileCaptions:
    """Captioned picture files: decoded once, as there are not so many."""

    captioned: CaptionedSet
    split: CaptionSplit

    @property
    def train_count(self) -> int:
        """Training pictures."""
        return len(self.split.train.samples)

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of the source."""
        return self.captioned.notes

    def train_texts(self) -> Iterator[str]:
        """Yield the training captions."""
        yield from self.split.train.texts()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (picture, caption) of both splits."""
        for sample, captions in zip(self.captioned.samples, self.captioned.captions, strict=True):
            yield from ((sample.key, caption) for caption in captions)

    def decode(self, how: Decoding) -> DecodedCaptions:
        """Decode the pictures of both splits; those that cannot be read are left out with a warning."""
        sides = self.split.train.samples, self.split.val.samples
        train, val = decode_both(sides, how.contract, how.scratch, how.terminal, max_broken=how.max_broken)
        captions, val_captions = _of(self.split.train, train), _of(self.split.val, val)
        facts = {
            "fingerprint": self.split.fingerprint(),
            "classes": [],
            "train": len(train.samples),
            "labelled": sum(map(len, captions)),
            "val": len(val.samples),
            "val_captions": sum(map(len, val_captions)),
            "broken": sorted({*train.broken, *val.broken}),
        }
        return DecodedCaptions(ClipData(train, captions, val, val_captions=val_captions), facts)


@dataclass(frozen=True)
class ShardCaptions:
    """Captioned pictures in tar shards: those of validation are decoded, the others streamed."""

    dataset: ShardDataset
    notes: Sequence[str] = ()

    @property
    def train_count(self) -> int:
        """Training pictures."""
        return len(self.dataset.train)

    def train_texts(self) -> Iterator[str]:
        """Yield the training captions, one tar listed after the other."""
        for picture in listed(self.dataset.train):
            yield from picture.captions

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (picture, caption) of both splits."""
        for split in (self.dataset.train, self.dataset.val):
            for picture in listed(split):
                yield from ((picture.key, caption) for caption in picture.captions)

    def decode(self, how: Decoding) -> DecodedCaptions:
        """Decode the validation pictures, and count the captions of the others."""
        mute = {
            picture.key: f"{picture.tar}:{picture.key} {reason}"
            for split in (self.dataset.train, self.dataset.val)
            for picture in listed(split)
            if (reason := without_caption(picture)) is not None
        }
        total = self.train_count + len(self.dataset.val)
        if len(mute) == total:
            raise DataError(
                f"{self.dataset.root}: no picture in the shards has a caption; each needs a .txt of its name"
            )
        check_broken({**self.dataset.broken, **mute}, total, how.max_broken)
        decoded = decode_val(self.dataset, how.contract, how.scratch, how.terminal, max_broken=how.max_broken)
        store = captioned_only(decoded)
        captions = tuple(decoded.pictures[sample.path].captions for sample in store.samples)
        batches = StreamedPairs(self.dataset, how.tokenizer, how.recipe, how.contract, max_broken=how.max_broken)
        facts = {
            **decoded.facts,
            "labelled": sum(1 for _ in self.train_texts()),
            "val": len(store.samples),
            "val_captions": sum(map(len, captions)),
            "broken": sorted({*decoded.facts["broken"], *mute}),
        }
        return DecodedCaptions(ClipData(batches, (), store, val_captions=captions), facts)


def _of(side: CaptionedSet, store: PixelStore) -> tuple[tuple[str, ...], ...]:
    """Return the captions of the pictures that could be read."""
    by_key = {sample.key: captions for sample, captions in zip(side.samples, side.captions, strict=True)}
    return tuple(by_key[sample.key] for sample in store.samples)

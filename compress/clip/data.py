"""Captions checked against the tokenizer, and their pictures decoded: what training a CLIP reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.captions import CaptionedSet, CaptionSplit
from edgekit.compress.clip.task import ClipData
from edgekit.compress.pictures.decoding import decode_both
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.errors import DataError
from edgekit.listing import name_some
from edgekit.models.tokenizer import Tokenizer
from edgekit.preprocess import Preprocess
from edgekit.terminal import Terminal

_REPLACED = "\N{REPLACEMENT CHARACTER}"


def check_captions(captioned: CaptionedSet, tokenizer: Tokenizer) -> list[str]:
    """Return what the user should know of captions that the tokenizer does not take whole, a line each.

    Raises:
        DataError: nothing is left of a caption: the tokenizer knows none of its characters.
    """
    room = tokenizer.context_length - 2  # start and end mark
    lengths = [(key, caption, len(tokenizer.encode(caption))) for key, caption in _pairs(captioned)]
    silent = [f"{caption!r} of {key}" for key, caption, length in lengths if length == 0]
    if silent:
        raise DataError(
            f"{len(silent)} captions hold nothing that the tokenizer knows: {name_some(silent, 3)}. Remove them, or "
            "take --tokenizer bpe, which knows every character"
        )
    notes = []
    if long := [(length, key) for key, _, length in lengths if length > room]:
        length, key = max(long)
        notes.append(
            f"{len(long)} of {len(lengths)} captions are longer than the {tokenizer.context_length} tokens that the "
            f"text tower reads (marks included) and are cut; the longest has {length + 2} ({key})"
        )
    if broken := [key for key, caption, _ in lengths if _REPLACED in caption]:
        notes.append(
            f"{len(broken)} captions hold U+FFFD, the trace of a wrong decoding: {name_some(sorted(set(broken)), 3)}"
        )
    return notes


def _pairs(captioned: CaptionedSet) -> Iterator[tuple[str, str]]:
    for sample, captions in zip(captioned.samples, captioned.captions, strict=True):
        yield from ((sample.key, caption) for caption in captions)


@dataclass(frozen=True)
class DecodedCaptions:
    """Both sides with their pictures read.

    Attributes:
        data: what the task reads.
        facts: for run.json.
    """

    data: ClipData
    facts: dict[str, Any]


def decode_captioned(
    split: CaptionSplit, contract: Preprocess, scratch: Path, terminal: Terminal, *, max_broken: float
) -> DecodedCaptions:
    """Decode the pictures of both sides; those that cannot be read are left out with a warning.

    Raises:
        DataError: more than the share `max_broken` of them is broken.
    """
    sides = split.train.samples, split.val.samples
    train, val = decode_both(sides, contract, scratch, terminal, max_broken=max_broken)
    captions, val_captions = _of(split.train, train), _of(split.val, val)
    facts = {
        "fingerprint": split.fingerprint(),
        "classes": [],
        "train": len(train.samples),
        "labelled": sum(map(len, captions)),
        "val": len(val.samples),
        "val_captions": sum(map(len, val_captions)),
        "broken": sorted({*train.broken, *val.broken}),
    }
    return DecodedCaptions(ClipData(train, captions, val, val_captions=val_captions), facts)


def _of(side: CaptionedSet, store: PixelStore) -> tuple[tuple[str, ...], ...]:
    """Return the captions of the pictures that could be read."""
    by_key = {sample.key: captions for sample, captions in zip(side.samples, side.captions, strict=True)}
    return tuple(by_key[sample.key] for sample in store.samples)

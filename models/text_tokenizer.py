"""Text to token ids for classifiers: a byte-pair encoding trained on the task's own texts. Knows no torch.

Id 0 is padding and nothing else, so a model sees from the ids alone which positions count; id 1 begins every text, so
that not even an empty one is without a position that counts.
"""

from __future__ import annotations

import heapq
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import LoadError, UsageError

Ids = NDArray[np.int32]

PADDING, START = 0, 1
_FIRST_BYTE = 2
_FIRST_MERGE = _FIRST_BYTE + 256
MAX_LENGTH = 8192
"""Ids per text; a tokenizer out of a file that others wrote must not ask for all the memory."""
MAX_MERGES = 1_000_000
LONGEST_WORD = 64
"""Bytes; longer runs (base64, hashes) are cut, as the time of a split grows with their square."""

_WORDS = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+")
"""Runs of letters, single digits, runs of anything else that is not white space."""


@dataclass(frozen=True)
class Encoded:
    """Texts as a model takes them.

    Attributes:
        ids: (N, L) int32, padded with `PADDING` at the end.
        truncated: number of texts that were longer than L and lost their end.
        empty: number of texts that had nothing but white space.
    """

    ids: Ids
    truncated: int
    empty: int


class TextTokenizer(Protocol):
    """Texts to ids.

    Attributes:
        vocab_size: number of ids.
        max_length: L, ids per text.

    A call takes N texts and returns their ids, padded and cut to L.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> Encoded: ...

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `text_tokenizer_from_dict` reads back."""
        ...


class TrainedBpe:
    """Byte-pair encoding (Sennrich et al. 2016) over UTF-8 bytes: no text is ever out of vocabulary.

    A word's bytes end with a space, so that a piece at the end of a word is not the same as one inside. Ids: padding,
    start, the 256 bytes, one per merge.

    Args:
        merges: pairs of ids, the most frequent first; each joins ids below its own.
        max_length: ids per text, the start mark included.
        lowercase: fold the case first.

    Raises:
        UsageError: a merge joins what is not there yet, or the length is impossible.
    """

    def __init__(self, merges: Sequence[tuple[int, int]], max_length: int, *, lowercase: bool = True) -> None:
        if not 2 <= max_length <= MAX_LENGTH:
            raise UsageError(f"a tokenizer of {max_length} ids per text; needed is 2 to {MAX_LENGTH}")
        lengths = [0, 0] + [1] * 256
        for at, pair in enumerate(merges, start=_FIRST_MERGE):
            if not all(_FIRST_BYTE <= part < at for part in pair):
                raise UsageError(f"merge {at - _FIRST_MERGE} joins {pair}; the ids below {at} alone are there by then")
            lengths.append(lengths[pair[0]] + lengths[pair[1]])
            if lengths[-1] > LONGEST_WORD:
                raise UsageError(
                    f"merge {at - _FIRST_MERGE} makes {lengths[-1]} bytes; no word has more than {LONGEST_WORD}"
                )
        self.merges, self.max_length, self.lowercase = tuple(merges), max_length, lowercase
        self._rank = {pair: _FIRST_MERGE + at for at, pair in enumerate(self.merges)}
        self._cache: dict[str, tuple[int, ...]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return _FIRST_MERGE + len(self.merges)

    def words(self, text: str) -> list[str]:
        """Cut a text into the words that are encoded one by one; compatible forms and case are folded first (NFKC)."""
        plain = unicodedata.normalize("NFKC", text)
        return _WORDS.findall(plain.lower() if self.lowercase else plain)

    def split(self, word: str, dropped: NDArray[np.float64] | None = None, rate: float = 0.0) -> tuple[int, ...]:
        """Return a word's ids.

        Args:
            word: one of `words`.
            dropped: uniform numbers in [0, 1), one per merge of the word in the order in which they are tried: where
                the number is below `rate` the merge is left out (BPE-dropout, Provilkov et al. 2020, §3.2).
            rate: share of the merges that are left out.
        """
        if dropped is None and word in self._cache:
            return self._cache[word]
        ids = _bytes(word)
        tried = 0
        while len(ids) > 1:
            ranked = [(rank, at) for at, pair in enumerate(pairwise(ids)) if (rank := self._rank.get(pair)) is not None]
            if dropped is not None:
                tried += len(ranked)
                ranked = [
                    found for n, found in enumerate(ranked, tried - len(ranked)) if dropped[n % len(dropped)] >= rate
                ]
            if not ranked:
                break
            rank, at = min(ranked)
            ids[at : at + 2] = [rank]
        if dropped is None:
            self._cache[word] = tuple(ids)
        return tuple(ids)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Return ids (N, max_length) int32, padded, and how many texts were cut or empty."""
        return frame([[i for word in self.words(text) for i in self.split(word)] for text in texts], self.max_length)

    def pieces(self) -> list[bytes]:
        """Return the bytes of each id; padding and start have none."""
        found = [b"", b"", *(bytes([byte]) for byte in range(256))]
        for left, right in self.merges:
            found.append(found[left] + found[right])
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `text_tokenizer_from_dict` reads back."""
        return {
            "kind": "trained-bpe",
            "max_length": self.max_length,
            "lowercase": self.lowercase,
            "merges": [list(pair) for pair in self.merges],
        }


def frame(rows: Sequence[Sequence[int]], max_length: int) -> Encoded:
    """Put the start mark before each row of ids, cut it and pad it."""
    ids = np.full((len(rows), max_length), PADDING, np.int32)
    ids[:, 0] = START
    for row, pieces in zip(ids, rows, strict=True):
        kept = pieces[: max_length - 1]
        row[1 : len(kept) + 1] = kept
    truncated = sum(len(pieces) > max_length - 1 for pieces in rows)
    return Encoded(ids, truncated, sum(not pieces for pieces in rows))


def train_bpe(texts: Iterable[str], vocab_size: int, max_length: int, *, lowercase: bool = True) -> TrainedBpe:
    """Return the byte pairs of `texts`: joined again and again is the most frequent pair, the smallest among equals.

    Args:
        texts: of the training split alone, else the validation is not one.
        vocab_size: ids at most; fewer where no pair is left that occurs twice.
        max_length: ids per text.
        lowercase: fold the case first.

    Raises:
        UsageError: the vocabulary is smaller than the bytes.
    """
    if not _FIRST_MERGE <= vocab_size <= _FIRST_MERGE + MAX_MERGES:
        raise UsageError(f"a vocabulary of {vocab_size}; the bytes alone take {_FIRST_MERGE} ids")
    cutter = TrainedBpe((), max_length, lowercase=lowercase)
    counts = Counter(word for text in texts for word in cutter.words(text))
    words = [_bytes(word) for word in counts]
    merges = _most_frequent_pairs(words, list(counts.values()), vocab_size - _FIRST_MERGE)
    return TrainedBpe(merges, max_length, lowercase=lowercase)


def _most_frequent_pairs(words: list[list[int]], counts: list[int], most: int) -> list[tuple[int, int]]:
    """Join pairs in `words`, in place, until none occurs twice; the heap holds outdated counts, too."""
    totals: Counter[tuple[int, int]] = Counter()
    places: dict[tuple[int, int], set[int]] = {}
    for number, (word, count) in enumerate(zip(words, counts, strict=True)):
        for pair in pairwise(word):
            totals[pair] += count
            places.setdefault(pair, set()).add(number)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < most:
        negative, pair = heapq.heappop(heap)
        if totals[pair] != -negative:
            continue  # changed since it was pushed; its newer entry is in the heap, too
        if -negative < 2:
            break
        joined = _FIRST_MERGE + len(merges)
        merges.append(pair)
        changed: set[tuple[int, int]] = set()
        for number in places.pop(pair):
            old = list(pairwise(words[number]))
            words[number] = _joined(words[number], pair, joined)
            new = list(pairwise(words[number]))
            for part, sign in ((old, -1), (new, 1)):
                for found in part:
                    totals[found] += sign * counts[number]
                    changed.add(found)
            for found in new:
                places.setdefault(found, set()).add(number)
        for found in changed - {pair}:
            heapq.heappush(heap, (-totals[found], found))
    return merges


def _joined(ids: list[int], pair: tuple[int, int], joined: int) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(ids):
        if at + 1 < len(ids) and (ids[at], ids[at + 1]) == pair:
            found.append(joined)
            at += 2
        else:
            found.append(ids[at])
            at += 1
    return found


def _bytes(word: str) -> list[int]:
    # lone surrogates, which JSON can hold, have no UTF-8
    content = word.encode("utf-8", errors="replace")[: LONGEST_WORD - 1] + b" "
    return [_FIRST_BYTE + byte for byte in content]


def text_tokenizer_from_dict(values: Mapping[str, Any]) -> TextTokenizer:
    """Build the tokenizer that `to_dict` described.

    Raises:
        LoadError: a value is missing, unknown or impossible; the mapping also comes out of files that others wrote.
        MissingExtraError: it is Hugging Face's, and tokenizers is not installed.
    """
    if values.get("kind") == "huggingface":
        from edgekit.models.text_tokenizer_huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_dict(values)
    if values.get("kind") == "clip":
        from edgekit.models.caption_tokenizer import CaptionTokenizer

        return CaptionTokenizer.from_dict(values)
    try:
        if values["kind"] != "trained-bpe":
            raise ValueError(f"kind {values['kind']!r}")
        merges = values["merges"]
        if len(merges) > MAX_MERGES:
            raise ValueError(f"{len(merges)} merges")
        pairs = [(int(left), int(right)) for left, right in merges]
        return TrainedBpe(pairs, int(values["max_length"]), lowercase=bool(values["lowercase"]))
    except (KeyError, TypeError, ValueError, OverflowError, UsageError) as e:
        raise LoadError(f"not a text tokenizer of edgekit: {e!r:.200}") from e


def text_tokenizer_from_json(content: str) -> TextTokenizer:
    """Build the tokenizer out of the JSON text of `to_dict`.

    Raises:
        LoadError: not JSON, or not such a tokenizer.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise LoadError(f"not a text tokenizer of edgekit: {e}") from e
    if not isinstance(values, dict):
        raise LoadError("not a text tokenizer of edgekit: it holds no mapping")
    return text_tokenizer_from_dict(values)

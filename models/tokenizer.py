"""Text to token ids: CLIP's byte-pair encoding, and single characters for comparison. Knows no torch.

Every tokenizer pads with 0 and ends a text with its highest id, so that the text tower finds the end of each text
as the position of the largest id, as CLIP does.
"""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import LoadError, MissingExtraError
from edgekit.models.tokenizer_cleaning import clean

Tokens = NDArray[np.int64]
Merge = tuple[str, str]

CLIP_CONTEXT_LENGTH = 77
_CLIP_MERGES = 49152 - 256 - 2
"""Merges that CLIP uses of the vocabulary file's lines."""

CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,!?'-"
"""The 33 characters of `CharacterTokenizer`, in the order of their ids, which start at 1."""


class Tokenizer(Protocol):
    """Texts to ids.

    Attributes:
        context_length: L, ids per text; longer texts are cut and keep their end mark.
        vocab_size: number of ids; the end mark is `vocab_size - 1`.

    A call takes N texts and returns (N, L) int64, padded with 0 after the end mark.
    """

    @property
    def context_length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> Tokens: ...

    def encode(self, text: str) -> list[int]:
        """Return a text's ids without start mark, end mark, padding or cut."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `tokenizer_from_dict` reads back."""
        ...


def _framed(ids: Iterable[list[int]], context_length: int, vocab_size: int) -> Tokens:
    """Put each text between start and end mark, cut it, and pad it with 0: (N, context_length) int64."""
    rows = list(ids)
    tokens = np.zeros((len(rows), context_length), dtype=np.int64)
    for row, text in zip(tokens, rows, strict=True):
        kept = [vocab_size - 2, *text[: context_length - 2], vocab_size - 1]
        row[: len(kept)] = kept
    return tokens


class CharacterTokenizer:
    """One id per character: lower-case a–z, space and ``. , ! ? ' -`` (33 in all); others are left out."""

    def __init__(self, context_length: int = CLIP_CONTEXT_LENGTH) -> None:
        self.context_length = context_length
        self.vocab_size = len(CHARACTERS) + 3  # padding, start, end
        self._ids = {character: at for at, character in enumerate(CHARACTERS, start=1)}

    def encode(self, text: str) -> list[int]:
        """Return a text's ids without start mark, end mark, padding or cut."""
        return [self._ids[character] for character in clean(text) if character in self._ids]

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return ids (N, context_length) int64."""
        return _framed(map(self.encode, texts), self.context_length, self.vocab_size)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `tokenizer_from_dict` reads back."""
        return {"kind": "characters", "context_length": self.context_length}


class BpeTokenizer:
    """CLIP's byte-pair encoding (Radford et al. 2021, §2.4; Sennrich et al. 2016) over a list of merges.

    Ids: the 256 bytes, the 256 bytes that end a word, one per merge, start mark, end mark. With all of CLIP's merges
    the ids are CLIP's own, but for text decoded with the wrong encoding (`tokenizer_cleaning`) and for captions that
    spell out the marks. With fewer (`trimmed`) the embedding table shrinks with them, and words that the kept
    merges do not cover fall into smaller pieces, down to bytes: no text is ever out of vocabulary.
    """

    def __init__(self, merges: Sequence[Merge], context_length: int = CLIP_CONTEXT_LENGTH) -> None:
        self.context_length = context_length
        self.vocab_size = 512 + len(merges) + 2
        self.merges = tuple(merges)
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        characters = list(_byte_characters().values())
        pieces = [*characters, *(c + "</w>" for c in characters), *(left + right for left, right in self.merges)]
        self._ids = {piece: at for at, piece in enumerate(pieces)}
        self._cache: dict[str, tuple[str, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """Return a text's ids without start mark, end mark, padding or cut."""
        return [self._ids[piece] for word in _words(clean(text)) for piece in self._pieces(word)]

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return ids (N, context_length) int64."""
        return _framed(map(self.encode, texts), self.context_length, self.vocab_size)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `tokenizer_from_dict` reads back."""
        return {"kind": "bpe", "context_length": self.context_length, "merges": [" ".join(m) for m in self.merges]}

    def trimmed(self, texts: Iterable[str], context_length: int | None = None) -> BpeTokenizer:
        """Keep only the merges that these texts use; they are cut into the same pieces as before.

        A merge that is applied anywhere builds a part of a piece that comes out, so keeping all the applied ones, in
        their order, leaves every step of the encoding of these texts as it was.
        """
        used: set[Merge] = set()
        for word in {word for text in texts for word in _words(clean(text))}:
            used.update(self._split(word)[1])
        kept = [merge for merge in self.merges if merge in used]
        return BpeTokenizer(kept, context_length or self.context_length)

    def _pieces(self, word: str) -> tuple[str, ...]:
        if word not in self._cache:
            self._cache[word] = self._split(word)[0]
        return self._cache[word]

    def _split(self, word: str) -> tuple[tuple[str, ...], set[Merge]]:
        """Return a word's pieces and the merges that made them."""
        table = _byte_characters()
        pieces = [table[byte] for byte in word.encode()]
        pieces[-1] += "</w>"
        applied: set[Merge] = set()
        while len(pieces) > 1:
            best = min(pairwise(pieces), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            applied.add(best)
            pieces = _merged(pieces, best)
        return tuple(pieces), applied


def _merged(pieces: list[str], pair: Merge) -> list[str]:
    """Join every occurrence of `pair`, from the left."""
    joined: list[str] = []
    at = 0
    while at < len(pieces):
        if tuple(pieces[at : at + 2]) == pair:
            joined.append(pair[0] + pair[1])
            at += 2
        else:
            joined.append(pieces[at])
            at += 1
    return joined


@lru_cache
def _byte_characters() -> dict[int, str]:
    """Return GPT-2's printable stand-in for each byte, in the order of CLIP's ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}


_IOTA_BELOW = "\u0345"
"""CLIP's pattern disregards case, and finds this mark, whose capital is a letter, in none of its classes."""
_CONTRACTIONS = ("'s", "'ſ", "'t", "'re", "'ve", "'m", "'ll", "'d")


def _words(text: str) -> Iterator[str]:
    """Cut a cleaned text as CLIP does: contractions, runs of letters, single digits, runs of anything else."""
    at = 0
    while at < len(text):
        kind = _kind(text[at])
        contraction = next((c for c in _CONTRACTIONS if text.startswith(c, at)), "")
        end = at + (len(contraction) or 1)
        if not contraction and kind in "LO":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != " ":
            yield text[at:end]
        at = end


def _kind(character: str) -> str:
    """Return "L" for a letter, "N" for a number, " " for white space, "O" for anything else (Unicode categories)."""
    category = unicodedata.category(character)[0]
    return " " if character.isspace() or character == _IOTA_BELOW else category if category in "LN" else "O"


@lru_cache
def clip_tokenizer(context_length: int = CLIP_CONTEXT_LENGTH) -> BpeTokenizer:
    """Return CLIP's own tokenizer, 49408 ids; its merges come with open_clip.

    Raises:
        MissingExtraError: open_clip is not installed.
    """
    package = find_spec("open_clip")  # finds the folder without importing it, and torch with it
    if package is None or package.origin is None:
        raise MissingExtraError("open_clip_torch", "train", "CLIP's tokenizer")
    lines = gzip.decompress((Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    pairs = (line.split() for line in lines.split("\n")[1 : _CLIP_MERGES + 1])
    return BpeTokenizer([(left, right) for left, right in pairs], context_length)


def tokenizer_from_dict(values: dict[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from the mapping that its `to_dict` made.

    Raises:
        LoadError: not such a mapping.
    """
    try:
        kind, context_length = str(values["kind"]), int(values["context_length"])
        if kind == "characters":
            return CharacterTokenizer(context_length)
        if kind == "bpe":
            pairs = (merge.split(" ") for merge in values["merges"])
            return BpeTokenizer([(left, right) for left, right in pairs], context_length)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise LoadError(f"the tokenizer's data is damaged ({type(e).__name__}: {e})") from e
    raise LoadError(f"unknown tokenizer '{kind}'; this edgekit knows bpe and characters")

"""Training texts as ids that vary from epoch to epoch: other cuts of the words, and words left out.

Both are functions of (seed, epoch, text), so that a resumed run sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.training.randomness import sample_ids, uniforms
from edgekit.models.text_tokenizer import Ids, TextTokenizer, TrainedBpe, frame

_CUTS = 8
"""Cuts of a word that epochs choose from; each is made once, as cutting takes longer than training on it."""
_NUMBERS = 64
"""Uniform numbers per word for its cuts."""


class PieceStore:
    """The ids of training texts.

    Args:
        texts: of the training split.
        tokenizer: with another one than `TrainedBpe` the ids are the same in all epochs.
        seed: of the run.
        merge_dropout: share of the merges that a cut leaves out (BPE-dropout, Provilkov et al. 2020, §3.2).
        word_dropout: share of the words that are left out.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: TextTokenizer, seed: int, merge_dropout: float, word_dropout: float
    ) -> None:
        self._seed, self._word_dropout = seed, word_dropout
        self._ids = sample_ids([f"{at}/{text}" for at, text in enumerate(texts)])
        self._max_length = tokenizer.max_length
        encoded = tokenizer(texts)
        self.truncated = encoded.truncated
        self._plain: Ids | None = None
        if not isinstance(tokenizer, TrainedBpe) or not (merge_dropout or word_dropout):
            self._plain = encoded.ids
            return
        number_of: dict[str, int] = {}
        self._texts = [
            np.array([number_of.setdefault(word, len(number_of)) for word in tokenizer.words(text)], np.int64)
            for text in texts
        ]
        self._cuts = _cuts(list(number_of), tokenizer, seed, merge_dropout)

    @property
    def identities(self) -> NDArray[np.uint64]:
        """A stable number (N,) for each text, for the order of an epoch."""
        return self._ids

    def rows(self, rows: NDArray[np.int64], epoch: int) -> Ids:
        """Return ids (n, L) of these texts in this epoch, L the longest of them."""
        if self._plain is not None:
            ids = self._plain[rows]
        else:
            words = max(1, *(len(self._texts[row]) for row in rows))
            kept = uniforms(self._seed, "words", epoch, self._ids[rows], words) >= self._word_dropout
            cut = (uniforms(self._seed, "cuts", epoch, self._ids[rows], words) * len(self._cuts)).astype(np.int64)
            ids = frame(
                [
                    [
                        piece
                        for word, keep, which in zip(self._texts[row], kept[n], cut[n], strict=False)
                        if keep
                        for piece in self._cuts[which][word]
                    ]
                    for n, row in enumerate(rows)
                ],
                self._max_length,
            ).ids
        return ids


def _cuts(words: list[str], tokenizer: TrainedBpe, seed: int, merge_dropout: float) -> list[list[tuple[int, ...]]]:
    """Return some cuts of all words; the first is the one without dropout."""
    plain = [tokenizer.split(word) for word in words]
    if not merge_dropout:
        return [plain]
    names = sample_ids(words)
    return [plain] + [
        [
            tokenizer.split(word, numbers, merge_dropout)
            for word, numbers in zip(words, uniforms(seed, "merges", cut, names, _NUMBERS), strict=True)
        ]
        for cut in range(_CUTS - 1)
    ]

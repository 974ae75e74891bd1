"""Byte pairs trained here: the same as counting anew for every merge, no text out of vocabulary, files not trusted."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts_for_tests import reviews

from edgekit.errors import LoadError, UsageError
from edgekit.models.text_tokenizer import (
    LONGEST_WORD,
    PADDING,
    START,
    TrainedBpe,
    text_tokenizer_from_dict,
    text_tokenizer_from_json,
    train_bpe,
)

TEXTS = [text for text, _ in reviews(80, 0)]
LONG = train_bpe(TEXTS, 400, 512)


def naive_merges(texts: list[str], most: int) -> list[tuple[int, int]]:
    """Count all pairs anew for every merge."""
    counts = Counter(word for text in texts for word in TrainedBpe((), 8).words(text))
    words = {word: [2 + byte for byte in (word + " ").encode()] for word in counts}
    merges: list[tuple[int, int]] = []
    while len(merges) < most:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, ids in words.items():
            for pair in pairwise(ids):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        for ids in words.values():
            at = 0
            while at < len(ids) - 1:
                if (ids[at], ids[at + 1]) == best:
                    ids[at : at + 2] = [258 + len(merges)]
                at += 1
        merges.append(best)
    return merges


def test_merges_are_those_of_counting_anew() -> None:
    assert list(train_bpe(TEXTS, 258 + 60, 32).merges) == naive_merges(TEXTS, 60)


def test_merges_end_where_no_pair_occurs_twice() -> None:
    bpe = train_bpe(TEXTS, 5000, 32)
    assert bpe.vocab_size < 1000
    assert list(bpe.merges) == naive_merges(TEXTS, 5000)
    assert len(bpe.split("brilliant")) == 1


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_comes_back_from_its_pieces(text: str) -> None:
    bpe, pieces = LONG, LONG.pieces()
    ids = bpe([text]).ids[0]
    assert ids[0] == START
    found = b"".join(pieces[i] for i in ids if i not in (PADDING, START))
    expected = b"".join(word.encode("utf-8", errors="replace")[: LONGEST_WORD - 1] + b" " for word in bpe.words(text))
    assert found == expected[: len(found)]
    assert len(found) == len(expected) or ids[-1] != PADDING


def test_dropped_merges_give_other_cuts_of_the_same_bytes() -> None:
    bpe = train_bpe(TEXTS, 400, 64)
    pieces = bpe.pieces()
    numbers = np.random.default_rng(0).random(64)
    plain = bpe.split("brilliant")
    assert bpe.split("brilliant", numbers, 0.0) == plain
    assert bpe.split("brilliant", np.zeros(8), 0.5) == tuple(2 + byte for byte in b"brilliant ")
    cuts = {bpe.split("brilliant", np.random.default_rng(seed).random(64), 0.5) for seed in range(20)}
    assert len(cuts) > 3
    assert {b"".join(pieces[i] for i in cut) for cut in cuts} == {b"brilliant "}


def test_long_and_empty_texts_are_counted() -> None:
    encoded = train_bpe(TEXTS, 400, 8)(["", "  \n", "a film", "a " * 50])
    assert (encoded.truncated, encoded.empty) == (1, 2)
    assert encoded.ids.dtype == np.int32 and encoded.ids.shape == (4, 8)
    assert encoded.ids[0].tolist() == [START] + [PADDING] * 7
    assert PADDING not in encoded.ids[3]


def test_odd_unicode() -> None:
    bpe = train_bpe(TEXTS, 300, 64)
    ligature, wide = bpe(["ﬁlm", "ｆｉｌｍ"]).ids
    assert np.array_equal(ligature, bpe(["film"]).ids[0]) and np.array_equal(wide, ligature)
    for text in ("\ud800", "a\u0000b", "\u202eabc", "👩‍👩‍👧", "e\u0301" * 300, "\ufffd"):
        assert bpe([text]).ids[0, 0] == START
    assert len(bpe.split("x" * 10_000)) <= LONGEST_WORD


def test_json_brings_it_back() -> None:
    bpe = train_bpe(TEXTS, 400, 16, lowercase=False)
    again = text_tokenizer_from_json(json.dumps(bpe.to_dict()))
    assert np.array_equal(again(TEXTS).ids, bpe(TEXTS).ids)
    assert again.to_dict() == bpe.to_dict()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "other"}, "kind"),
        ({"merges": [[2, 300]]}, "joins"),
        ({"merges": [[0, 3]]}, "joins"),
        ({"merges": [[2, 2]] + [[257 + n, 257 + n] for n in range(1, 40)]}, "bytes"),  # doubles with each merge
        ({"merges": [[2]]}, "not enough values"),
        ({"merges": None}, "NoneType"),
        ({"max_length": 10**9}, "ids per text"),
        ({"max_length": "many"}, "many"),
    ],
)
def test_tokenizers_of_others_are_not_trusted(change: dict[str, object], named: str) -> None:
    values = {**train_bpe(TEXTS, 300, 16).to_dict(), **change}
    with pytest.raises(LoadError, match=named):
        text_tokenizer_from_dict(values)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(content: str) -> None:
    with pytest.raises(LoadError, match="not a text tokenizer"):
        text_tokenizer_from_json(content)


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match="258"):
        train_bpe(TEXTS, 100, 16)

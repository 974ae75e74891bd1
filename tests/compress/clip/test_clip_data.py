"""Captions against a tokenizer: what is cut, what is lost, and what is told of it."""

from __future__ import annotations

import pytest

from edgekit.compress.clip.data import check_captions
from edgekit.errors import DataError
from edgekit.models.tokenizer import CharacterTokenizer, clip_tokenizer


def captioned(*captions: str) -> list[tuple[str, str]]:
    return [(f"{at}.png", caption) for at, caption in enumerate(captions)]


def test_over_long_captions_are_counted_and_the_longest_is_named() -> None:
    (note,) = check_captions(captioned("a dog", "dog " * 75, "dog " * 76, "dog " * 200), clip_tokenizer())
    assert note == (
        "2 of 4 captions are longer than the 77 tokens that the text tower reads (marks included) and are cut; the "
        "longest has 202 (3.png)"
    )
    assert check_captions(captioned("dog " * 75), clip_tokenizer()) == []


def test_odd_unicode_is_taken_byte_by_byte() -> None:
    assert check_captions(captioned("一只狗", "🐕‍🦺", "ﬁne Ｗｉｄｅ", "e\u0301", "\u200b"), clip_tokenizer()) == []


def test_the_trace_of_a_wrong_decoding_is_pointed_out() -> None:
    (note,) = check_captions(captioned("caf\ufffd", "x"), clip_tokenizer())
    assert note == "captions of 1 pictures hold U+FFFD, the trace of a wrong decoding: 0.png"


@pytest.mark.parametrize("caption", ["一只狗", "12 + 34", "🐕"])
def test_a_caption_of_which_nothing_is_left_is_refused(caption: str) -> None:
    with pytest.raises(DataError, match=r"1 captions hold nothing that the tokenizer knows: .*1\.png.*--tokenizer bpe"):
        check_captions(captioned("a dog", caption.replace(" ", "")), CharacterTokenizer())


def test_control_characters_alone_say_nothing_in_any_tokenizer() -> None:
    with pytest.raises(DataError, match="nothing that the tokenizer knows"):
        check_captions(captioned("\x01\x02"), clip_tokenizer())

"""Tokenizers: CLIP's own ids, trimming that changes nothing, characters, and the way through JSON."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import unicodedata

import ftfy
import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.demo.drawings import draw
from edgekit.errors import LoadError
from edgekit.models.tokenizer import (
    CHARACTERS,
    BpeTokenizer,
    CharacterTokenizer,
    Tokenizer,
    clip_tokenizer,
    tokenizer_from_dict,
)
from edgekit.models.tokenizer_cleaning import clean

TEXTS = [
    *("a photo of a crescent moon", "It’s 3:45 o'clock!!! don't  you'll", "it'S we'RE 12345 _foo_bar--", "", "Ⅷ x² ½"),
    *(
        "naïve café ÇA 日本語 😀😀",
        "&amp; &lt;b&gt; &quot;q&quot;",
        "e\u0301te\u0301",
        "\x00a\tb\u00a0c\u2009d\n",
        "ﬁne ＡＢＣ",
    ),
    *("supercalifragilisticexpialidocious " * 20, "don't 's's '", "a\u200bb", "العربية हिन्दी ไทย"),
]


def demo_captions(count: int) -> list[str]:
    return [draw(0, index, 16).caption for index in range(count)]


@pytest.mark.parametrize("text", TEXTS)
def test_bpe_gives_clips_own_ids(text: str) -> None:
    np.testing.assert_array_equal(clip_tokenizer()([text]), open_clip.get_tokenizer("ViT-B-32")([text]).numpy())


def test_every_character_has_clips_own_ids() -> None:
    """Over what this Python's Unicode knows, without ideographs, Hangul and private use: many, and all alike."""
    ours, theirs = clip_tokenizer(), open_clip.get_tokenizer("ViT-B-32")
    assert isinstance(theirs, open_clip.SimpleTokenizer)
    many = {*range(0x3400, 0x9FF0), *range(0xAC00, 0xD7A0), *range(0xE000, 0xF8FF)}
    codes = [code for code in (*range(0x10000), *range(0x1D100, 0x1D200), *range(0x1F000, 0x1F100)) if code not in many]
    known = [chr(code) for code in codes if unicodedata.category(chr(code)) != "Cn"]
    assert len(known) > 19_000
    other = [ascii(c) for c in known if ours.encode(f"x{c}y {c}") != theirs.encode(f"x{c}y {c}")]
    assert other == []


# fmt: off
PARTS = (
    "&", "amp;", "lt;", "<", "&ldquo;", "&NTILDE;", "&SZLIG;", "&#39;", "&#x2019;", "&#59;", "&eacute", "\x1b[0m",
    "\x1b", "[0m", "\x93", "\x85", "ﬁ", "ŉ", "ſ", "'", "＆", "；", "［", "\u3099", "ｶ", "ﾞ", "e", "\u0301", "\n",
    "\r\n", "\u2028", "\x1c", "\x0b", " ", "\ud83d", "\ude00", "\u0345", "\u037e", "\u3000", "„", "x", "S", "'RE",
    "\ufeff", "\ufffc",
)
# fmt: on


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PARTS), max_size=9).map("".join))
def test_the_steps_of_cleaning_have_ftfys_order(text: str) -> None:
    fixed = ftfy.fix_text(text, fix_encoding=False)  # wrong decodings are left to whoever read the text
    assert clean(text) == " ".join(html.unescape(html.unescape(fixed)).split()).lower()


def test_trimmed_pieces_are_the_same_and_few() -> None:
    captions = demo_captions(400)
    full, trimmed = clip_tokenizer(), clip_tokenizer().trimmed(captions, context_length=32)
    assert trimmed.context_length == 32
    assert trimmed.vocab_size < 1000 < full.vocab_size == 49408
    names = {at: piece for piece, at in full._ids.items()}, {at: piece for piece, at in trimmed._ids.items()}
    for caption in captions:
        pieces = [[names[at][i] for i in tokenizer.encode(caption)] for at, tokenizer in enumerate((full, trimmed))]
        assert pieces[0] == pieces[1]


def test_trimmed_still_encodes_any_text() -> None:
    trimmed = clip_tokenizer().trimmed(["a red star"])
    ids = trimmed.encode("zebra 日本 😀")
    assert len(ids) == len("zebra") + len("日本😀".encode())  # bytes where no merge is left
    assert max(ids) < trimmed.vocab_size - 2


@pytest.mark.parametrize("tokenizer", [clip_tokenizer(8), CharacterTokenizer(8)], ids=["bpe", "characters"])
def test_rows_are_framed_padded_and_cut(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["a", "one two three four five six seven eight nine", ""])
    assert tokens.shape == (3, 8)
    assert tokens.dtype == np.int64
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    np.testing.assert_array_equal(tokens.argmax(axis=1), [2, 7, 1])  # the end mark, where the text tower pools
    np.testing.assert_array_equal(tokens[:, 0], start)
    np.testing.assert_array_equal(tokens[[0, 1, 2], [2, 7, 1]], end)
    assert (tokens[0, 3:] == 0).all()


def test_characters_are_the_documented_33() -> None:
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 33
    tokenizer = CharacterTokenizer()
    assert tokenizer.encode("Az, 9") == [1, 26, CHARACTERS.index(",") + 1, CHARACTERS.index(" ") + 1]
    assert tokenizer.vocab_size == 36


@pytest.mark.parametrize(
    "tokenizer", [clip_tokenizer().trimmed(["a red star"], 16), CharacterTokenizer(16)], ids=["bpe", "characters"]
)
def test_json_brings_the_tokenizer_back(tokenizer: Tokenizer) -> None:
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    np.testing.assert_array_equal(again(TEXTS), tokenizer(TEXTS))
    assert again.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    "values", [{}, {"kind": "words", "context_length": 8}, {"kind": "bpe", "context_length": 8, "merges": ["abc"]}]
)
def test_damaged_data_is_an_error(values: dict[str, object]) -> None:
    with pytest.raises(LoadError, match="tokenizer"):
        tokenizer_from_dict(values)


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys; from edgekit.models.tokenizer import clip_tokenizer; clip_tokenizer()(['a']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_word_ends_once() -> None:
    assert BpeTokenizer([("a", "b</w>")]).encode("ab ab") == [512, 512]

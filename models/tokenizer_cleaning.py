"""Clean a caption as CLIP does before cutting it: ftfy's `fix_text`, then HTML entities, white space, case. No torch.

The tables and their order are those of ftfy 6 with its default settings, so that a bundle needs no ftfy to give
CLIP's ids. Left out is its repair of text that was decoded with the wrong encoding: that is for whoever read the text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache
from html.entities import html5

_SINGLE_QUOTES = (0x02BC, *range(0x2018, 0x201C))
_DOUBLE_QUOTES = range(0x201C, 0x2020)
# fmt: off
_LIGATURES = {
    "Ĳ": "IJ", "ĳ": "ij", "ŉ": "ʼn", "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz", "Ǆ": "DŽ", "ǅ": "Dž", "ǆ": "dž",
    "Ǉ": "LJ", "ǈ": "Lj", "ǉ": "lj", "Ǌ": "NJ", "ǋ": "Nj", "ǌ": "nj",
    "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st",
}
# fmt: on
_CONTROL = dict.fromkeys(
    (*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
)
"""Characters that ftfy removes: ASCII's and deprecated controls, annotations, the object mark, the byte order mark."""
_ENTITY = re.compile("&#?[0-9A-Za-z]{1,24};")
_TERMINAL_ESCAPE = re.compile("\033\\[((?:\\d|;)*)([a-zA-Z])")
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """Resolve entities, plain quotes, ligatures and widths, compose accents (NFC), squeeze space, lower the case."""
    lines, entities = [], True
    for line in text.split("\n"):
        entities = entities and "<" not in line  # ftfy: text with tags is HTML, in which entities mean themselves
        lines.append(_fixed(line, entities=entities))
    plain = html.unescape(html.unescape("\n".join(lines)))
    return " ".join(plain.split()).lower()


def _fixed(text: str, *, entities: bool) -> str:
    """Repeat ftfy's steps until they change nothing. Line breaks stay: they are white space."""
    while True:
        before = text
        if entities:
            text = _ENTITY.sub(_character_of, text)
        text = text.translate(_plain_characters())
        if _SURROGATES.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins pairs
        text = _TERMINAL_ESCAPE.sub("", text).translate(_CONTROL)
        text = unicodedata.normalize("NFC", text)
        if text == before:
            return text


@lru_cache
def _plain_characters() -> dict[int, str]:
    """Return the replacements of single characters."""
    windows = {code: bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)}
    ligatures = {ord(ligature): letters for ligature, letters in _LIGATURES.items()}
    width = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)}
    quotes = {**dict.fromkeys(_SINGLE_QUOTES, "'"), **dict.fromkeys(_DOUBLE_QUOTES, '"')}
    return {**windows, **ligatures, **width, 0x3000: " ", **quotes}


def _character_of(entity: re.Match[str]) -> str:
    """Return the character of an entity that ends in a semicolon, else the entity."""
    named = entity[0]
    if named.startswith("&#"):
        found = html.unescape(named)
        return named if ";" in found else found
    return _entities().get(named, named)


@lru_cache
def _entities() -> dict[str, str]:
    """Return HTML's entities, with capitals (&NTILDE;) where that is no other entity."""
    known = {"&" + name: character for name, character in html5.items() if name.endswith(";")}
    capitals = {name.upper(): character.upper() for name, character in known.items() if name == name.lower()}
    return {**{name: c for name, c in capitals.items() if html.unescape(name) == name}, **known}

"""Text out of a file that others wrote: a file must not write to the terminal."""

from __future__ import annotations

MAX_LENGTH = 600


def printable(text: str, limit: int = MAX_LENGTH) -> str:
    """Return one line of at most `limit` characters, control characters (escape sequences, line ends) replaced."""
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"

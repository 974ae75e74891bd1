"""Short reviews made of words that tell the class and words that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WORDS = {
    "bad": ("dull", "tedious", "awful", "boring", "clumsy", "lifeless"),
    "good": ("lovely", "moving", "brilliant", "funny", "charming", "fresh"),
}
_FILLERS = ("the", "film", "is", "a", "story", "of", "one", "and", "its", "cast", "with", "scenes", ",", "really")


def reviews(count: int, seed: int, classes: tuple[str, ...] = ("bad", "good")) -> list[tuple[str, str]]:
    """Return (text, class) pairs, no two alike in most cases."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        name = classes[number % len(classes)]
        words = list(rng.choice(_FILLERS, rng.integers(3, 12))) + list(rng.choice(WORDS[name], 2))
        rng.shuffle(words)
        found.append((" ".join(words), name))
    return found


def write_reviews(path: Path, count: int, seed: int, *, header: bool = True) -> Path:
    """Write a TSV of reviews."""
    lines = ["text\tlabel"] * header + [f"{text}\t{name}" for text, name in reviews(count, seed)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

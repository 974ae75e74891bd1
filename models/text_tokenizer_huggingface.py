"""A Hugging Face tokenizer, as its tokenizer.json describes it. Needs the `tokenizers` package, not torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import LoadError, MissingExtraError, UsageError, first_line
from edgekit.models.text_tokenizer import MAX_LENGTH, Encoded


class HuggingFaceTokenizer:
    """Texts to ids by a tokenizer.json; start and end marks stay when a text is cut.

    Args:
        content: the text of tokenizer.json.
        max_length: ids per text.
        padding: id of positions that do not count.

    Raises:
        MissingExtraError: tokenizers is not installed.
        UsageError: not a tokenizer.json, or an impossible length.
    """

    def __init__(self, content: str, max_length: int, padding: int) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as e:
            raise MissingExtraError("tokenizers", "text", "A Hugging Face tokenizer") from e
        if not 4 <= max_length <= MAX_LENGTH:
            raise UsageError(f"a tokenizer of {max_length} ids per text; needed is 4 to {MAX_LENGTH}")
        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as e:  # the package raises bare exceptions
            raise UsageError(f"not a tokenizer.json: {first_line(e)[:200]}") from e
        self.max_length, self.padding, self.content = max_length, padding, content
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Return ids (N, max_length) int32, padded, and how many texts were cut or empty."""
        ids = np.full((len(texts), self.max_length), self.padding, np.int32)
        truncated = 0
        for row, encoding in zip(ids, self._tokenizer.encode_batch(list(texts)), strict=True):
            row[: len(encoding.ids)] = encoding.ids
            truncated += bool(encoding.overflowing)
        return Encoded(ids, truncated, sum(not text.strip() for text in texts))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return {
            "kind": "huggingface",
            "max_length": self.max_length,
            "padding": self.padding,
            "tokenizer": self.content,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HuggingFaceTokenizer:
        """Build from the mapping that `to_dict` made.

        Raises:
            LoadError: a value is missing or impossible.
            MissingExtraError: tokenizers is not installed.
        """
        try:
            return cls(str(values["tokenizer"]), int(values["max_length"]), int(values["padding"]))
        except (KeyError, TypeError, ValueError, UsageError) as e:
            raise LoadError(f"not a Hugging Face tokenizer: {e!r:.200}") from e

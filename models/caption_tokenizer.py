"""A CLIP's tokenizer in the form that exported text models come with. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import LoadError
from edgekit.models.text_tokenizer import MAX_LENGTH, MAX_MERGES, Encoded
from edgekit.models.tokenizer import Tokenizer, tokenizer_from_dict

KIND = "clip"
_FEWEST_IDS = 3


class CaptionTokenizer:
    """A `TextTokenizer` (edgekit.models.text_tokenizer) that cuts texts as the CLIP does whose tokenizer it wraps."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.tokenizer.vocab_size

    @property
    def max_length(self) -> int:
        """Ids per text."""
        return self.tokenizer.context_length

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Return ids (N, L) int32; start and end mark are never cut."""
        lengths = [len(self.tokenizer.encode(text)) for text in texts]
        ids = self.tokenizer(texts).astype(np.int32)
        return Encoded(ids, sum(length > self.max_length - 2 for length in lengths), lengths.count(0))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `text_tokenizer_from_dict` reads back."""
        return {"kind": KIND, "tokenizer": self.tokenizer.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CaptionTokenizer:
        """Build from the mapping that `to_dict` made.

        Raises:
            LoadError: not such a mapping, or one of an impossible size; it also comes out of files that others wrote.
        """
        inner = values.get("tokenizer")
        if not isinstance(inner, dict):
            raise LoadError("not a CLIP's tokenizer: it holds no mapping")
        length, merges = inner.get("context_length"), inner.get("merges", [])
        if not isinstance(length, int) or not _FEWEST_IDS <= length <= MAX_LENGTH:
            raise LoadError(
                f"a CLIP's tokenizer of {length!r:.20} ids per text; needed is {_FEWEST_IDS} to {MAX_LENGTH}"
            )
        if not isinstance(merges, list) or len(merges) > MAX_MERGES:
            raise LoadError(f"a CLIP's tokenizer needs a list of at most {MAX_MERGES} merges")
        return cls(tokenizer_from_dict(inner))

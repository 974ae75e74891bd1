"""Golden vectors of a text classifier: real texts, their ids, and PyTorch's outputs. Knows no torch."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.errors import LoadError, VerificationError
from edgekit.export.golden import INPUTS, unpack
from edgekit.export.manifest import GOLDEN_FILE, TextManifest, resolve, sha256_of
from edgekit.export.session import FloatArray
from edgekit.models.text_tokenizer import Ids, TextTokenizer, text_tokenizer_from_json

TOKENIZER_FILE = "tokenizer.json"
_MAX_TOKENIZER_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TextGolden:
    """What a bundle is verified with.

    Attributes:
        ids: (n, L) int32.
        outputs: PyTorch's outputs for them, by name.
        texts: n texts, of which the bundle's tokenizer makes `ids`.
    """

    ids: Ids
    outputs: Mapping[str, FloatArray]
    texts: tuple[str, ...]

    @classmethod
    def first(cls, ids: Ids, outputs: Mapping[str, FloatArray], texts: Sequence[str]) -> TextGolden:
        """Keep as many as a bundle holds, the first ones."""
        return cls(ids[:INPUTS], {name: rows[:INPUTS] for name, rows in outputs.items()}, tuple(texts[:INPUTS]))


def write_text_golden(path: Path, golden: TextGolden) -> None:
    """Write golden.npz: tokens, output.<name>, text.<number> (UTF-8 bytes as uint8)."""
    arrays: dict[str, NDArray[Any]] = {"tokens": golden.ids}
    arrays |= {f"output.{name}": values for name, values in golden.outputs.items()}
    # a first byte keeps an empty text from being an empty array
    arrays |= {f"text.{n}": np.frombuffer(b" " + text.encode(), np.uint8) for n, text in enumerate(golden.texts)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    atomic.write_bytes(path, buffer.getvalue())


def read_text_golden(path: Path) -> TextGolden:
    """Read golden.npz.

    Raises:
        LoadError: not there, damaged, larger than golden vectors are, or not golden vectors of texts.
    """
    try:
        arrays = unpack(path)
        ids = arrays["tokens"]
        if ids.dtype != np.int32 or ids.ndim != 2 or not ids.size:
            raise ValueError(f"tokens are {ids.dtype} {ids.shape}")
        outputs = {
            n.removeprefix("output."): a.astype(np.float32) for n, a in arrays.items() if n.startswith("output.")
        }
        if not outputs or any(a.ndim != 2 or not a.size or len(a) != len(ids) for a in outputs.values()):
            raise ValueError(f"outputs of the shapes {[a.shape for a in outputs.values()]} for {len(ids)} texts")
        texts = tuple(arrays[f"text.{number}"].tobytes()[1:].decode() for number in range(len(ids)))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError) as e:
        raise LoadError(f"{path.name} holds no golden vectors of texts: {e}") from e
    return TextGolden(ids, outputs, texts)


def keep_proof(folder: Path, golden: TextGolden, tokenizer: TextTokenizer) -> TextGolden:
    """Write the golden vectors and the tokenizer to a bundle; return the vectors as a verifier will read them.

    Raises:
        VerificationError: read back, the tokenizer makes other ids of the texts.
    """
    write_text_golden(folder / GOLDEN_FILE, golden)
    atomic.write_text(folder / TOKENIZER_FILE, json.dumps(tokenizer.to_dict()))
    kept = read_text_golden(folder / GOLDEN_FILE)
    again = text_tokenizer_from_json((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    if not np.array_equal(again(kept.texts).ids, kept.ids):
        raise VerificationError(f"read back, {TOKENIZER_FILE} makes other ids of the same texts")
    return kept


def bundled_tokenizer(bundle: Path, manifest: TextManifest) -> TextTokenizer:
    """Read the tokenizer of a bundle.

    Raises:
        LoadError: not there, not the file that was exported, or not one for the ids that the files take.
        VerificationError: the manifest's path leads out of the bundle.
    """
    path = resolve(bundle, manifest.input.tokenizer)
    if not path.is_file() or path.stat().st_size > _MAX_TOKENIZER_BYTES:
        raise LoadError(f"{manifest.input.tokenizer} is missing, or too large for a tokenizer")
    if sha256_of(path) != manifest.input.tokenizer_sha256:
        raise LoadError(f"{manifest.input.tokenizer} is not the file that was exported: its sha256 differs")
    try:
        tokenizer = text_tokenizer_from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as e:
        raise LoadError(f"{manifest.input.tokenizer} is not UTF-8") from e
    if tokenizer.max_length != manifest.input.length:
        raise LoadError(
            f"{manifest.input.tokenizer} is of another model: it gives {tokenizer.max_length} ids per text, the files "
            f"take {manifest.input.length}"
        )
    return tokenizer

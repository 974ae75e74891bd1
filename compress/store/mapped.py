"""Read the tensors of a safetensors file by a memory map: nothing is loaded but the rows that are asked for."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import LoadError

_DTYPES = {
    "F16": "<f2", "F32": "<f4", "BOOL": "|b1",
    "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
_LONGEST_HEADER = 1 << 20  # bytes; ours have a few hundred


class TooManyOpenError(LoadError):
    """This process may open no more files; nothing is wrong with the one that was asked for (exit 3)."""


class MappedTensors:
    """The tensors of one safetensors file.

    Args:
        path: the file.

    Attributes:
        arrays: read-only views of the map, by name.

    Raises:
        LoadError: not there, truncated, or not such a file; the message says only what is wrong with it.
        TooManyOpenError: the system's limit is reached.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:  # ValueError: an empty file cannot be mapped
            raise _refusal(path, e) from e
        self.arrays = _arrays(self._map)

    def release(self) -> None:
        """Let the system take the pages back that were read, so that memory does not grow with what is visited.

        They stay in the page cache as long as there is room; reading them again costs a page fault, no disk access.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file, read in pieces.

    Raises:
        LoadError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as e:
        raise _refusal(path, e) from e
    return digest.hexdigest()


def _refusal(path: Path, error: OSError | ValueError) -> LoadError:
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return TooManyOpenError(f"{path} cannot be opened: this process may open no more files; raise `ulimit -n`")
    return LoadError(str(getattr(error, "strerror", None) or error))


def _arrays(content: mmap.mmap) -> dict[str, NDArray[Any]]:
    """Return the arrays that the header names: 8 bytes of its length, JSON, then the tensors (safetensors' format)."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(_LONGEST_HEADER, len(content) - 8):
        raise LoadError("no safetensors header")
    start, arrays = 8 + length, {}
    try:
        header = json.loads(content[8:start])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(int(side) for side in entry["shape"])
            begin, end = (start + int(offset) for offset in entry["data_offsets"])
            if min(shape, default=0) < 0 or end > len(content) or end - begin != math.prod(shape) * dtype.itemsize:
                raise LoadError(f"'{name}' does not fit into the file")
            # through a read-only buffer of the map: numpy copies nothing
            arrays[name] = np.frombuffer(content, dtype, math.prod(shape), begin).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise LoadError(f"its header is damaged ({e})") from e
    return arrays

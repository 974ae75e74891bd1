"""Read the weight file of an ML Program (Core ML's "MIL blob storage", version 2) without trusting it.

Layout, little endian, everything aligned to 64 bytes: a header (count, version), then for each tensor a metadata block
and its data. A program points at the metadata block. coremltools has a native reader, but it trusts sizes and offsets;
this one checks each against the file before touching it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import LoadError

_MAX_MESSAGE = 600
_VERSION = 2
_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II")
_METADATA = struct.Struct("<IIQQQ")
_CODES = {
    1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1", 10: "uint2",
    11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip
"""Type codes of MILBlob's BlobDataType."""

BITS: dict[str, int] = {
    "fp16": 16, "fp32": 32, "fp64": 64, "int8": 8, "int16": 16, "int32": 32, "int64": 64, "uint8": 8, "uint16": 16,
    "uint32": 32, "uint64": 64, "int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "bool": 8,
}  # fmt: skip
"""Bits that one element of each MIL type takes in a file."""


class PackageError(LoadError):
    """An .mlpackage is damaged, incomplete, too large, or holds something else than an ML Program (exit 3).

    Messages quote names out of the file, so they are cut to one printable line: a file must not write to the terminal.
    """

    def __init__(self, message: str) -> None:
        line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in message)
        super().__init__(line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + "…")


def numpy_type(dtype: str) -> np.dtype[np.generic]:
    """Return the numpy type that holds a MIL type; types below 8 bits are held one element per byte."""
    if dtype == "bool":
        return np.dtype(np.bool_)
    if BITS[dtype] < 8:
        return np.dtype(np.int8 if dtype == "int4" else np.uint8)
    return np.dtype({"fp16": "float16", "fp32": "float32", "fp64": "float64"}.get(dtype, dtype))


def packed_size(count: int, dtype: str) -> int:
    """Return the bytes that `count` elements take, packed."""
    return (count * BITS[dtype] + 7) // 8


def decode(raw: bytes | NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Decode packed little-endian elements into an array of `shape`; elements below 8 bits start at the low bit.

    Raises:
        PackageError: there are fewer or more bytes than the shape needs.
    """
    count = int(np.prod(shape, dtype=np.int64))
    packed = np.frombuffer(raw, np.uint8)
    if packed.size != packed_size(count, dtype):
        raise PackageError(
            f"a {dtype} tensor of shape {shape} has {packed.size} bytes, not {packed_size(count, dtype)}"
        )
    if BITS[dtype] >= 8:
        return packed.view(numpy_type(dtype)).reshape(shape).copy()
    return unpack_bits(packed, BITS[dtype], count, signed=dtype == "int4").reshape(shape)


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int, *, signed: bool = False) -> NDArray[np.generic]:
    """Return `count` integers of `bits` bits each, packed from the lowest bit of the first byte upwards, as 8-bit ones.

    Raises:
        PackageError: there are fewer bytes than that takes.
    """
    if packed.size * 8 < count * bits:
        raise PackageError(f"{count} values of {bits} bits do not fit in {packed.size} bytes")
    planes = np.unpackbits(packed, bitorder="little", count=count * bits).reshape(count, bits)
    values = np.packbits(planes, axis=1, bitorder="little").reshape(count)  # short rows are filled with zero bits
    if not signed:
        return values
    shift = 8 - bits
    return (values << shift).view(np.int8) >> shift


@dataclass(frozen=True)
class BlobFile:
    """An open weight file: its name in the package and its bytes, mapped, not read."""

    name: str
    content: NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path) -> BlobFile:
        """Map a weight file.

        Raises:
            PackageError: it is absent, unreadable, or not a version 2 blob file.
        """
        try:
            content = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
        except (OSError, ValueError) as e:
            raise PackageError(f"cannot read the weight file {path}: {e}. Export the model again.") from e
        if len(content) < _HEADER.size or _HEADER.unpack(content[: _HEADER.size].tobytes())[1] != _VERSION:
            raise PackageError(f"{path} is not a Core ML weight file (version {_VERSION}). Export the model again.")
        return cls(path.name, content)

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Return the tensor whose metadata block stands at `offset`, after checking it against what the program says.

        Raises:
            PackageError: the block or its data is outside the file, or is of another type or size.
        """
        end = offset + _METADATA.size
        if offset < 0 or end > len(self.content):
            raise PackageError(f"{self.name}: offset {offset} is outside the file of {len(self.content)} bytes")
        sentinel, code, size, start, _ = _METADATA.unpack(self.content[offset:end].tobytes())
        if sentinel != _SENTINEL:
            raise PackageError(f"{self.name}: no tensor at offset {offset}; the file and the program do not match")
        if _CODES.get(code) != dtype:
            stored = _CODES.get(code, f"type {code}")
            raise PackageError(f"{self.name}: the tensor at offset {offset} is {stored}, the program says {dtype}")
        if start + size > len(self.content):
            raise PackageError(f"{self.name}: the tensor at offset {offset} ends outside the file; it is cut short")
        try:
            return decode(self.content[start : start + size], dtype, shape)
        except PackageError as e:
            raise PackageError(f"{self.name}, offset {offset}: {e}") from e

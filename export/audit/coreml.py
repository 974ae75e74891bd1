"""What an .mlpackage is, read from the package itself. Nothing here runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.export.audit.record import (
    CONVERT,
    INT8,
    UNKNOWN,
    UNPACK,
    Audit,
    Op,
    Port,
    RuntimeAudit,
    WeightCounter,
)
from edgekit.export.mil.package import Package, read_package
from edgekit.export.mil.program import Constant, Operation
from edgekit.export.runtimes import size_bytes

COUNTED = (
    "int8: between a dequantize of computed codes and a quantize (products: inputs are enough); constexpr operations "
    "unpack stored weights, whose arithmetic stays that of the operation"
)
METADATA_PREFIX = "edgekit."
_TARGETS: Mapping[int, str] = {
    4: "iOS 13, macOS 10.15", 5: "iOS 14, macOS 11", 6: "iOS 15, macOS 12", 7: "iOS 16, macOS 13",
    8: "iOS 17, macOS 14", 9: "iOS 18, macOS 15", 10: "iOS 26, macOS 26",
}  # fmt: skip
"""Core ML specification version -> deployment target."""

_COLOURS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
_ARRAYS = {65552: "fp16", 65568: "fp32", 65600: "fp64", 131080: "int8", 131104: "int32"}
_PRODUCTS: Mapping[str, tuple[str, str]] = {
    # operation -> its input and its weight
    "conv": ("x", "weight"), "conv_transpose": ("x", "weight"), "linear": ("x", "weight"), "matmul": ("x", "y"),
    "scaled_dot_product_attention": ("query", "key"),
}  # fmt: skip
_UNCOUNTED = ("einsum", "gru", "lstm", "rnn")
_DATA = ("data", "nonzero_data", "indices", "quantized_data")
"""Parameters of the constexpr operations that hold the weights; the rest are scales, offsets, look-up tables, masks."""


def audit_coreml(path: Path) -> Audit:
    """Audit an .mlpackage with an ML Program.

    Raises:
        PackageError: damaged, or of another kind; the message says which.
        MissingExtraError: coremltools is not installed.
    """
    package = read_package(path)
    reader = _Reader(package)
    description = package.description
    texts = dict(description.metadata.userDefined)
    counter = reader.weights()
    return Audit(
        path=str(path),
        format="coreml",
        size_bytes=size_bytes(path),
        made_by=_made_by(package, texts),
        inputs=tuple(_port(feature) for feature in description.input),
        outputs=tuple(_port(feature) for feature in description.output),
        metadata={k.removeprefix(METADATA_PREFIX): v for k, v in texts.items() if k.startswith(METADATA_PREFIX)},
        weights=counter.weights(),
        quantization_bytes=counter.quantization_bytes,
        ops=tuple(reader.ops()),
        boundaries=reader.boundaries(),
        counted=COUNTED,
    )


def audit_core_ml_runtime(_: Path) -> RuntimeAudit:
    """Say what runs a package here, without opening it.

    Which compute unit takes which operation only Apple's own runtime can tell.
    """
    note = "not run on Apple hardware: which compute unit takes an operation is unknown here"
    return RuntimeAudit("mil", version("coremltools"), "interpreter", note=note)


class _Reader:
    """Walks one program."""

    def __init__(self, package: Package) -> None:
        self.program = package.program
        self.producers = {name: op for op in self.program.operations for name, _ in op.outputs}
        self.types = {name: kind for op in self.program.operations for name, kind in op.outputs} | dict(
            self.program.inputs
        )
        self.consumers: dict[str, list[Operation]] = {}
        for op in self.program.operations:
            for name in _names(op):
                self.consumers.setdefault(name, []).append(op)

    def weights(self) -> WeightCounter:
        """Count float and coded constants; scales, offsets and look-up tables apart."""
        counter = WeightCounter()
        seen: set[str] = set()
        for op in self.program.operations:
            for key, arguments in op.inputs.items():
                for argument in arguments:
                    constant = self.program.constants.get(argument) if isinstance(argument, str) else argument
                    if constant is None or (isinstance(argument, str) and argument in seen):
                        continue
                    seen |= {argument} if isinstance(argument, str) else set()
                    self._count(counter, op, key, constant)
        return counter

    def _count(self, counter: WeightCounter, op: Operation, key: str, constant: Constant) -> None:
        dtype, elements = constant.type.dtype, int(np.size(constant.value))
        if op.type.startswith("constexpr_"):
            if key in _DATA:
                counter.add(*_palette(op, elements, dtype), constant.stored_bytes)
            elif dtype not in ("string", "bool", "int32"):
                counter.quantization_bytes += constant.stored_bytes
        elif op.type in ("quantize", "dequantize"):
            counter.quantization_bytes += constant.stored_bytes if dtype not in ("string", "int32") else 0
        elif dtype in ("fp16", "fp32", "fp64", "int8", "uint8") and elements > 1:
            counter.add(dtype, elements, constant.stored_bytes)

    def ops(self) -> Iterator[Op]:
        """Yield the operations in order, those that unpack weights included."""
        for op in self.program.operations:
            weighted = op.type in _PRODUCTS and self._is_stored(op.inputs.get(_PRODUCTS[op.type][1], ()))
            yield Op(op.type, self._arithmetic(op), self._macs(op), weighted)

    def boundaries(self) -> dict[str, int]:
        """Count the changes of representation: quantize, dequantize, casts, and each kind of weight unpacking."""
        found: dict[str, int] = {}
        for op in self.program.operations:
            if op.type in ("quantize", "dequantize", "cast") or op.type.startswith("constexpr_"):
                found[op.type] = found.get(op.type, 0) + 1
        return found

    def _arithmetic(self, op: Operation) -> str:
        if op.type.startswith("constexpr_"):
            return UNPACK
        if op.type in ("quantize", "dequantize", "cast"):
            return UNPACK if self._is_stored(op.inputs.get("input", ())) else CONVERT
        keys = _PRODUCTS.get(op.type)
        data = [name for name in _names(op, keys) if not self._is_stored((name,))]
        coded = bool(data) and all(self._is_made_by(name, "dequantize") for name in data)
        if coded and (keys or all(self._goes_to_codes(name) for name, _ in op.outputs)):
            return INT8 if not keys or self._weight_is_coded(op, keys[1]) else self._float(op)
        return self._float(op)

    def _float(self, op: Operation) -> str:
        return op.outputs[0][1].dtype if op.outputs else UNKNOWN

    def _weight_is_coded(self, op: Operation, key: str) -> bool:
        name = next((a for a in op.inputs.get(key, ()) if isinstance(a, str)), "")
        producer = self.producers.get(name)
        return producer is not None and (producer.type == "dequantize" or producer.type.startswith("constexpr_"))

    def _goes_to_codes(self, name: str) -> bool:
        readers = self.consumers.get(name, [])
        return bool(readers) and all(reader.type == "quantize" for reader in readers)

    def _is_made_by(self, name: str, kind: str) -> bool:
        producer = self.producers.get(name)
        return producer is not None and producer.type == kind

    def _is_stored(self, arguments: tuple[str | Constant, ...]) -> bool:
        """Whether a value is a constant, or unpacked from one."""
        for argument in arguments:
            if isinstance(argument, Constant) or argument in self.program.constants:
                return True
            producer = self.producers.get(argument)
            if producer is not None and producer.type.startswith("constexpr_"):
                return True
            if producer is not None and producer.type in ("cast", "transpose", "reshape", "dequantize"):
                source = "input" if producer.type == "dequantize" else "x"
                return self._is_stored(producer.inputs.get(source, ()))
        return False

    def _macs(self, op: Operation) -> int | None:
        if op.type not in _PRODUCTS:
            return None if op.type in _UNCOUNTED else 0
        x, weight = (self._shape(op.inputs.get(key, ())) for key in _PRODUCTS[op.type])
        out = _fixed(op.outputs[0][1].shape) if op.outputs else None
        if not x or not weight or not out:
            return None
        if op.type == "conv_transpose":
            return math.prod(x) * math.prod(weight[1:])
        if op.type == "matmul":
            flipped = op.inputs.get("transpose_x", ())
            return math.prod(out) * x[-2 if self._is_true(flipped) else -1]
        if op.type == "scaled_dot_product_attention":  # Q·Kᵀ and P·V
            return math.prod(x[:-1]) * weight[-2] * (x[-1] + out[-1])
        return math.prod(out) * math.prod(weight[1:])

    def _is_true(self, arguments: tuple[str | Constant, ...]) -> bool:
        for argument in arguments:
            constant = self.program.constants.get(argument) if isinstance(argument, str) else argument
            return constant is not None and bool(np.all(np.asarray(constant.value)))
        return False

    def _shape(self, arguments: tuple[str | Constant, ...]) -> tuple[int, ...] | None:
        for argument in arguments:
            if isinstance(argument, Constant):
                return _fixed(argument.type.shape)
            if argument in self.program.constants:
                return _fixed(self.program.constants[argument].type.shape)
            if argument in self.types:
                return _fixed(self.types[argument].shape)
        return None


def _palette(op: Operation, elements: int, dtype: str) -> tuple[str, int]:
    """Return the dtype and number of a constexpr operation's weights.

    Until iOS 18 the indices of a palette were packed into bytes: their width shows in the length of the palette.
    """
    table = next((a for a in op.inputs.get("lut", ()) if isinstance(a, Constant)), None)
    dense = _fixed(op.outputs[0][1].shape) if op.outputs else None
    if op.type != "constexpr_lut_to_dense" or table is None or not dense or table.type.shape == () or dtype != "uint8":
        return dtype, elements
    entries = int(np.size(table.value)) if len(table.type.shape) == 1 else 256
    return f"uint{max(entries - 1, 1).bit_length()}", math.prod(dense)


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """Return a shape without free sizes; a free batch counts as 1."""
    sides = [1 if side is None and at == 0 else side for at, side in enumerate(shape)]
    return None if None in sides else tuple(int(side) for side in sides if side is not None)


def _names(op: Operation, keys: tuple[str, ...] | None = None) -> list[str]:
    chosen = op.inputs.values() if keys is None else [op.inputs.get(key, ()) for key in keys]
    return [argument for arguments in chosen for argument in arguments if isinstance(argument, str)]


def _made_by(package: Package, texts: Mapping[str, str]) -> dict[str, str]:
    opset = package.program.opset
    spec = {"CoreML5": 6, "CoreML6": 7, "CoreML7": 8, "CoreML8": 9, "CoreML9": 10}.get(opset, 0)
    made = {"target": _TARGETS.get(spec, "unknown"), "opset": opset}
    for key, label in (("com.github.apple.coremltools.version", "coremltools"),
                       ("com.github.apple.coremltools.source", "from")):  # fmt: skip
        if key in texts:
            made[label] = texts[key]
    return made


def _port(feature: Any) -> Port:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        return Port(feature.name, (int(image.height), int(image.width)), "image", _COLOURS.get(image.colorSpace, ""))
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        return Port(feature.name, tuple(int(side) for side in array.shape), _ARRAYS.get(array.dataType, UNKNOWN))
    return Port(feature.name, (), {"dictionaryType": "dictionary", "stringType": "string"}.get(kind, str(kind)))

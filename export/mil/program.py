"""The program inside an .mlpackage, as plain data: operations, constants, inputs and outputs.

Parsed from the protobuf messages themselves rather than through coremltools' program builder: the parse then has no
opinion of its own about what an operation computes, and a damaged file cannot make it compute anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.export.mil.blob import PackageError, decode, numpy_type, packed_size

MAX_ELEMENTS = 2**28
"""Elements of one tensor; 1 GiB of float32. The largest CLIP weight has 2^25."""

DTYPES: Mapping[int, str] = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 12: "fp64", 21: "int8", 22: "int16", 23: "int32", 24: "int64",
    25: "int4", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64", 35: "uint4", 36: "uint2", 37: "uint1",
    38: "uint6", 39: "uint3",
}  # fmt: skip
"""MIL.proto's DataType."""

Value = NDArray[np.generic] | str | tuple[str, ...]
ReadBlob = Callable[[str, int, str, tuple[int, ...]], NDArray[np.generic]]
"""(file name, offset, dtype, shape) -> tensor"""


@dataclass(frozen=True)
class TensorType:
    """A tensor's type.

    Attributes:
        dtype: MIL name: fp32, fp16, int32, bool, uint4, ...; "string", or "dictionary" for a classifier's scores.
        shape: sizes, None where free.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Say whether a tensor of `shape` is of this type."""
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class Constant:
    """A value stored in the package.

    Attributes:
        type: as stored; types below 8 bits are held one element per byte.
        value: the decoded array, a string, or a classifier's list of class names.
        stored_bytes: what it takes in the package.
    """

    type: TensorType
    value: Value
    stored_bytes: int


Argument = str | Constant


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        type: MIL name, e.g. "conv".
        index: its place among the program's operations, constants not counted.
        inputs: parameter -> arguments; each is the name of a tensor or a constant.
        outputs: names and types of what it gives.
    """

    type: str
    index: int
    inputs: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[tuple[str, TensorType], ...]

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        name = self.outputs[0][0] if self.outputs else "(no output)"
        return f"operation {self.index} '{self.type}' that gives '{name}'"


@dataclass(frozen=True)
class Program:
    """A whole program: constants by name, and the operations in the order of execution."""

    opset: str
    inputs: Mapping[str, TensorType]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]
    operations: tuple[Operation, ...]

    def producer(self, name: str) -> Operation | None:
        """Return the operation that gives the tensor `name`, None for inputs and constants."""
        return next((op for op in self.operations if any(out == name for out, _ in op.outputs)), None)


def parse_program(message: Any, function: str, read_blob: ReadBlob) -> Program:
    """Turn a MILSpec.Program message into a Program.

    Raises:
        PackageError: the function is absent, or a value is malformed or too large.
    """
    if function not in message.functions:
        raise PackageError(f"the program has no function '{function}', only: {', '.join(sorted(message.functions))}")
    body = message.functions[function]
    if body.opset not in body.block_specializations:
        raise PackageError(f"the program has no block for its own opset '{body.opset}'; the file is damaged")
    block = body.block_specializations[body.opset]
    parser = _Parser(read_blob)
    operations = tuple(parser.operations(block.operations))
    return Program(
        opset=body.opset,
        inputs={named.name: _type(named.type) for named in body.inputs},
        outputs=tuple(block.outputs),
        constants=parser.constants,
        operations=operations,
    )


class _Parser:
    def __init__(self, read_blob: ReadBlob) -> None:
        self._read_blob = read_blob
        self.constants: dict[str, Constant] = {}

    def operations(self, messages: Any) -> Iterator[Operation]:
        """Yield the operations; collect those of type "const" into `constants`."""
        index = 0
        for message in messages:
            outputs = tuple((out.name, _type(out.type)) for out in message.outputs)
            if message.type == "const" and "val" in message.attributes and len(outputs) == 1:
                self.constants[outputs[0][0]] = self.constant(message.attributes["val"])
                continue
            inputs = {
                key: tuple(self._argument(binding) for binding in argument.arguments)
                for key, argument in message.inputs.items()
            }
            # until iOS 18 the parameters of constexpr operations are attributes
            attributes = {key: (self.constant(v),) for key, v in message.attributes.items() if key != "name"}
            yield Operation(message.type, index, {**attributes, **inputs}, outputs)
            index += 1

    def _argument(self, binding: Any) -> Argument:
        return str(binding.name) if binding.WhichOneof("binding") == "name" else self.constant(binding.value)

    def constant(self, message: Any) -> Constant:
        """Decode a Value message."""
        if message.WhichOneof("value") == "blobFileValue":
            blob, stored = message.blobFileValue, _type(message.type)
            shape = _fixed(stored)
            array = self._read_blob(blob.fileName, blob.offset, stored.dtype, shape)
            return Constant(stored, array, packed_size(array.size, stored.dtype))
        immediate = message.immediateValue
        if immediate.WhichOneof("value") == "list":
            return _names(immediate.list.values)
        if immediate.WhichOneof("value") != "tensor":
            raise PackageError(f"a constant holds a {immediate.WhichOneof('value') or 'nothing'}, not a tensor")
        return _immediate(immediate.tensor, _type(message.type))


def _immediate(tensor: Any, stored: TensorType) -> Constant:
    field = tensor.WhichOneof("value")
    if field is None:
        raise PackageError("a constant holds no value; the file is damaged")
    values = getattr(tensor, field).values
    shape = _fixed(stored)
    if stored.dtype == "string":
        if field != "strings" or len(values) != 1:
            raise PackageError("a string constant does not hold one string; the file is damaged")
        return Constant(stored, str(values[0]), len(values[0]))
    if field == "strings" or (field == "bytes") != isinstance(values, bytes):
        raise PackageError(f"a constant of type {stored.dtype} holds {field}; the file is damaged")
    if isinstance(values, bytes):
        return Constant(stored, decode(values, stored.dtype, shape), len(values))
    if len(values) != math.prod(shape):
        raise PackageError(f"a constant of shape {shape} holds {len(values)} values; the file is damaged")
    with np.errstate(all="ignore"):  # a damaged file may hold numbers that its type does not
        array = np.asarray(values).astype(numpy_type(stored.dtype)).reshape(shape)
    return Constant(stored, array, array.nbytes)


def _names(values: Any) -> Constant:
    """Decode a classifier's list of class names, strings or integers."""
    names = []
    for value in values:
        tensor = value.immediateValue.tensor
        field = tensor.WhichOneof("value")
        items: Any = getattr(tensor, field).values if field else []
        if field == "bytes":
            items = np.frombuffer(items, np.int64).tolist()
        names += [str(item) for item in items]
    return Constant(TensorType("string", (len(names),)), tuple(names), sum(map(len, names)))


def _type(message: Any) -> TensorType:
    kind = message.WhichOneof("type")
    if kind == "dictionaryType":
        return TensorType("dictionary")
    if kind == "listType":
        return TensorType("list")
    if kind != "tensorType":
        raise PackageError(f"a value is of type '{kind}', which is not supported; allowed: tensors, strings, classes")
    dtype = DTYPES.get(message.tensorType.dataType)
    if dtype is None:
        raise PackageError(f"a tensor has the element type {message.tensorType.dataType}, which is not supported")
    shape = tuple(
        int(dim.constant.size) if dim.WhichOneof("dimension") == "constant" else None
        for dim in message.tensorType.dimensions
    )
    # an unsigned 64-bit size times another may wrap in numpy; Python integers do not
    if math.prod(size for size in shape if size is not None) > MAX_ELEMENTS:
        raise PackageError(f"a tensor of shape {shape} has more than the allowed {MAX_ELEMENTS} elements")
    return TensorType(dtype, shape)


def _fixed(tensor: TensorType) -> tuple[int, ...]:
    shape = tuple(size for size in tensor.shape if size is not None)
    if len(shape) != len(tensor.shape):
        raise PackageError(f"a constant has the open shape {tensor.shape}; the file is damaged")
    return shape

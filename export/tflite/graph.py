"""Read, change and write the graph of a .tflite file: the thin layer over LiteRT's FlatBuffer object API.

Knows no torch and no TensorFlow. The schema's classes are generated code without types; here they get names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.atomic import write_bytes
from edgekit.errors import LoadError, MissingExtraError

METADATA_PREFIX = "edgekit."

NUMPY_TYPES: Mapping[str, type[np.generic]] = {
    "FLOAT16": np.float16, "FLOAT32": np.float32, "FLOAT64": np.float64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "BOOL": np.bool_, "COMPLEX64": np.complex64, "COMPLEX128": np.complex128,
}  # fmt: skip
"""Tensor types of the schema that numpy has, too; the others are texts, handles, 4-bit numbers and narrow floats."""

_BUILTIN_OF_OLD_FIELD = 127
"""Operator codes up to 127 are also kept in the 8-bit field that readers older than TensorFlow 2.4 look at."""


def schema() -> Any:
    """Return LiteRT's generated FlatBuffer schema.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as e:
        raise MissingExtraError("ai-edge-litert", "tflite", "Reading a .tflite file") from e
    return schema_py_generated


def _names(codes: Any) -> dict[int, str]:
    """Return code → name of one of the schema's enumerations."""
    return {code: name for name, code in vars(codes).items() if not name.startswith("_")}


class Graph:
    """The main subgraph of a TFLite model, open for change.

    Attributes:
        model: the whole model, LiteRT's `ModelT`.
        tensors, operators: lists of the main subgraph, LiteRT's `TensorT` and `OperatorT`.
    """

    def __init__(self, model: Any) -> None:
        self.schema = schema()
        self.model = model
        self._names = _names(self.schema.BuiltinOperator)
        self._types = _names(self.schema.TensorType)

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Open a .tflite file.

        Raises:
            LoadError: it is not one, or it has more than one subgraph.
        """
        schema()
        from ai_edge_litert.tools import flatbuffer_utils

        try:
            content = path.read_bytes()
            if content[4:8] != b"TFL3":
                raise LoadError(f"{path} is not a TFLite model: it does not carry the mark 'TFL3'.")
            model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        except OSError as e:
            raise LoadError(f"{path} cannot be read: {e.strerror or e}") from e
        except (ValueError, IndexError, TypeError) as e:  # what the generated reader raises on a torn file
            raise LoadError(f"{path} is damaged: {e}") from e
        return cls(model)

    def write(self, path: Path) -> None:
        """Write the model, whole or not at all."""
        write_bytes(path, self.content())

    def content(self) -> bytes:
        """Return the model as the bytes of a .tflite file."""
        from ai_edge_litert.tools import flatbuffer_utils

        return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))

    @property
    def tensors(self) -> list[Any]:
        """Tensors of the main subgraph."""
        tensors: list[Any] = self.model.subgraphs[0].tensors
        return tensors

    @property
    def operators(self) -> list[Any]:
        """Operators of the main subgraph, in the order they run."""
        operators: list[Any] = self.model.subgraphs[0].operators
        return operators

    @operators.setter
    def operators(self, operators: list[Any]) -> None:
        self.model.subgraphs[0].operators = operators

    @property
    def inputs(self) -> list[int]:
        """Indices of the input tensors."""
        return [int(index) for index in self.model.subgraphs[0].inputs]

    @property
    def outputs(self) -> list[int]:
        """Indices of the output tensors."""
        return [int(index) for index in self.model.subgraphs[0].outputs]

    def name(self, operator: Any) -> str:
        """Return the operator's builtin name, e.g. "CONV_2D"."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        name: str = self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        return name

    def constant(self, index: int) -> NDArray[Any] | None:
        """Return the content of a constant tensor, None for a computed one.

        Raises:
            LoadError: it is of a type that numpy has not, such as codes of 4 bits.
        """
        if not self.is_constant(index):
            return None
        tensor = self.tensors[index]
        kind = self._types.get(tensor.type, f"type {tensor.type}")
        if kind not in NUMPY_TYPES:
            name = bytes(tensor.name or b"").decode(errors="replace")
            raise LoadError(f"the constant '{name}' is {kind}; edgekit reads {', '.join(NUMPY_TYPES)}")
        raw = np.asarray(self.model.buffers[tensor.buffer].data, dtype=np.uint8).tobytes()
        return np.frombuffer(raw, dtype=NUMPY_TYPES[kind]).reshape(list(tensor.shape))

    def is_constant(self, index: int) -> bool:
        """Tell whether a tensor's content is in the file; -1 stands for an input that is left out."""
        content = self.model.buffers[self.tensors[index].buffer].data if index >= 0 else None
        return content is not None and len(content) > 0

    def shape(self, tensor: int) -> list[int]:
        """Return a tensor's shape."""
        return [int(side) for side in self.tensors[int(tensor)].shape]

    def remove(self, operators: list[Any]) -> None:
        """Take operators out of the graph; the caller has rewired their readers."""
        gone = {id(operator) for operator in operators}
        self.operators = [operator for operator in self.operators if id(operator) not in gone]

    def add_tensor(self, like: int, dtype: str, suffix: str, content: NDArray[Any] | None = None) -> int:
        """Add a tensor of the shape of `like` and type `dtype` (schema name); return its index."""
        source = self.tensors[like]
        tensor = self.schema.TensorT()
        tensor.shape = list(source.shape)
        tensor.type = getattr(self.schema.TensorType, dtype)
        tensor.name = bytes(source.name) + suffix.encode()
        tensor.buffer = 0
        if content is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(content).tobytes(), dtype=np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add_tensor_like(self, tensor: int) -> int:
        """Add a computed tensor of the same shape, type and codes; return its index."""
        source = self.tensors[tensor]
        copied = self.schema.TensorT()
        copied.shape, copied.type, copied.quantization = list(source.shape), source.type, source.quantization
        copied.name, copied.buffer = bytes(source.name) + b"_part", 0
        self.tensors.append(copied)
        return len(self.tensors) - 1

    def add_constant(self, content: NDArray[np.int32]) -> int:
        """Add an int32 constant; return its index."""
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(content.tobytes(), dtype=np.uint8)
        self.model.buffers.append(buffer)
        tensor = self.schema.TensorT()
        tensor.shape, tensor.type = list(content.shape), self.schema.TensorType.INT32
        tensor.name, tensor.buffer = f"constant_{len(self.tensors)}".encode(), len(self.model.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def set_quantization(self, index: int, scale: Iterable[float], zero_point: int, axis: int = 0) -> None:
        """Give a tensor its scale (one, or one per channel of `axis`) and zero point."""
        parameters = self.schema.QuantizationParametersT()
        parameters.scale = [float(value) for value in scale]
        parameters.zeroPoint = [zero_point] * len(parameters.scale)
        parameters.quantizedDimension = axis
        self.tensors[index].quantization = parameters

    def code(self, name: str, version: int) -> int:
        """Return the index of the operator code `name` in `version`, adding it if need be."""
        builtin = getattr(self.schema.BuiltinOperator, name)
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, version
        code.deprecatedBuiltinCode = min(builtin, _BUILTIN_OF_OLD_FIELD)
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def operator(self, name: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        """Build an operator without options; the caller places it."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.code(name, version)
        operator.inputs, operator.outputs = inputs, outputs
        return operator

    def operator_like(self, operator: Any, inputs: list[int], outputs: list[int]) -> Any:
        """Build an operator of the same code and options on other tensors; the caller places it."""
        copied = self.schema.OperatorT()
        copied.opcodeIndex = operator.opcodeIndex
        copied.builtinOptionsType, copied.builtinOptions = operator.builtinOptionsType, operator.builtinOptions
        copied.inputs, copied.outputs = inputs, outputs
        return copied

    def metadata(self) -> dict[str, str]:
        """Return the texts that edgekit stored in the file."""
        found = {}
        for entry in self.model.metadata or []:
            name = bytes(entry.name).decode()
            if name.startswith(METADATA_PREFIX):
                content = np.asarray(self.model.buffers[entry.buffer].data, dtype=np.uint8).tobytes()
                found[name.removeprefix(METADATA_PREFIX)] = content.decode()
        return found

    def set_metadata(self, texts: Mapping[str, str]) -> None:
        """Store texts in the model's metadata table under `edgekit.<key>`; they replace those of the same key."""
        kept = [
            entry
            for entry in self.model.metadata or []
            if bytes(entry.name).decode().removeprefix(METADATA_PREFIX) not in texts
        ]
        for key, text in texts.items():
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(text.encode() or b"\0", dtype=np.uint8)
            self.model.buffers.append(buffer)
            entry = self.schema.MetadataT()
            entry.name, entry.buffer = (METADATA_PREFIX + key).encode(), len(self.model.buffers) - 1
            kept.append(entry)
        self.model.metadata = kept

    def name_input(self, name: str) -> None:
        """Rename the only input of the signature; the tensor inside keeps its own name."""
        (entry,) = self.model.signatureDefs[0].inputs
        entry.name = name.encode()

    def name_outputs(self, names: Iterable[str]) -> None:
        """Rename the outputs of the signature, in the order in which the converted function returns them."""
        definition = self.model.signatureDefs[0]
        ordered = sorted(definition.outputs, key=lambda entry: int(bytes(entry.name).decode().rpartition("_")[2]))
        for entry, name in zip(ordered, names, strict=True):
            entry.name = name.encode()

    def compact(self) -> None:
        """Drop the tensors and buffers that nothing refers to, and shorten the names inside the graph.

        Converted tensors carry their whole module path as a name: of a small int8 file that would be a tenth.
        """
        subgraph = self.model.subgraphs[0]
        kept = set(self.inputs) | set(self.outputs)
        for operator in self.operators:
            kept |= {int(tensor) for tensor in (*operator.inputs, *operator.outputs) if tensor >= 0}
        public = set(self.inputs) | set(self.outputs)
        new_index = {old: new for new, old in enumerate(sorted(kept))}
        for old, new in new_index.items():
            if old not in public:
                self.tensors[old].name = f"t{new}".encode()
        subgraph.tensors = [self.tensors[old] for old in sorted(kept)]
        subgraph.inputs = [new_index[old] for old in self.inputs]
        subgraph.outputs = [new_index[old] for old in self.outputs]
        for operator in self.operators:
            operator.inputs = [new_index.get(int(tensor), -1) for tensor in operator.inputs]
            operator.outputs = [new_index[int(tensor)] for tensor in operator.outputs]
        for definition in self.model.signatureDefs or []:
            for entry in (*definition.inputs, *definition.outputs):
                entry.tensorIndex = new_index[int(entry.tensorIndex)]
        self._compact_buffers()

    def _compact_buffers(self) -> None:
        """Keep buffer 0, which is empty by the schema, and those that a tensor or the metadata refers to."""
        holders = [*self.tensors, *(self.model.metadata or [])]
        used = sorted({0} | {int(holder.buffer) for holder in holders})
        new_index = {old: new for new, old in enumerate(used)}
        self.model.buffers = [self.model.buffers[old] for old in used]
        for holder in holders:
            holder.buffer = new_index[int(holder.buffer)]
        self.model.metadataBuffer = None

"""What an audit finds in an artifact, as plain data, and the sums over it. Knows no format and no runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgekit.export.runtimes import Format

INT8, DYNAMIC, CONVERT, UNPACK, UNKNOWN = "int8", "int8-dynamic", "convert", "unpack", "?"
"""Arithmetic of an operation, beside the plain dtypes: 8-bit codes in and out (or 8-bit products summed in integers);
the same, with the activations' codes made while it runs; a change of representation of activations; of stored weights,
which runtimes do once or inside their kernels; not to be told."""

StoredPrecision = Literal[
    "fp64", "fp32", "bf16", "fp16", "int8", "int8-dynamic", "int8-weights", "sub-8-bit", "mixed", "none"
]

BITS: Mapping[str, int] = {
    "fp64": 64, "fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "fp4": 4, "int64": 64, "uint64": 64, "int32": 32,
    "uint32": 32, "int16": 16, "uint16": 16, "int8": 8, "uint8": 8, "uint6": 6, "int4": 4, "uint4": 4, "uint3": 3,
    "int2": 2, "uint2": 2, "uint1": 1, "bool": 8,
}  # fmt: skip
"""Bits of one stored element."""

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: as in the file.
        shape: sizes; a name or None where free.
        dtype: of the values; "image" for a Core ML picture.
        note: what else is known, e.g. "scale 0.0039, zero point 0", "RGB, scaled by 0.0039".
    """

    name: str
    shape: Shape
    dtype: str
    note: str = ""


@dataclass(frozen=True)
class Weights:
    """The stored weights of one dtype: learned values, not scales, zero points, shapes or axes.

    Attributes:
        dtype: as stored.
        tensors, elements: how many.
        size_bytes: what they take in the file.
    """

    dtype: str
    tensors: int
    elements: int
    size_bytes: int


@dataclass(frozen=True)
class Op:
    """One operation of the file.

    Attributes:
        kind: the format's own name, e.g. "Conv", "FULLY_CONNECTED", "linear".
        dtype: what it computes in: a float or integer dtype, or one of the values at the top of this module.
        macs: multiply-accumulates for one picture; 0 where it has none to speak of, None where they cannot be told.
        weighted: it multiplies with stored weights.
    """

    kind: str
    dtype: str
    macs: int | None = 0
    weighted: bool = False


@dataclass(frozen=True)
class Audit:
    """What a file is. `to_dict` is JSON-ready, `from_dict` reads it back.

    Attributes:
        path: the file or package.
        format: onnx, coreml or tflite.
        size_bytes: of the file, or of all files of the package and external data.
        made_by: producer, opset, versions, deployment target: whatever the file says.
        inputs, outputs: the interface.
        metadata: the texts that edgekit keeps in its files; empty for files of others.
        weights: by dtype, the most elements first.
        quantization_bytes: scales, zero points and look-up tables.
        ops: every operation in the order of the file, constants left out, subgraphs included.
        boundaries: changes of representation: how many of each kind.
        counted: how int8 operations were told from float ones.
        notes: whatever a reader must know besides.
    """

    path: str
    format: Format
    size_bytes: int
    made_by: Mapping[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str]
    weights: tuple[Weights, ...]
    quantization_bytes: int
    ops: tuple[Op, ...]
    boundaries: Mapping[str, int]
    counted: str
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of stored weights."""
        return sum(group.elements for group in self.weights)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one picture, of the operations whose shapes are known."""
        return sum(op.macs or 0 for op in self.ops)

    @property
    def precision(self) -> StoredPrecision:
        """What the file really is; see `edgekit.export.audit.audit.stored_precision`."""
        return precision_of(self.weights, self.ops)

    def macs_by_dtype(self) -> dict[str, int]:
        """Return multiply-accumulates by what they are computed in, the most first."""
        return _sums((op.dtype, op.macs or 0) for op in self.ops if op.macs)

    def ops_by_kind(self) -> dict[str, dict[str, int]]:
        """Return numbers of operations: kind -> dtype -> count, the most frequent kinds first."""
        kinds = _sums((op.kind, 1) for op in self.ops)
        return {kind: _sums((op.dtype, 1) for op in self.ops if op.kind == kind) for kind in kinds}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping, sums included."""
        return {
            **asdict(self),
            "precision": self.precision,
            "parameters": self.parameters,
            "macs": self.macs,
            "macs_by_dtype": self.macs_by_dtype(),
            "ops_by_kind": self.ops_by_kind(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Audit:
        """Build from what `to_dict` made."""
        fields: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__}
        for name in ("inputs", "outputs"):
            fields[name] = tuple(Port(**{**port, "shape": tuple(port["shape"])}) for port in values[name])
        fields["weights"] = tuple(Weights(**group) for group in values["weights"])
        fields["ops"] = tuple(Op(**op) for op in values["ops"])
        fields["notes"] = tuple(values["notes"])
        return cls(**fields)


@dataclass(frozen=True)
class RuntimeAudit:
    """What a runtime makes of a file.

    Attributes:
        runtime, version, provider: what opened it.
        kernels: operations after the runtime's own rewriting, by name; empty where it does not tell.
        integer_products: how many convolutions and matrix products it computes in 8-bit integers; None where it does
            not tell.
        facts: what else is known, by name, e.g. "partitions", "fused Q/DQ".
        note: one line for a reader.
    """

    runtime: str
    version: str
    provider: str
    kernels: Mapping[str, int] = field(default_factory=dict)
    integer_products: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


class WeightCounter:
    """Adds up stored tensors by dtype."""

    def __init__(self) -> None:
        self._groups: dict[str, list[int]] = {}
        self.quantization_bytes = 0

    def add(self, dtype: str, elements: int, size_bytes: int | None = None) -> None:
        """Count a tensor of weights."""
        group = self._groups.setdefault(dtype, [0, 0, 0])
        group[0] += 1
        group[1] += elements
        group[2] += size_bytes if size_bytes is not None else stored_bytes(dtype, elements)

    def weights(self) -> tuple[Weights, ...]:
        """Return the groups, the one with the most elements first."""
        found = [Weights(dtype, *sums) for dtype, sums in self._groups.items()]
        return tuple(sorted(found, key=lambda group: -group.elements))


def stored_bytes(dtype: str, elements: int) -> int:
    """Return what elements of a dtype take, packed; 0 for a dtype without a fixed size."""
    return (elements * BITS.get(dtype, 0) + 7) // 8


def precision_of(weights: Sequence[Weights], ops: Sequence[Op]) -> StoredPrecision:
    """Apply the definition of `edgekit.export.audit.audit.stored_precision`."""
    elements = _sums((_storage(group.dtype), group.elements) for group in weights if _storage(group.dtype))
    total = sum(elements.values())
    if not total:
        return "none"
    most = next(iter(elements))
    if 2 * elements[most] <= total:
        return "mixed"
    if most != INT8:
        return most  # type: ignore[return-value]  # the storage classes are StoredPrecision's
    return _int8_kind(ops)


def _int8_kind(ops: Sequence[Op]) -> StoredPrecision:
    """Tell static, dynamic and weight-only 8-bit apart by the multiply-accumulates with weights."""
    weighted = [op for op in ops if op.weighted]
    by_macs = all(op.macs for op in weighted)
    shares = _sums((op.dtype, (op.macs or 0) if by_macs else 1) for op in weighted)
    total = sum(shares.values())
    if 2 * shares.get(INT8, 0) > total:
        return "int8"
    if 2 * (shares.get(INT8, 0) + shares.get(DYNAMIC, 0)) > total:
        return "int8-dynamic"
    return "int8-weights"


def _storage(dtype: str) -> str:
    """Return the storage class of a weight's dtype; "" for biases in int32 and other integers, which decide nothing."""
    bits = BITS.get(dtype, 0)
    if dtype in ("fp64", "fp32", "bf16", "fp16"):
        return dtype
    if dtype in ("int8", "uint8", "fp8"):
        return INT8
    return "sub-8-bit" if 0 < bits < 8 else ""


def _sums(pairs: Any) -> dict[str, int]:
    """Add up (name, count) pairs; the largest sum first, names in order where equal."""
    found: dict[str, int] = {}
    for name, count in pairs:
        found[name] = found.get(name, 0) + count
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

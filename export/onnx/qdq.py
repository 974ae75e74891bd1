"""Put quantize/dequantize pairs into an ONNX graph, the form in which every execution provider reads int8 models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.export.calibration.ranges import least_weight_scale
from edgekit.export.onnx.graph import CONTRIB, FLOAT, OnnxGraph, attribute, of_kind
from edgekit.export.onnx.surgery import Product

Code = Literal["uint8", "int8"]
Range = tuple[float, float]

CODES: tuple[Code, Code] = ("uint8", "int8")
"""Codes of the two sides of a product."""

CLAMPS = ("Relu", "Clip")
"""What a convolution's 8-bit output can do by its range alone."""


@dataclass
class QdqWriter:
    """Quantize chosen nodes of `graph`.

    Weights become int8 per output channel, symmetric: w ≈ s_w · q. Activations become 8-bit codes of a range:
    x ≈ s (q - z) with s = (high - low) / 255. Biases become int32 of scale s_x · s_w.

    Attributes:
        graph: the graph under edit.
        ranges: (low, high) of each activation that a chosen node reads or writes; low ≤ 0 ≤ high.
    """

    graph: OnnxGraph
    ranges: Mapping[str, Range]
    _pairs: dict[tuple[str, Code], str] = field(default_factory=dict)
    _constants: dict[tuple[str, Code], list[str]] = field(default_factory=dict)
    _nodes: list[Any] = field(default_factory=list)

    def write(
        self,
        layers: Collection[str],
        weights: Collection[str] = (),
        halves: Collection[str] = (),
        products: Collection[Product] = (),
    ) -> None:
        """Quantize the Conv (inputs and output) and Gemm (inputs) named `layers`, and the `products`.

        Of the layers named `weights` only the weights are quantized; those named `halves` get float16 weights.
        """
        by_name = {product.name: product for product in products}
        rounded = set(coded_outputs(self.graph, layers).values())
        gates = {gate: (p.sources[i], CODES[i]) for p in products for i, gate in enumerate(p.gates) if gate != p.name}
        for node in list(self.graph.nodes):
            if node.name in by_name:
                self._nodes.append(self._product(node, by_name[node.name]))
                continue
            if node.name in layers:
                self._linear(node)
            elif node.name in weights:
                self._weight_only(node)
            elif node.name in halves:
                self._half(node)
            elif node.name in gates:
                node.input[0] = self._codes(*gates[node.name])
            self._nodes.append(node)
            if node.output[0] in rounded:
                self._activation(node.output[0], "uint8")
        self._share()
        self.graph.rebuild(self._nodes)

    def _product(self, node: Any, product: Product) -> Any:
        """Return the product of two activations as one node that reads their codes.

        A pair would do too, but ONNX Runtime on x86 turns every int8 pair into uint8, and its product of uint8 and
        int8 is twice as fast as that of uint8 and uint8.
        """
        inputs = [
            self._codes(source, code) if gate == node.name else name
            for name, source, gate, code in zip(node.input, product.sources, product.gates, CODES, strict=True)
        ]
        (a_scale, a_zero), (b_scale, b_zero) = (
            self._scale_and_zero(source, code) for source, code in zip(product.sources, CODES, strict=True)
        )
        inputs += [a_scale, b_scale, a_zero, b_zero]
        return self.graph.node("MatMulIntegerToFloat", inputs, node.name, output=node.output[0], domain=CONTRIB)

    def _codes(self, name: str, code: Code) -> str:
        """Quantize `name` and return the name of its codes."""
        node = self.graph.node("QuantizeLinear", [name, *self._scale_and_zero(name, code)], name)
        self._nodes.append(node)
        return str(node.output[0])

    def _linear(self, node: Any) -> None:
        x = node.input[0]
        node.input[0] = self._activation(x, "uint8")
        bias = self.graph.array(node.input[2]).astype(np.float64) if len(node.input) > 2 and node.input[2] else None
        codes, scale, axis = self._weight_codes(node, self._step(x), bias)
        node.input[1] = self._dequantized(node.input[1], codes, scale, axis)
        if bias is not None:
            scale = scale * self._step(x)
            node.input[2] = self._dequantized(node.input[2], np.rint(bias / scale).astype(np.int32), scale, 0)

    def _weight_only(self, node: Any) -> None:
        """Let `node` read weights that are widened once, when the file is loaded.

        ONNX Runtime folds constant Cast and Mul, but keeps a DequantizeLinear and runs it at every call.
        """
        stem, (codes, scale, axis) = node.input[1], self._weight_codes(node)
        names = [
            self.graph.constant(f"{stem}.codes", codes),
            self.graph.constant(f"{stem}.scale", _along(scale, codes.ndim, axis).astype(np.float32)),
        ]
        wide = self.graph.node("Cast", names[:1], stem, to=FLOAT)
        scaled = self.graph.node("Mul", [wide.output[0], names[1]], stem)
        node.input[1] = scaled.output[0]
        self._nodes += [wide, scaled]

    def _half(self, node: Any) -> None:
        """Let `node` read float16 weights that are widened when the file is loaded: 66 dB for half the size."""
        stem = node.input[1]
        limit = float(np.finfo(np.float16).max)
        values = np.clip(self.graph.array(stem), -limit, limit).astype(np.float16)
        narrow = self.graph.constant(f"{stem}.float16", values)
        wide = self.graph.node("Cast", [narrow], stem, to=FLOAT)
        node.input[1] = wide.output[0]
        self._nodes.append(wide)

    def _weight_codes(
        self, node: Any, input_step: float = 1.0, bias: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.int8], NDArray[np.float64], int]:
        """Return the codes of a node's weights, their scale per output channel, and the axis of these channels."""
        axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
        weight = self.graph.array(node.input[1]).astype(np.float64)
        scale = _weight_scale(weight, axis, input_step, bias)
        codes = np.clip(np.rint(weight / _along(scale, weight.ndim, axis)), -127, 127).astype(np.int8)
        return codes, scale, axis

    def _activation(self, name: str, code: Code) -> str:
        """Return the name of `name` after a quantize/dequantize pair; one pair serves all readers."""
        if (name, code) not in self._pairs:
            constants = self._scale_and_zero(name, code)
            quantize = self.graph.node("QuantizeLinear", [name, *constants], name)
            dequantize = self.graph.node("DequantizeLinear", [quantize.output[0], *constants], name)
            self._nodes += [quantize, dequantize]
            self._pairs[name, code] = dequantize.output[0]
        return self._pairs[name, code]

    def _scale_and_zero(self, name: str, code: Code) -> list[str]:
        """Return the names of the two constants of an activation's codes."""
        if (name, code) not in self._constants:
            low, high = self.ranges[name]
            step = (high - low) / 255
            info = np.iinfo(code)
            zero = np.clip(np.rint(info.min - low / step), info.min, info.max).astype(code)
            self._constants[name, code] = [
                self.graph.constant(f"{name}.scale", np.array(step, np.float32)),
                self.graph.constant(f"{name}.zero_point", np.array(zero)),
            ]
        return self._constants[name, code]

    def _step(self, name: str) -> float:
        low, high = self.ranges[name]
        return float(np.float32((high - low) / 255))

    def _dequantized(self, stem: str, codes: NDArray[Any], scale: NDArray[np.float64], axis: int) -> str:
        names = [
            self.graph.constant(f"{stem}.codes", codes),
            self.graph.constant(f"{stem}.scale", scale.astype(np.float32)),
        ]
        if codes.dtype == np.int8:  # none means zero too, but ONNX Runtime 1.31 then takes kernels half as fast
            names.append(self.graph.constant(f"{stem}.zero_point", np.zeros(len(scale), np.int8)))
        node = self.graph.node("DequantizeLinear", names, stem, axis=axis)
        node.name = ""  # nothing asks for it, and 170 names make the file 1 % bigger
        self._nodes.append(node)
        return str(node.output[0])

    def _share(self) -> None:
        """Let every later reader of a rounded tensor read it after its pair: an int8 Add needs both inputs rounded."""
        sources = {pair: name for (name, code), pair in self._pairs.items() if code == "uint8"}
        rounded: dict[str, str] = {}
        for node in self._nodes:
            if node.op_type != "QuantizeLinear":
                node.input[:] = [rounded.get(name, name) for name in node.input]
            if node.output[0] in sources:
                rounded[sources[node.output[0]]] = node.output[0]


def coded_outputs(graph: OnnxGraph, layers: Collection[str]) -> dict[str, str]:
    """Return for each convolution among `layers` the tensor that holds the codes of its output.

    That is the output of the clamp after it, where nothing else reads what the clamp cuts off: the codes then span
    what is left, and a runtime makes one kernel of the two.
    """
    readers, found = graph.consumers(), {}
    for conv in of_kind(graph.nodes, "Conv"):
        if conv.name in layers:
            output = conv.output[0]
            after = readers.get(output, [])
            clamped = len(after) == 1 and after[0].op_type in CLAMPS and output not in graph.outputs
            found[conv.name] = after[0].output[0] if clamped else output
    return found


def _weight_scale(
    weight: NDArray[np.float64], axis: int, input_step: float, bias: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return one scale per output channel: the largest weight is code 127, and the bias fits 32 bits."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others) / 127
    if bias is not None:
        scale = np.maximum(scale, least_weight_scale(bias, input_step))
    return np.where(scale > 0, scale, 1.0).astype(np.float32).astype(np.float64)


def _along(values: NDArray[np.float64], dimensions: int, axis: int) -> NDArray[np.float64]:
    return values.reshape([-1 if i == axis else 1 for i in range(dimensions)])

"""Carry out a plan: turn a float TFLite graph into one with int8 operators, scales and zero points.

Signed int8, activations per tensor with a zero point, weights per output channel without one, biases int32 at
scale(input) · scale(weights): TFLite's 8-bit quantization specification, Jacob et al. 2018 (arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError
from edgekit.export.calibration.ranges import least_weight_scale
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.plan import LOGISTIC_CODES, WEIGHTED, Plan, data_inputs

INT8_VERSIONS = {
    "CONV_2D": 5,
    "DEPTHWISE_CONV_2D": 6,
    "FULLY_CONNECTED": 12,
    "BATCH_MATMUL": 4,
    "LOGISTIC": 2,
    "MUL": 2,
    "ADD": 2,
    "PAD": 2,
    "CONCATENATION": 2,
    "RESHAPE": 1,
    "TRANSPOSE": 2,
}
"""Operator versions that mean int8 (per channel, where there are weights)."""

DYNAMIC_FULLY_CONNECTED = 12
SMALLEST_SCALE = 1e-9

Ranges = Mapping[int, tuple[float, float]]


def activation_codes(low: float, high: float, *, symmetric: bool) -> tuple[float, int]:
    """Return (scale, zero point) of int8 codes that span [low, high] with low ≤ 0 ≤ high.

    Symmetric codes have the zero point 0 and reach the larger magnitude at ±127.
    """
    if symmetric:
        return max(max(-low, high) / 127, SMALLEST_SCALE), 0
    scale = max((high - low) / 255, SMALLEST_SCALE)
    return scale, int(np.clip(round(-128 - low / scale), -128, 127))


def quantize_weights(
    weights: NDArray[np.float32], axis: int, least: NDArray[np.float64] | float = SMALLEST_SCALE
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Return codes in [-127, 127] of the shape of `weights`, and one scale per channel of `axis`, at least `least`."""
    others = tuple(dimension for dimension in range(weights.ndim) if dimension != axis)
    scales = np.maximum(np.abs(weights).max(axis=others).astype(np.float64) / 127, np.maximum(least, SMALLEST_SCALE))
    shape = [-1 if dimension == axis else 1 for dimension in range(weights.ndim)]
    codes = np.clip(np.rint(weights / scales.reshape(shape)), -127, 127)
    return codes.astype(np.int8), scales


class StaticQuantizer:
    """Rewrites a graph in place by a plan and the ranges of its tensors.

    Every activation has a float tensor, an int8 twin, or both; a QUANTIZE or DEQUANTIZE is put in where an operator
    wants the form that is not there yet.
    """

    def __init__(self, graph: Graph, plan: Plan, ranges: Ranges) -> None:
        self.graph = graph
        self.plan = plan
        self._codes = self._group_codes(ranges)
        self._twins: dict[int, int] = {}
        self._has_float = set(graph.inputs)
        self._new: list[Any] = []

    def run(self) -> None:
        """Quantize the graph."""
        for number, operator in enumerate(list(self.graph.operators)):
            if number in self.plan.static:
                self._to_int8(number, operator)
            else:
                if number in self.plan.dynamic:
                    self._weights_only(operator)
                for tensor in data_inputs(self.graph, number):
                    self._need_float(tensor)
                self._new.append(operator)
                self._has_float.update(int(tensor) for tensor in operator.outputs)
        for tensor in self.graph.outputs:
            self._need_float(tensor)
        self.graph.operators = self._new

    def _group_codes(self, ranges: Ranges) -> dict[int, tuple[float, int]]:
        """Return group → (scale, zero point): the group spans the ranges of all its tensors."""
        spans: dict[int, tuple[float, float]] = {}
        for tensor in self.plan.tensors(self.graph):
            if tensor not in ranges:
                name = bytes(self.graph.tensors[tensor].name).decode()
                raise DataError(f"the calibration statistics have no range for tensor '{name}'; calibrate this file.")
            low, high = ranges[tensor]
            group = self.plan.group(tensor)
            known = spans.get(group, (0.0, 0.0))
            spans[group] = (min(low, known[0]), max(high, known[1]))
        codes = {
            group: activation_codes(low, high, symmetric=group in self.plan.symmetric)
            for group, (low, high) in spans.items()
        }
        return codes | dict.fromkeys(self.plan.logistic, LOGISTIC_CODES)

    def _twin(self, tensor: int) -> int:
        """Return the int8 twin of an activation, making it if need be."""
        if tensor not in self._twins:
            twin = self.graph.add_tensor(tensor, "INT8", "_int8")
            scale, zero_point = self._codes[self.plan.group(tensor)]
            self.graph.set_quantization(twin, [scale], zero_point)
            self._twins[tensor] = twin
        return self._twins[tensor]

    def _need_float(self, tensor: int) -> None:
        """Dequantize an activation unless its float form is there."""
        if tensor not in self._has_float and tensor in self._twins:
            self._new.append(self.graph.operator("DEQUANTIZE", 2, [self._twins[tensor]], [tensor]))
        self._has_float.add(tensor)

    def _need_int8(self, tensor: int) -> int:
        """Return the twin of an activation, quantizing it unless its codes are there."""
        if tensor not in self._twins:
            self._new.append(self.graph.operator("QUANTIZE", 1, [tensor], [self._twin(tensor)]))
        return self._twins[tensor]

    def _to_int8(self, number: int, operator: Any) -> None:
        """Make one operator read and write codes."""
        graph, name = self.graph, self.graph.name(operator)
        inputs = [int(tensor) for tensor in operator.inputs]
        computed = set(data_inputs(graph, number))
        twins = [self._need_int8(tensor) if tensor in computed else tensor for tensor in inputs]
        if name in WEIGHTED:
            scale = self._codes[self.plan.group(inputs[0])][0]
            twins[1:] = self._weights_and_bias(inputs[1:], WEIGHTED[name], scale)
        operator.inputs = twins
        operator.outputs = [self._twin(int(operator.outputs[0]))]
        operator.opcodeIndex = graph.code(name, INT8_VERSIONS[name])
        self._new.append(operator)

    def _weights_and_bias(self, constants: list[int], axis: int, input_scale: float) -> list[int]:
        """Quantize the weights, and the bias to the scale of the accumulator; return the new tensors."""
        bias = self.graph.constant(constants[1]) if len(constants) > 1 else None
        if bias is None:
            return [self._int8_weights(constants[0], axis)[0], *constants[1:]]
        weights, scales = self._int8_weights(constants[0], axis, least_weight_scale(bias, input_scale))
        accumulator = scales * input_scale
        codes = np.rint(bias / accumulator).astype(np.int32)
        quantized = self.graph.add_tensor(constants[1], "INT32", "_int32", codes)
        self.graph.set_quantization(quantized, accumulator, 0)
        return [weights, quantized]

    def _weights_only(self, operator: Any) -> None:
        """Give a linear layer int8 weights; the runtime quantizes its float input for each run."""
        weights, _ = self._int8_weights(int(operator.inputs[1]), 0)
        operator.inputs = [operator.inputs[0], weights, *operator.inputs[2:]]
        operator.builtinOptions.asymmetricQuantizeInputs = True
        operator.opcodeIndex = self.graph.code("FULLY_CONNECTED", DYNAMIC_FULLY_CONNECTED)

    def _int8_weights(
        self, tensor: int, axis: int, least: NDArray[np.float64] | float = SMALLEST_SCALE
    ) -> tuple[int, NDArray[np.float64]]:
        """Add the int8 form of constant weights; return its tensor and the scale of each output channel."""
        weights = self.graph.constant(tensor)
        assert weights is not None
        codes, scales = quantize_weights(weights, axis, least)
        quantized = self.graph.add_tensor(tensor, "INT8", "_int8", codes)
        self.graph.set_quantization(quantized, scales, 0, axis)
        return quantized, scales

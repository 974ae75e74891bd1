"""Win back accuracy of an int8 TFLite file: find what each layer costs, keep the worst float, mend the heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.export.calibration.measured import MEASURED_IMAGES, Ranges, first_images, nearest_ranges, noise_share
from edgekit.export.calibration.statistics import Histograms
from edgekit.export.choice.sensitivity import SENSITIVITY_IMAGES, worst_layers
from edgekit.export.session import FloatArray
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.peephole import transpose_right_operands
from edgekit.export.tflite.plan import WEIGHTED, Plan, plan_static, silu_inputs
from edgekit.export.tflite.run import tensor_key, tensor_runner
from edgekit.export.tflite.static import StaticQuantizer

Batches = Callable[[], Iterable[FloatArray]]
Values = dict[str, NDArray[np.float64]]

REPAIR_IMAGES = 128
SILU_FLOOR = -6.0
"""Codes below this are wasted on the input of a SiLU: it gives -0.015 there and goes to 0."""


@dataclass(frozen=True)
class FloatSource:
    """A float file and the ranges of its activations, from which quantized graphs are made.

    Attributes:
        path: the float file.
        ranges: (low, high) by tensor key.
        threads: for running graphs.
    """

    path: Path
    ranges: Mapping[str, tuple[float, float]]
    threads: int = 1

    def quantized(self, keep_float: frozenset[int] = frozenset()) -> tuple[Graph, Plan]:
        """Return a quantized graph and its plan; the operators numbered `keep_float` in the file stay float."""
        graph = Graph.read(self.path)
        keys = {tensor: tensor_key(graph, tensor) for tensor in range(len(graph.tensors))}
        ranges = {tensor: self.ranges[key] for tensor, key in keys.items() if key in self.ranges}
        transpose_right_operands(graph)
        plan = plan_static(graph, keep_float=keep_float)
        for tensor in silu_inputs(graph, plan):
            if tensor in ranges:
                low, high = ranges[tensor]
                ranges[tensor] = (max(low, SILU_FLOOR), high)
        StaticQuantizer(graph, plan, ranges).run()
        return graph, plan


def measured_ranges(
    statistics: Histograms, path: Path, images: Batches, keep_float: frozenset[int], threads: int
) -> Ranges:
    """Return those ranges with which the quantized graph of `path` is nearest to it on calibration images."""
    shown = first_images(images, MEASURED_IMAGES)
    want = _outputs(Graph.read(path), shown, threads)

    def noise(ranges: Ranges) -> float:
        quantized, _ = FloatSource(path, ranges, threads).quantized(keep_float)
        return noise_share(want, _outputs(quantized, shown, threads))

    return nearest_ranges(statistics, noise)


def worst_operators(source: FloatSource, images: Batches) -> frozenset[int]:
    """Return the numbers of the operators that should stay float: those of the convolutions that cost most.

    Each convolution, with what follows it up to the next layer with weights, is quantized alone, and the noise of the
    outputs measured on calibration images; `worst_layers` says which to keep. Linear layers cost too little to look at.
    """
    graph = Graph.read(source.path)
    shown = first_images(images, SENSITIVITY_IMAGES)
    want = _outputs(graph, shown, source.threads)
    everything = frozenset(range(len(graph.operators)))

    def noise(unit: frozenset[int]) -> float:
        quantized, _ = source.quantized(everything - unit)
        return noise_share(want, _outputs(quantized, shown, source.threads))

    units = convolution_units(graph, plan_static(graph))
    kept = worst_layers({min(unit): noise(unit) for unit in units})
    return frozenset().union(*(unit for unit in units if min(unit) in kept))


def convolution_units(graph: Graph, plan: Plan) -> list[frozenset[int]]:
    """Return the int8 convolutions of a plan, each with the int8 operators around it that belong to no other layer."""
    units: list[set[int]] = []
    leading: set[int] = set()
    within = False
    for number in range(len(graph.operators)):
        name = graph.name(graph.operators[number])
        if name in WEIGHTED or number not in plan.static:
            within = name in ("CONV_2D", "DEPTHWISE_CONV_2D") and number in plan.static
            if within:
                units.append({number} | leading)
            leading = set()
        elif within:
            units[-1].add(number)
        elif not units:  # the padding of the picture
            leading.add(number)
    return [frozenset(unit) for unit in units]


def correct_heads(source: FloatSource, graph: Graph, plan: Plan, images: Batches) -> int:
    """Add to the float biases of single-row linear layers what quantization took from their mean outputs.

    Bias correction from data (Nagel et al. 2019, arXiv 1906.04721, §4.2) at the place where it counts: the heads see
    what all layers before them have shifted. Returns how many biases were changed; `graph` is changed.
    """
    shown = first_images(images, REPAIR_IMAGES)
    original = Graph.read(source.path)
    heads = [operator for operator in graph.operators if _is_float_head(graph, operator)]
    for head in heads:
        output = int(head.outputs[0])
        want = _values(original, [output], shown, source.threads)
        have = _values(graph, [output], shown, source.threads)
        (shift,) = (want[key].mean(axis=0) - have[key].mean(axis=0) for key in want)
        _add_to_constant(graph, int(head.inputs[2]), shift)
    return len(heads)


def _is_float_head(graph: Graph, operator: Any) -> bool:
    """Tell whether an operator is a linear layer that reads and writes float, with a bias of its own."""
    if graph.name(operator) != "FULLY_CONNECTED" or len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return False
    types = [
        graph.tensors[int(tensor)].type for tensor in (operator.inputs[0], operator.inputs[2], operator.outputs[0])
    ]
    rows = int(np.prod(graph.shape(int(operator.outputs[0]))[:-1]))
    return set(types) == {graph.schema.TensorType.FLOAT32} and rows == 1


def _add_to_constant(graph: Graph, tensor: int, shift: NDArray[np.float64]) -> None:
    """Replace a float constant by its sum with `shift`, in a buffer of its own: equal constants share one."""
    values = graph.constant(tensor)
    assert values is not None
    buffer = graph.schema.BufferT()
    buffer.data = np.frombuffer((values + shift.reshape(values.shape)).astype(np.float32).tobytes(), np.uint8)
    graph.model.buffers.append(buffer)
    graph.tensors[tensor].buffer = len(graph.model.buffers) - 1


def _outputs(graph: Graph, images: FloatArray, threads: int) -> list[NDArray[np.float64]]:
    return list(_values(graph, graph.outputs, images, threads).values())


def _values(graph: Graph, tensors: list[int], images: FloatArray, threads: int) -> Values:
    """Return tensors of a graph for all images, (N, values) each, in the order asked for and named by it."""
    run = tensor_runner(graph, tensors, threads)
    names = {tensor_key(graph, tensor): str(place) for place, tensor in enumerate(tensors)}
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in names.values()}
    run(images, lambda key, values: found[names[key]].append(values.reshape(-1).astype(np.float64)))
    return {name: np.stack(values) for name, values in found.items()}

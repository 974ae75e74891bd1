"""A TFLite file quantized with the ranges that its student was trained with, and with the same layers left float."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import LoadError
from edgekit.export.calibration.measured import Ranges
from edgekit.export.calibration.trained import TrainedCodes
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.plan import Plan, plan_static
from edgekit.export.tflite.repair import FloatSource, convolution_units
from edgekit.export.tflite.run import tensor_key, tensor_runner


def trained_source(
    path: Path, measured: Ranges, trained: TrainedCodes, threads: int = 1
) -> tuple[FloatSource, frozenset[int]]:
    """Return the float file with trained ranges, and the numbers of the operators that training left float.

    Args:
        path: the float file.
        measured: ranges from calibration by tensor key, for tensors that the training did not know.
        trained: what it knew.
        threads: for running graphs.

    Raises:
        LoadError: a convolution that stays float is not in the file: it is of other weights.
    """
    graph = Graph.read(path)
    size = graph.shape(graph.inputs[0])[1]
    keep_float = _kept(graph, trained, size, threads)
    plan = plan_static(graph, keep_float)
    tensors = plan.tensors(graph)
    found = trained.ranges_in(tensor_runner(graph, tensors, threads), size)
    if not found:
        raise LoadError(f"no activation of {path.name} is one that the student was trained with; train it again")
    return FloatSource(path, {**measured, **_grouped(graph, plan, tensors, found)}, threads), keep_float


def _kept(graph: Graph, trained: TrainedCodes, size: int, threads: int) -> frozenset[int]:
    """Return the operators around the convolutions that stay float."""
    if not trained.float_layers:
        return frozenset()
    units = convolution_units(graph, plan_static(graph))
    ends = {
        tensor_key(graph, int(graph.operators[number].outputs[0])): unit
        for unit in units
        for number in unit
        if graph.name(graph.operators[number]) in ("CONV_2D", "DEPTHWISE_CONV_2D")
    }
    outputs = [int(key.split(":")[0]) for key in ends]
    named = trained.float_tensors_in(tensor_runner(graph, outputs, threads), size)
    return frozenset().union(*(ends[key] for key in named))


def _grouped(graph: Graph, plan: Plan, tensors: list[int], found: Ranges) -> Ranges:
    """Give the tensors of a group, which share their codes, the range of those that were trained: what a PAD makes of a
    picture holds other numbers than the picture."""
    keys = {tensor: tensor_key(graph, tensor) for tensor in tensors}
    by_group = {plan.group(tensor): found[key] for tensor, key in keys.items() if key in found}
    return {
        key: found.get(key, by_group[plan.group(tensor)])
        for tensor, key in keys.items()
        if key in found or plan.group(tensor) in by_group
    }

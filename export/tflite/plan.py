"""Decide which operators of a float TFLite graph run in int8, so that the whole graph stays in one XNNPACK partition.

What XNNPACK takes was tried op by op (LiteRT 2.3.0): it runs int8 convolutions, linear layers, LOGISTIC and MUL (fused
to one table look-up), ADD, PAD, CONCATENATION, RESHAPE and TRANSPOSE, and BATCH_MATMUL **if the second operand has the
zero point 0**. It takes no int8 SOFTMAX, EXP, GELU, HARD_SWISH, RSQRT or DIV: one of those in int8 cuts the graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgekit.export.tflite.graph import Graph

WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
"""Operators with constant weights, and the weights' axis of output channels."""

SAME_CODES = ("RESHAPE", "TRANSPOSE", "PAD", "CONCATENATION")
"""Operators that only move codes: all their tensors share one scale and zero point."""

LOGISTIC_CODES = (1 / 256, -128)
"""The scale and zero point that TFLite demands of an int8 LOGISTIC output."""


@dataclass
class Plan:
    """What becomes int8.

    Attributes:
        static: numbers of the operators that read and write int8 codes.
        dynamic: numbers of linear layers with int8 weights that read and write float; the runtime quantizes each row
            of their input anew for each run.
        groups: tensor → representative of the tensors that must share scale and zero point.
        symmetric: representatives of groups whose zero point must be 0.
        logistic: tensors that hold an int8 LOGISTIC output.
    """

    static: set[int] = field(default_factory=set)
    dynamic: set[int] = field(default_factory=set)
    groups: dict[int, int] = field(default_factory=dict)
    symmetric: set[int] = field(default_factory=set)
    logistic: set[int] = field(default_factory=set)

    def group(self, tensor: int) -> int:
        """Return the representative of the tensor's group."""
        parent = self.groups.get(tensor, tensor)
        return tensor if parent == tensor else self.group(parent)

    def join(self, tensors: Iterable[int]) -> None:
        """Make tensors share one scale and zero point."""
        first, *others = [self.group(tensor) for tensor in tensors]
        for other in others:
            self.groups[other] = first

    def tensors(self, graph: Graph) -> list[int]:
        """Return every tensor that will carry int8 codes and so needs a range, in graph order."""
        found: dict[int, None] = {}
        for number in sorted(self.static):
            operator = graph.operators[number]
            found.update(dict.fromkeys((*data_inputs(graph, number), int(operator.outputs[0]))))
        return [tensor for tensor in found if tensor not in self.logistic]


def data_inputs(graph: Graph, number: int) -> list[int]:
    """Return the computed (not constant) inputs of an operator."""
    return [int(t) for t in graph.operators[number].inputs if t >= 0 and not graph.is_constant(int(t))]


def plan_static(graph: Graph, keep_float: frozenset[int] = frozenset()) -> Plan:
    """Plan mixed int8: everything heavy in int8; softmax, norms and the residual stream of tokens in float.

    Operators whose numbers are in `keep_float` stay float, and so do those that could only follow them in int8.
    """
    plan = Plan()
    consumers = _consumers(graph)
    produced_int8: set[int] = set()
    for number in range(len(graph.operators)):
        if number not in keep_float and _takes_int8(graph, number, plan, produced_int8, consumers):
            plan.static.add(number)
            produced_int8.add(int(graph.operators[number].outputs[0]))
        elif (
            number not in keep_float
            and graph.name(graph.operators[number]) == "FULLY_CONNECTED"
            and _has_weights(graph, number)
        ):
            plan.dynamic.add(number)
    for number in sorted(plan.static):
        _constrain(graph, number, plan)
    plan.symmetric = {plan.group(tensor) for tensor in plan.symmetric}
    return plan


def _consumers(graph: Graph) -> dict[int, list[int]]:
    """Return tensor → numbers of the operators that read it."""
    found: dict[int, list[int]] = {}
    for number, operator in enumerate(graph.operators):
        for tensor in operator.inputs:
            found.setdefault(int(tensor), []).append(number)
    return found


def _takes_int8(
    graph: Graph, number: int, plan: Plan, produced_int8: set[int], consumers: dict[int, list[int]]
) -> bool:
    """Decide on one operator, those before it being decided."""
    operator = graph.operators[number]
    name, inputs = graph.name(operator), data_inputs(graph, number)
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return _has_weights(graph, number)
    if name == "FULLY_CONNECTED":
        return _has_weights(graph, number) and not _is_finer_by_row(graph, number, produced_int8, consumers)
    if name == "BATCH_MATMUL":
        return len(inputs) == 2
    if name == "LOGISTIC":
        return any(_is_silu(graph, reader, number) for reader in consumers.get(int(operator.outputs[0]), []))
    if name == "MUL":
        return any(
            before in plan.static and _is_silu(graph, number, before) for before in range(max(0, number - 8), number)
        )
    if name == "ADD":
        # The residual stream of tokens, of rank 2, stays float: norms read it, and its rounding would add up.
        return len(inputs) == 2 and all(len(graph.tensors[t].shape) == 4 and t in produced_int8 for t in inputs)
    if name == "PAD" and inputs[0] in graph.inputs:
        return True
    if name == "CONCATENATION" and len(inputs) < len(operator.inputs):
        # A part of the weights, such as a ViT's class token, has codes of another scale than what is joined to it.
        return False
    return name in SAME_CODES and bool(inputs) and all(tensor in produced_int8 for tensor in inputs)


def _is_finer_by_row(graph: Graph, number: int, produced_int8: set[int], consumers: dict[int, list[int]]) -> bool:
    """Tell whether a linear layer is better off with a range per row, taken anew for each run, than with a fixed one.

    It is where no codes are there to read and none are wanted: then it is as fast, and neither what it reads nor what
    it gives is rounded to one range for all. The values times contexts of MobileViTv2's attention are such an input:
    products of two activations, whose rows differ by orders of magnitude. The heads, of one row, always are.
    """
    operator = graph.operators[number]
    tensor, output = data_inputs(graph, number)[0], int(operator.outputs[0])
    if _rows(graph, tensor) == 1:
        return True
    columns = int(graph.shape(output)[-1])  # for one column, such as the scores of MobileViTv2, a new range costs more
    return columns > 1 and tensor not in produced_int8 and _is_read_in_float(graph, output, consumers)


def _is_read_in_float(graph: Graph, tensor: int, consumers: dict[int, list[int]]) -> bool:
    """Tell whether no operator that reads a tensor, moved about or as it is, could do so in int8."""
    for reader in consumers.get(tensor, []):
        operator = graph.operators[reader]
        name, output = graph.name(operator), int(operator.outputs[0])
        if name in SAME_CODES and not _is_read_in_float(graph, output, consumers):
            return False
        if name in WEIGHTED or name in ("BATCH_MATMUL", "LOGISTIC"):
            return False
        if name == "ADD" and len(graph.tensors[tensor].shape) == 4:
            return False
    return True


def silu_inputs(graph: Graph, plan: Plan) -> list[int]:
    """Return the tensors that only an int8 SiLU reads."""
    consumers = _consumers(graph)
    found = []
    for number in sorted(plan.static):
        if graph.name(graph.operators[number]) == "LOGISTIC":
            tensor = int(graph.operators[number].inputs[0])
            readers = consumers[tensor]
            if all(reader == number or _is_silu(graph, reader, number) for reader in readers):
                found.append(tensor)
    return found


def _is_silu(graph: Graph, product: int, logistic: int) -> bool:
    """Tell whether operator `product` is MUL(x, LOGISTIC(x)) with operator `logistic` as its LOGISTIC."""
    mul, sigmoid = graph.operators[product], graph.operators[logistic]
    if graph.name(mul) != "MUL" or graph.name(sigmoid) != "LOGISTIC":
        return False
    return {int(tensor) for tensor in mul.inputs} == {int(sigmoid.inputs[0]), int(sigmoid.outputs[0])}


def _has_weights(graph: Graph, number: int) -> bool:
    return graph.is_constant(int(graph.operators[number].inputs[1]))


def _rows(graph: Graph, tensor: int) -> int:
    """Return the number of rows that a linear layer sees in `tensor`."""
    rows = 1
    for side in graph.tensors[tensor].shape[:-1]:
        rows *= int(side)
    return rows


def _constrain(graph: Graph, number: int, plan: Plan) -> None:
    """Note what the operator demands of the scales and zero points of its tensors."""
    operator = graph.operators[number]
    name, output = graph.name(operator), int(operator.outputs[0])
    if name in SAME_CODES:
        plan.join([*data_inputs(graph, number), output])
    elif name == "LOGISTIC":
        plan.logistic.add(output)
    elif name == "BATCH_MATMUL":
        plan.symmetric.add(int(operator.inputs[1]))

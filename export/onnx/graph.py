"""Edit an ONNX graph: look up producers and consumers, replace a node by several, and keep the order valid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import LoadError, MissingExtraError

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


FLOAT = 1
"""onnx.TensorProto.FLOAT; a plain number, so that importing this file needs no onnx."""


class OnnxGraph:
    """One onnx.ModelProto under edit. Nodes are onnx.NodeProto, tensors are known by name.

    Edits change the lists of nodes and initializers; indices of producers and consumers are rebuilt on demand.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.constants: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._taken = {name for node in model.graph.node for name in (node.name, *node.output)} | self.constants.keys()

    @classmethod
    def read(cls, path: Path) -> OnnxGraph:
        """Load a file.

        Raises:
            LoadError: the file is not there or not ONNX.
            MissingExtraError: onnx is not installed.
        """
        try:
            import onnx
        except ImportError as e:
            raise MissingExtraError("onnx", "onnx", "Editing an .onnx file") from e
        try:
            model = onnx.load(path)
        except Exception as e:  # protobuf's own error class differs between its backends
            raise LoadError(f"{path} is not an ONNX model that can be read: {e}") from e
        return cls(model)

    def copy(self) -> OnnxGraph:
        """Return a copy to edit apart."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        return OnnxGraph(model)

    @property
    def nodes(self) -> Any:
        """The nodes, in an order in which they can run."""
        return self.model.graph.node

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(output.name for output in self.model.graph.output)

    def producers(self) -> dict[str, Any]:
        """Return the node that makes each tensor."""
        return {name: node for node in self.nodes for name in node.output if name}

    def consumers(self) -> dict[str, list[Any]]:
        """Return the nodes that read each tensor, once for each reading."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def array(self, name: str) -> NDArray[Any]:
        """Return the values of a constant."""
        from onnx import numpy_helper

        values: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return values

    def fresh(self, stem: str) -> str:
        """Return `stem`, or `stem_1`, … if it is taken, as a name for a new node or tensor."""
        name, count = stem, 0
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name

    def constant(self, stem: str, values: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = self.fresh(stem)
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self.model.graph.initializer.append(tensor)
        self.constants[name] = self.model.graph.initializer[-1]
        return name

    def node(self, kind: str, inputs: Sequence[str], stem: str, *, output: str = "", **attributes: Any) -> Any:
        """Make a node with one output, named `output` or freshly; it still has to be put in place."""
        from onnx import helper

        name = self.fresh(f"{stem}.{kind}")
        domain = attributes.pop("domain", "")
        return helper.make_node(kind, list(inputs), [output or name], name=name, domain=domain, **attributes)

    def rebuild(self, nodes: Iterable[Any]) -> None:
        """Set the list of nodes; drop nodes and constants that nothing reads, bottom up."""
        kept: list[Any] = []
        needed = set(self.outputs)
        for node in reversed(list(nodes)):
            if any(name in needed for name in node.output):
                needed.update(node.input)
                kept.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(reversed(kept))
        constants = [tensor for tensor in self.model.graph.initializer if tensor.name in needed]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(constants)
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def sort(self) -> None:
        """Bring the nodes into an order in which they can run, as close to the present one as that allows."""
        made = {entry.name for entry in self.model.graph.input} | self.constants.keys() | {""}
        waiting, ordered = list(self.nodes), []
        while waiting:
            ready = [node for node in waiting if made.issuperset(node.input)]
            assert ready, "a graph without cycles always has a node that can run"
            made.update(name for node in ready for name in node.output)
            ordered += ready
            waiting = [node for node in waiting if not made.issuperset(node.output)]
        self.rebuild(ordered)

    def use_domain(self, domain: str, version: int = 1) -> None:
        """Declare an operator domain if it is not declared yet."""
        from onnx import helper

        if not any(entry.domain == domain for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(domain, version))


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute."""
    from onnx import helper

    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def of_kind(nodes: Iterable[Any], *kinds: str) -> Iterator[Any]:
    """Yield the nodes of the given operator types."""
    return (node for node in nodes if node.op_type in kinds)

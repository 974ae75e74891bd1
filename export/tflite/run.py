"""Run a TFLite graph that is open for change, and look at any of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit.export.calibration.statistics import Observe, Run
from edgekit.export.chatter import native_output_captured
from edgekit.export.session import FloatArray, to_channels_last
from edgekit.export.tflite.graph import Graph


def tensor_key(graph: Graph, tensor: int) -> str:
    """Return the name under which statistics of a tensor are kept: unique, and readable in a report."""
    name = bytes(graph.tensors[tensor].name).decode(errors="replace")
    return f"{tensor}:{name.rsplit('/', 2)[-1][-60:]}"


def tensor_runner(graph: Graph, tensors: list[int], threads: int) -> Run:
    """Return a `Run` of the graph as it is now, with `tensors` for outputs, so that the fast kernels compute them.

    `experimental_preserve_all_tensors` would turn XNNPACK off, which is ten times slower.
    """
    from ai_edge_litert.interpreter import Interpreter

    keys = {tensor: tensor_key(graph, tensor) for tensor in tensors}
    whole = graph.outputs, graph.model.signatureDefs
    graph.model.subgraphs[0].outputs, graph.model.signatureDefs = list(tensors), None
    content = graph.content()
    graph.model.subgraphs[0].outputs, graph.model.signatureDefs = whole
    with native_output_captured():
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    detail = interpreter.get_input_details()[0]

    def run(images: FloatArray, observe: Observe) -> None:
        rows = int(detail["shape"][0])  # the frames of a clip go together
        for at in range(0, len(images), rows):
            interpreter.set_tensor(detail["index"], _for_input(images[at : at + rows], detail))
            interpreter.invoke()
            for tensor, key in keys.items():
                observe(key, interpreter.get_tensor(tensor))

    return run


def _for_input(images: FloatArray, detail: Mapping[str, Any]) -> NDArray[np.float32]:
    """Lay out images (rows, 3, H, W) as the file takes them.

    Raises:
        UsageError: the file takes another size.
    """
    laid_out = to_channels_last(images)
    if laid_out.shape != tuple(detail["shape"]):
        raise UsageError(
            f"calibration images of {laid_out.shape[1]}×{laid_out.shape[2]} pixels do not fit this model, which takes "
            f"{detail['shape'][1]}×{detail['shape'][2]}."
        )
    return laid_out

"""The TensorFlow side of SavedModels: a script for an environment with TensorFlow, which need not have edgekit.

    python worker.py build GRAPH.npz FOLDER     write a SavedModel of a graph (edgekit.export.saved_model.convert)
    python worker.py describe FOLDER            print what it holds, as JSON
    python worker.py serve FOLDER THREADS       say the same, then answer .npy pictures on standard input with .npz

It ends with code 77 where TensorFlow cannot be imported.
"""

from __future__ import annotations

import io
import json
import struct
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NO_TENSORFLOW = 77
SIGNATURE = "serving_default"
Options = Mapping[str, Any]

try:
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
except ImportError:
    sys.exit(NO_TENSORFLOW)

# options["fusedActivationFunction"] of TFLite's schema
ACTIVATIONS = {0: tf.identity, 1: tf.nn.relu, 2: lambda x: tf.clip_by_value(x, -1, 1), 3: tf.nn.relu6, 4: tf.tanh}
_WINDOW = (("filter", ("Height", "Width")), ("stride", ("H", "W")))
PADDINGS = {0: "SAME", 1: "VALID"}


def conv(x: Any, weights: Any, bias: Any, options: Options) -> Any:
    """Convolve NHWC pictures with weights (out, height, width, in)."""
    strides = [options["strideH"], options["strideW"]]
    dilations = [options["dilationHFactor"], options["dilationWFactor"]]
    y = tf.nn.conv2d(x, tf.transpose(weights, [1, 2, 3, 0]), strides, PADDINGS[options["padding"]], dilations=dilations)
    return y + bias


def depthwise(x: Any, weights: Any, bias: Any, options: Options) -> Any:
    """Convolve each channel with weights (1, height, width, in * multiplier)."""
    strides = [1, options["strideH"], options["strideW"], 1]
    dilations = [options["dilationHFactor"], options["dilationWFactor"]]
    _, height, width, channels = weights.shape
    filters = tf.reshape(weights, [height, width, x.shape[-1], channels // x.shape[-1]])
    return tf.nn.depthwise_conv2d(x, filters, strides, PADDINGS[options["padding"]], dilations=dilations) + bias


def window(options: Options) -> tuple[list[int], list[int], str]:
    """Return the size, strides and padding of a pooling."""
    size, strides = ([options[f"{name}{axis}"] for axis in axes] for name, axes in _WINDOW)
    return size, strides, PADDINGS[options["padding"]]


def linear(x: Any, weights: Any, bias: Any, options: Options) -> Any:
    """Multiply rows with weights (out, in)."""
    rows = x if options["keepNumDims"] else tf.reshape(x, [-1, weights.shape[1]])
    y = tf.tensordot(rows, weights, [[-1], [1]])
    return y if bias is None else y + bias


# TFLite operator: (its inputs..., options) -> its output
OPERATORS: Mapping[str, Any] = {
    "ABS": lambda x, o: tf.abs(x),
    "ADD": lambda a, b, o: a + b,
    "AVERAGE_POOL_2D": lambda x, o: tf.nn.avg_pool2d(x, *window(o)),
    "BATCH_MATMUL": lambda a, b, o: tf.matmul(a, b, adjoint_a=o["adjX"], adjoint_b=o["adjY"]),
    "CONCATENATION": lambda *given: tf.concat(given[:-1], given[-1]["axis"]),
    "CONV_2D": conv,
    "DEPTHWISE_CONV_2D": depthwise,
    "DIV": lambda a, b, o: a / b,
    "EXP": lambda x, o: tf.exp(x),
    "FULLY_CONNECTED": lambda x, w, *rest: linear(x, w, rest[0] if len(rest) == 2 else None, rest[-1]),
    "GELU": lambda x, o: tf.nn.gelu(x, approximate=o["approximate"]),
    "HARD_SWISH": lambda x, o: x * tf.nn.relu6(x + 3) / 6,
    "LOGISTIC": lambda x, o: tf.sigmoid(x),
    "MAXIMUM": lambda a, b, o: tf.maximum(a, b),
    "MAX_POOL_2D": lambda x, o: tf.nn.max_pool2d(x, *window(o)),
    "MEAN": lambda x, axes, o: tf.reduce_mean(x, axes, keepdims=o["keepDims"]),
    "MINIMUM": lambda a, b, o: tf.minimum(a, b),
    "MUL": lambda a, b, o: a * b,
    "NEG": lambda x, o: -x,
    "PAD": lambda x, widths, o: tf.pad(x, widths),
    "PADV2": lambda x, widths, value, o: tf.pad(x, widths, constant_values=value),
    "POW": lambda a, b, o: tf.pow(a, b),
    "REDUCE_MAX": lambda x, axes, o: tf.reduce_max(x, axes, keepdims=o["keepDims"]),
    "RELU": lambda x, o: tf.nn.relu(x),
    "RELU6": lambda x, o: tf.nn.relu6(x),
    "RESHAPE": lambda x, shape, o: tf.reshape(x, shape),
    "RSQRT": lambda x, o: tf.math.rsqrt(x),
    "SOFTMAX": lambda x, o: tf.nn.softmax(x * o["beta"]),
    "SQRT": lambda x, o: tf.sqrt(x),
    "SQUARED_DIFFERENCE": lambda a, b, o: tf.math.squared_difference(a, b),
    "SUB": lambda a, b, o: a - b,
    "SUM": lambda x, axes, o: tf.reduce_sum(x, axes, keepdims=o["keepDims"]),
    "TANH": lambda x, o: tf.tanh(x),
    "TRANSPOSE": lambda x, order, o: tf.transpose(x, order),
}


PLUMBING = {
    "Const", "Identity", "NoOp", "PartitionedCall", "Placeholder", "ReadVariableOp", "StatefulPartitionedCall",
    "VarHandleOp",
}  # fmt: skip
ARITHMETIC = {
    "Abs", "Add", "AddV2", "AvgPool", "BatchMatMulV2", "BiasAdd", "Cast", "ClipByValue", "ConcatV2", "Conv2D",
    "DepthwiseConv2dNative", "Einsum", "Erf", "Exp", "ExpandDims", "GatherV2", "MatMul", "Max", "MaxPool",
    "Maximum", "Mean", "Min", "Minimum", "Mul", "Neg", "Pack", "Pad", "PadV2", "Pow", "Prod", "RealDiv", "Relu",
    "Relu6", "Reshape", "Rsqrt", "Shape", "Sigmoid", "Softmax", "Sqrt", "SquaredDifference", "Squeeze",
    "StridedSlice", "Sub", "Sum", "Tanh", "Transpose",
}  # fmt: skip


class Net(tf.Module):  # type: ignore[misc]
    """A graph of TFLite operators as a TensorFlow function, with its weights as variables."""

    def __init__(self, graph: Mapping[str, Any], constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        self.graph = graph
        # what is learned can be trained on; shapes, axes and single numbers are part of the function
        self.learned = {
            n: tf.Variable(c, name=f"w{n}") for n, c in constants.items() if c.dtype.kind == "f" and c.size > 1
        }
        self.fixed = {n: c for n, c in constants.items() if n not in self.learned}

    def __call__(self, picture: Any) -> dict[str, Any]:
        known = {self.graph["input"]: picture, **self.fixed, **self.learned}
        for step in self.graph["operators"]:
            options = step["options"]
            if step["name"] not in OPERATORS:
                raise SystemExit(f"operator {step['name']} is not known here")
            given = [known[n] for n in step["inputs"] if n is not None]
            found = OPERATORS[step["name"]](*given, options)
            known[step["output"]] = ACTIVATIONS[options.get("fusedActivationFunction", 0)](found)
        return {name: tf.identity(known[n], name=name) for name, n in self.graph["outputs"].items()}


def build(source: str, folder: str) -> None:
    """Write the SavedModel."""
    with np.load(source, allow_pickle=False) as file:
        graph = json.loads(bytes(file["graph"]))
        constants = {name: file[name] for name in file.files if name != "graph"}
    net = Net(graph, constants)
    taken = tf.TensorSpec(graph["shape"], tf.float32, name=graph["input_name"])
    function = tf.function(net.__call__, input_signature=[taken])
    tf.saved_model.save(net, folder, signatures={SIGNATURE: function.get_concrete_function()})


def operations(folder: str) -> Counter[str]:
    """Return the operations that the signatures run, by kind, without loading the model.

    A SavedModel is a program: others than arithmetic, such as reading and writing files, are refused.
    """
    graph = SavedModel.FromString(Path(folder, "saved_model.pb").read_bytes()).meta_graphs[0]
    library = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    nodes = {node.name: node for node in graph.graph_def.node}
    waiting = [nodes[t.name.partition(":")[0]] for s in graph.signature_def.values() for t in s.outputs.values()]
    kinds: Counter[str] = Counter()
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op not in PLUMBING:
            if node.op not in ARITHMETIC:
                raise SystemExit(f"it holds the operation {node.op}, which is not arithmetic: it is not run")
            kinds[node.op] += 1
        waiting += [nodes[name] for name in (i.lstrip("^").partition(":")[0] for i in node.input) if name in nodes]
        for value in node.attr.values():
            waiting += library.get(value.func.name, [])
    return kinds


def load(folder: str) -> tuple[Any, dict[str, Any]]:
    """Return the loaded model and its facts: the interface, the weights by dtype and the operations by kind."""
    kinds = operations(folder)
    loaded = tf.saved_model.load(folder)
    function = loaded.signatures[SIGNATURE]
    facts = {
        "version": tf.__version__,
        "inputs": [(n, s.shape.as_list(), s.dtype.name) for n, s in function.structured_input_signature[1].items()],
        "outputs": [(n, s.shape.as_list(), s.dtype.name) for n, s in sorted(function.structured_outputs.items())],
        "weights": [(v.dtype.name, int(np.prod(v.shape))) for v in function.variables],
        "operations": kinds,
    }
    return loaded, facts


def describe(folder: str) -> None:
    """Print the facts."""
    print(json.dumps(load(folder)[1]))


def serve(folder: str, threads: str) -> None:
    """Say the facts, then answer until standard input ends: a length (8 bytes) and as many bytes, both ways."""
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever TensorFlow prints there must not mix with the answers

    def answer(content: bytes) -> None:
        answers.write(struct.pack("<q", len(content)) + content)
        answers.flush()

    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded, facts = load(folder)  # held on to: its functions do not hold its variables
    function = loaded.signatures[SIGNATURE]
    (name,) = function.structured_input_signature[1]
    answer(json.dumps(facts).encode())
    while head := sys.stdin.buffer.read(8):
        picture = np.load(io.BytesIO(sys.stdin.buffer.read(struct.unpack("<q", head)[0])), allow_pickle=False)
        found = {key: value.numpy() for key, value in function(**{name: tf.constant(picture)}).items()}
        content = io.BytesIO()
        np.savez(content, **found)
        answer(content.getvalue())


MODES: Mapping[str, Callable[..., None]] = {"build": build, "describe": describe, "serve": serve}

if __name__ == "__main__":
    MODES[sys.argv[1]](*sys.argv[2:])

"""The trials behind `edgekit doctor`: each imports a part's libraries and does the smallest real thing with them.

Each runs in a process of its own and returns one line that says what was done. They raise where a library fails.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def probe_core() -> str:
    """Import the core's packages."""
    for name in ("click", "numpy", "PIL.Image", "pydantic", "yaml", "rich"):
        importlib.import_module(name)
    return "imported"


def probe_train() -> str:
    """Run a convolution forward and backward; import the teachers' and students' libraries."""
    import torch

    weight = torch.ones(1, 3, 1, 1, requires_grad=True)
    torch.nn.functional.conv2d(torch.ones(1, 3, 2, 2), weight).sum().backward()  # type: ignore[no-untyped-call]
    for name in ("torchvision", "timm", "open_clip", "accelerate", "safetensors"):
        importlib.import_module(name)
    return "a convolution forward and backward; " + ", ".join(devices())


def devices() -> list[str]:
    """Return the devices that PyTorch can use: cpu, mps, and CUDA devices by name."""
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    if torch.backends.mps.is_available():
        found.append("mps")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CUDA build without a driver warns; that there is no device says it
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return found


def probe_run_onnx() -> str:
    """Run a two-element addition, written out byte by byte: `onnx` need not be here."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(_tiny_onnx(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.array([1, 2], np.float32)})
    if result.tolist() != [2.0, 4.0]:
        raise RuntimeError(f"1 + 1, 2 + 2 gave {result.tolist()}")
    return "ran a model; " + ", ".join(
        p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()
    )


def _tiny_onnx() -> bytes:
    """Return an ONNX model y = x + x over two floats, as protobuf fields (number, content)."""

    def part(number: int, content: bytes | int) -> bytes:
        if isinstance(content, int):
            return bytes([number << 3, content])
        return bytes([number << 3 | 2, len(content)]) + content

    def value(name: bytes) -> bytes:
        shape = part(1, part(1, 2))
        return part(1, name) + part(2, part(1, part(1, 1) + part(2, shape)))

    add = part(1, b"x") + part(1, b"x") + part(2, b"y") + part(4, b"Add")
    graph = part(1, add) + part(2, b"g") + part(11, value(b"x")) + part(12, value(b"y"))
    return part(1, 8) + part(7, graph) + part(8, part(2, 13))


def probe_export_onnx() -> str:
    """Import the exporter's packages and check a model."""
    import onnx
    import onnxscript  # noqa: F401

    onnx.checker.check_model(onnx.load_from_string(_tiny_onnx()))
    return "imported, checked a model"


def probe_run_tflite() -> str:
    """Run a two-element addition, built with LiteRT's own schema."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    runtime = Interpreter(model_content=_tiny_tflite())
    runtime.allocate_tensors()
    runtime.set_tensor(0, np.array([1, 2], np.float32))
    runtime.invoke()
    result = runtime.get_tensor(1)
    if result.tolist() != [2.0, 4.0]:
        raise RuntimeError(f"1 + 1, 2 + 2 gave {result.tolist()}")
    return "ran a model"


def _tiny_tflite() -> bytes:
    """Return a TFLite model y = x + x over two floats."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model, graph, code, add = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    add.inputs, add.outputs = [0, 0], [1]
    add.builtinOptionsType, add.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    for name in ("x", "y"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, [2], schema.TensorType.FLOAT32
        graph.tensors = [*(graph.tensors or []), tensor]
    graph.operators, graph.inputs, graph.outputs = [add], [0], [1]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def probe_export_tflite() -> str:
    """Import the converter and the quantizer."""
    for name in ("litert_torch", "ai_edge_quantizer"):
        importlib.import_module(name)
    return "imported"


def probe_coreml() -> str:
    """Build an ML Program with coremltools."""
    import torch  # noqa: F401  first: with TensorFlow installed the other order can crash
    import torchvision  # noqa: F401

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools
    from coremltools.converters.mil import Builder

    @Builder.program(input_specs=[Builder.TensorSpec(shape=(2,))])  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return Builder.add(x=x, y=x)

    coremltools.convert(program, convert_to="mlprogram", skip_model_load=True)
    return "built an ML Program; it can run only on macOS, elsewhere edgekit interprets it"


def probe_tensorflow() -> str:
    """Import TensorFlow and add two numbers."""
    import tensorflow

    tensorflow.constant([1.0]) + tensorflow.constant([1.0])
    return "added two numbers"


def probe_video() -> str:
    """Import PyAV and ask for the H.264 decoder."""
    import av

    av.codec.Codec("h264", "r")
    return "has the H.264 decoder"


def probe_text() -> str:
    """Import the encoders and train a tokenizer of one word."""
    import tokenizers
    import transformers

    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).encode("a")
    return f"encoded a word; transformers {transformers.__version__}"


def probe_report() -> str:
    """Render a template and draw an empty figure."""
    import jinja2
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    jinja2.Template("{{ 1 }}").render()
    FigureCanvasAgg(Figure()).draw()
    return "rendered a template, drew a figure"


def probe_tensorboard() -> str:
    """Import the event writer."""
    importlib.import_module("tensorboard.compat.proto.event_pb2")
    return "imported"


PROBES: Mapping[str, Callable[[], str]] = {
    "core": probe_core,
    "train": probe_train,
    "run onnx": probe_run_onnx,
    "export onnx": probe_export_onnx,
    "run tflite": probe_run_tflite,
    "export tflite": probe_export_tflite,
    "coreml": probe_coreml,
    "tensorflow": probe_tensorflow,
    "video": probe_video,
    "text": probe_text,
    "report": probe_report,
    "tensorboard": probe_tensorboard,
}


def run_probe(part: str) -> str:
    """Run the probe of a part, by its name."""
    return PROBES[part]()

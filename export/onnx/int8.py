"""Make an int8 ONNX model that ONNX Runtime runs faster than the float one: static, selective, percentile ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import MissingExtraError, UsageError
from edgekit.export.calibration.measured import MEASURED_IMAGES, nearest_ranges, noise_share
from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.calibration.statistics import Histograms, Observe, Run, collect
from edgekit.export.calibration.trained import TrainedCodes
from edgekit.export.choice.sensitivity import SENSITIVITY_IMAGES, worst_layers
from edgekit.export.onnx.arrange import arrange
from edgekit.export.onnx.convert import save_onnx
from edgekit.export.onnx.graph import OnnxGraph, attribute, of_kind
from edgekit.export.onnx.qdq import QdqWriter, Range, coded_outputs
from edgekit.export.onnx.surgery import Product, Shapes, fuse_silu, linear_as_gemm, open_attention
from edgekit.export.session import FloatArray

PIXEL_RANGE = (0.0, 1.0)
"""The picture's codes are its own 0..255: quantizing the input loses nothing."""


@dataclass(frozen=True)
class Int8Config:
    """What is quantized, and how ranges are chosen.

    Attributes:
        ranges: from histograms to ranges; None tries some ways on calibration images.
        thin_channels: convolutions at the start of the net stay float as long as they make at most this many channels
            and read at most this many numbers for each; the first always stays.
        float_layers: names of further nodes that stay float.
        attention_tokens: quantize the two products of attentions over at least this many tokens whose heads are at
            least `onnx_surgery.MIN_HEAD_DIM` wide; 0 for none.
        mixed: keep the layers float that cost most accuracy, as measured on calibration images; see `worst_layers`.
        trained: ranges that the weights were trained with, for this file.
    """

    ranges: RangeConfig | None = None
    thin_channels: int = 64
    float_layers: tuple[str, ...] = ()
    attention_tokens: int = 128
    mixed: bool = False
    trained: TrainedCodes | None = None


@dataclass(frozen=True)
class QuantReport:
    """What was quantized.

    Attributes:
        quantized: number of nodes by operator.
        weight_only: names of the layers whose weights are int8 and whose arithmetic is float.
        float_nodes: names of the layers that stay float; their weights are stored as float16.
        statistics: of the activations on the calibration images.
    """

    quantized: Mapping[str, int]
    weight_only: tuple[str, ...]
    float_nodes: tuple[str, ...]
    statistics: Histograms


def quantize_onnx(
    float_path: Path,
    out: Path,
    batches: Callable[[], Iterable[FloatArray]],
    config: Int8Config | None = None,
) -> QuantReport:
    """Quantize the float model `float_path` to int8 and write `out`.

    Convolutions, linear layers, those of tokens too, and, where chosen, the products of attention run in int8 (weights
    int8 per channel, activations uint8); activation functions, norms and softmax stay float, each as one kernel.

    Args:
        float_path: a float model with constant weights, such as `export_onnx` writes. It is not changed.
        out: the .onnx file, weights inside, written whole or not at all.
        batches: gives the same calibration images (B, 3, H, W) float32 in [0, 1] each time it is called; from the
            training split.
        config: what to quantize.

    Raises:
        DataError: too few or unusable calibration images, or an activation that is not finite.
        LoadError: `float_path` cannot be read.
        MissingExtraError: onnx or onnxruntime is not installed.
        UsageError: the model has nothing to quantize.
    """
    config = config or Int8Config()
    graph = OnnxGraph.read(float_path)
    del graph.model.graph.value_info[:]
    fuse_silu(graph)
    shapes = tensor_shapes(graph)
    if linear_as_gemm(graph, shapes):
        shapes = tensor_shapes(graph)
    products = open_attention(graph, shapes, config.attention_tokens) if config.attention_tokens else []
    layers, weights, left = choose(graph, config, shapes)
    if not layers and not products and not weights:
        raise UsageError(
            f"{float_path.name} has no layer that gains from 8 bits: {len(left)} stay float, none is left. "
            "Export it as fp16 or fp32, or lower `thin_channels`"
        )
    activations = activation_runner(graph, activations_of(graph, layers, products))
    statistics = collect(activations, batches)
    plan = _Plan(layers, weights, left, products, shapes)
    if config.trained is not None:
        size = graph.model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        ranges = statistics.ranges(config.ranges) | config.trained.ranges_in(activations, size)
    else:
        ranges = statistics.ranges(config.ranges) if config.ranges else _measured(graph, plan, statistics, batches)
    ranges |= _pixels(graph)
    counts = Counter(node.op_type for node in graph.nodes if node.name in layers)
    counts.update({"MatMul": len(products)} if products else {})
    if config.mixed:
        plan = plan.without(_worst(graph, layers, ranges, batches))
    plan.write(graph, ranges)
    save_onnx(graph.model, out)
    return QuantReport(dict(counts), tuple(sorted(weights)), plan.left, statistics)


@dataclass(frozen=True)
class _Plan:
    """What `QdqWriter.write` takes: layers to quantize, those whose weights alone are, those that stay, products."""

    layers: set[str]
    weights: set[str]
    left: tuple[str, ...]
    products: list[Product]
    shapes: Shapes

    def without(self, layers: set[str]) -> _Plan:
        """Return the plan that leaves some more layers float."""
        return replace(self, layers=self.layers - layers, left=(*self.left, *sorted(layers)))

    def write(self, graph: OnnxGraph, ranges: Mapping[str, Range]) -> None:
        """Quantize `graph` in place."""
        QdqWriter(graph, ranges).write(self.layers, self.weights, self.left, self.products)
        arrange(graph, self.shapes)


def _pixels(graph: OnnxGraph) -> dict[str, Range]:
    return {entry.name: PIXEL_RANGE for entry in graph.model.graph.input}


def _measured(
    graph: OnnxGraph, plan: _Plan, statistics: Histograms, batches: Callable[[], Iterable[FloatArray]]
) -> dict[str, Range]:
    """Return those ranges with which the quantized graph is nearest to the float one on calibration images."""
    images = list(islice(batches(), MEASURED_IMAGES))
    want = _run_all(graph, images)

    def noise(ranges: dict[str, Range]) -> float:
        tried = graph.copy()
        plan.write(tried, ranges | _pixels(graph))
        return noise_share(want, _run_all(tried, images))

    return nearest_ranges(statistics, noise)


def choose(graph: OnnxGraph, config: Int8Config, shapes: Shapes) -> tuple[set[str], set[str], tuple[str, ...]]:
    """Return the names of the layers to quantize, of those whose weights alone are, and of those that stay float.

    The first convolution decides much of the error and has few products. The thin ones after it gain nothing: their
    int8 kernels wait for memory like the float ones, and each would add a conversion to and from 8 bits. Heads read
    one row per image, or one of all the frames of a clip: they take no time, and rounding the pooled features costs
    more accuracy than all the rest.
    """
    layers = [node for node in of_kind(graph.nodes, "Conv", "Gemm") if _is_constant(graph, node)]
    thin = [_is_thin(graph, node, config.thin_channels) for node in layers[1:]]
    leading = 1 + (thin.index(False) if False in thin else len(thin))
    stay = {node.name for node in layers[:leading]} | set(config.float_layers)
    rest = [node for node in layers if node.name not in stay]
    batch = graph.model.graph.input[0].type.tensor_type.shape.dim[0]
    # of what a Gather picks, such as a class token, a free batch is not known by its name any more
    shapes = tensor_shapes(graph, batch.dim_param) if batch.dim_param else shapes
    heads = {node.name for node in of_kind(rest, "Gemm") if shapes[node.output[0]][0] in (batch.dim_value, 1)}
    return {node.name for node in rest} - heads, heads, tuple(n.name for n in layers if n.name in stay)


def _worst(
    graph: OnnxGraph, layers: Collection[str], ranges: Mapping[str, Range], batches: Callable[[], Iterable[FloatArray]]
) -> set[str]:
    """Return the convolutions that `worst_layers` would keep float; each is quantized alone and run on some images.

    Linear layers cost too little to look at: all of them together are 42 dB below the logits of a MobileViT.
    """
    images = list(islice(batches(), SENSITIVITY_IMAGES))
    want = _run_all(graph, images)
    noises = {}
    for name in sorted(node.name for node in of_kind(graph.nodes, "Conv") if node.name in layers):
        alone = graph.copy()
        QdqWriter(alone, ranges).write({name})
        noises[name] = noise_share(want, _run_all(alone, images))
    return set(worst_layers(noises))


def _run_all(graph: OnnxGraph, images: list[FloatArray]) -> list[NDArray[np.float64]]:
    """Return the outputs of a graph for all images, (N, …) each."""
    session = _session_with_outputs(graph, [])
    entry = session.get_inputs()[0]
    results = [session.run(None, {entry.name: image}) for image in images]
    return [np.concatenate(part).astype(np.float64) for part in zip(*results, strict=True)]


def _is_constant(graph: OnnxGraph, node: Any) -> bool:
    """Return whether a Conv or Gemm is x W + b with constant W (and b, one number per output)."""
    plain = node.op_type == "Conv" or (
        attribute(node, "transA", 0) == 0 and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    )
    bias = [graph.constants.get(name) for name in node.input[2:] if name]
    return plain and node.input[1] in graph.constants and all(b is not None and len(b.dims) == 1 for b in bias)


def _is_thin(graph: OnnxGraph, node: Any, channels: int) -> bool:
    outputs, *inputs = graph.constants[node.input[1]].dims
    return node.op_type == "Conv" and outputs <= channels and int(np.prod(inputs)) <= channels


def activations_of(graph: OnnxGraph, layers: Collection[str], products: Collection[Product]) -> list[str]:
    """Return the activations whose ranges are needed, in graph order."""
    names: dict[str, None] = {}
    outputs = coded_outputs(graph, layers)
    for node in graph.nodes:
        if node.name in layers:
            names[node.input[0]] = None
            if node.name in outputs:
                names[outputs[node.name]] = None
    return [*names, *dict.fromkeys(source for product in products for source in product.sources)]


def activation_runner(graph: OnnxGraph, names: list[str]) -> Run:
    """Return a function that runs images through the float graph and hands out the activations `names`."""
    if not names:  # a session asked for no outputs returns all
        return lambda images, observe: None
    session = _session_with_outputs(graph, names)
    entry = session.get_inputs()[0]
    batch = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def run(images: FloatArray, observe: Observe) -> None:
        for part in np.split(images, len(images)) if batch == 1 else [images]:
            for name, values in zip(names, session.run(names, {entry.name: part}), strict=True):
                observe(name, values)

    return run


def tensor_shapes(graph: OnnxGraph, one: str = "") -> Shapes:
    """Return the shapes that ONNX Runtime infers; onnx itself does not know the runtime's own operators.

    Args:
        graph: any.
        one: name of a free side of the inputs that counts as 1.
    """
    names = [name for node in graph.nodes for name in node.output if name]
    outputs = _session_with_outputs(graph, names, one).get_outputs()
    return {output.name: output.shape for output in outputs}


def _session_with_outputs(graph: OnnxGraph, names: list[str], one: str = "") -> Any:
    """Open a session that can return the tensors `names`; the free side named `one` is 1."""
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise MissingExtraError("onnxruntime", "onnx", "Quantizing to int8") from e
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    known = {*graph.outputs, *(entry.name for entry in model.graph.input)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if one:
        options.add_free_dimension_override_by_name(one, 1)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

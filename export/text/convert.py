"""Convert a deployed text classifier: int32 ids of a fixed length in (of any length in ONNX, on request)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from edgekit.errors import MissingExtraError, UsageError
from edgekit.export.calibration.weight_rounding import least_quantized
from edgekit.export.exporters import float_file
from edgekit.export.parity import Precision
from edgekit.export.runtimes import Format
from edgekit.export.text.deploy import DeployedTexts, DeployText
from edgekit.export.text.session import INPUT_NAME

TEXT_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
NO_HALF_TABLES = "TFLite reads tables of vectors as float32 or 8-bit codes, not as float16; take fp32 or int8"
MAX_BATCH = 1024
_PLACE = "edgekit.output."


@dataclass(frozen=True)
class TextConversion:
    """What is converted.

    Attributes:
        model: the deployed classifier or tower, in eval mode.
        work: folder for the float files that the others start from; each is made once.
        metadata: texts kept inside the file.
        dynamic: take any batch size and any length up to the model's, where the format can.
    """

    model: DeployedTexts
    work: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    dynamic: bool = False


def _onnx(conversion: TextConversion, precision: Precision, out: Path) -> str:
    if precision == "fp32":
        export_text_onnx(conversion, out)
        return "float32 weights and arithmetic"
    base = float_file(conversion.work, "onnx", lambda path: export_text_onnx(conversion, path))
    if precision == "fp16":
        from edgekit.export.onnx.fp16 import halve_onnx

        halve_onnx(base, out)
        return "float16 weights, float32 arithmetic"
    from edgekit.export.text.int8 import quantize_text_onnx

    quantize_text_onnx(base, out)
    return "dynamic: 8-bit weights, vectors of pieces among them; activations get their scales while they run"


def export_text_onnx(conversion: TextConversion, out: Path) -> None:
    """Write `out`: ids (1, L) int32, or free batch and length, named "batch" and "length".

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    from edgekit.export.onnx.convert import OPSET, exporter_silenced, save_onnx, set_metadata, tidy

    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it, and says so less clearly
    except ImportError as e:
        raise MissingExtraError(e.name or "onnx", "onnx", "Exporting to ONNX") from e
    dynamic, model = conversion.dynamic, conversion.model
    # torch.export takes a dimension of 1 for a constant: the sample of a free batch must hold 2
    sample = torch.ones(2 if dynamic else 1, model.max_length, dtype=torch.int32)
    free = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH), 1: torch.export.Dim("length", max=model.max_length)}
    with TemporaryDirectory() as folder, exporter_silenced(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (sample,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[_PLACE + name for name in model.outputs],
            dynamic_shapes=(free,) if dynamic else None,
        )
        assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
        raw = Path(folder) / "raw.onnx"
        program.save(str(raw), external_data=False)
        graph = onnx.load(raw)
    tidy(graph)
    _name_outputs(graph, model.outputs)
    set_metadata(graph, conversion.metadata)
    save_onnx(graph, out)


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Give the outputs of an onnx.ModelProto their names.

    torch.onnx names the result of an embedding layer "embedding", and does not see that an output is called so, too.
    """
    new = {name: f"{name}.inner" for name in names} | {_PLACE + name: name for name in names}
    for node in graph.graph.node:
        for side in (node.input, node.output):
            side[:] = [new.get(name, name) for name in side]
    for output in graph.graph.output:
        output.name = new[output.name]


def _tflite(conversion: TextConversion, precision: Precision, out: Path) -> str:
    if precision == "fp32":
        export_text_tflite(conversion, out)
        return "float32 weights and arithmetic"
    if precision == "fp16":
        raise UsageError(NO_HALF_TABLES)
    base = float_file(conversion.work, "tflite", lambda path: export_text_tflite(conversion, path))
    from edgekit.export.tflite.int8 import TfliteQuantConfig, quantize_tflite

    quantize_tflite(base, out, None, TfliteQuantConfig(mode="dynamic"))
    return "dynamic: 8-bit weights, vectors of pieces among them; activations get their scales while they run"


def export_text_tflite(conversion: TextConversion, out: Path) -> None:
    """Write `out`: ids (1, L) int32.

    Raises:
        MissingExtraError: litert-torch is not installed.
    """
    from edgekit.export.tflite.convert import converter_silenced
    from edgekit.export.tflite.graph import Graph
    from edgekit.export.tflite.peephole import power_to_square_root

    try:
        with converter_silenced():
            import litert_torch
    except ImportError as e:
        raise MissingExtraError("litert-torch", "tflite", "Exporting to TFLite") from e
    sample = torch.ones(1, conversion.model.max_length, dtype=torch.int32)
    with TemporaryDirectory() as folder, converter_silenced(), torch.no_grad():
        raw = Path(folder) / "raw.tflite"
        litert_torch.convert(conversion.model.eval(), (sample,)).export(str(raw))
        graph = Graph.read(raw)
    graph.name_input(INPUT_NAME)
    graph.name_outputs(conversion.model.outputs)
    power_to_square_root(graph)
    graph.set_metadata(conversion.metadata)
    graph.write(out)


def _coreml(conversion: TextConversion, precision: Precision, out: Path) -> str:
    if precision == "fp32":
        export_text_coreml(conversion, out, "fp32")
        return "float32 weights and arithmetic"
    if precision == "fp16":
        export_text_coreml(conversion, out, "fp16")
        return "float16 weights and arithmetic"
    from edgekit.export.coreml.convert import quantize_weights

    base = float_file(conversion.work, "coreml", lambda path: export_text_coreml(conversion, path, "fp16"))
    quantize_weights(base, out, least_quantized(conversion.model))
    return "8-bit weights per channel, float16 arithmetic"


def export_text_coreml(conversion: TextConversion, out: Path, precision: Precision) -> None:
    """Write `out`, an `.mlpackage` that takes a MultiArray "tokens" of int32 ids (1, L).

    Raises:
        MissingExtraError: coremltools is not installed.
    """
    from edgekit.export.coreml.convert import coremltools_module, save_package
    from edgekit.export.quiet import quiet

    coremltools = coremltools_module()
    model, target = conversion.model.eval(), coremltools.target.iOS17
    sample = torch.ones(1, model.max_length, dtype=torch.int32)
    with quiet(), torch.no_grad():
        exported = torch.export.export(model, (sample,)).run_decompositions({})
        _without_aliases(exported)
        package = coremltools.convert(
            exported,
            convert_to="mlprogram",
            inputs=[coremltools.TensorType(name=INPUT_NAME, shape=tuple(sample.shape), dtype=np.int32)],
            outputs=[coremltools.TensorType(name=name, dtype=np.float32) for name in model.outputs],
            minimum_deployment_target=target,
            compute_precision=getattr(coremltools.precision, {"fp32": "FLOAT32", "fp16": "FLOAT16"}[precision]),
            skip_model_load=True,
        )
    for key, text in conversion.metadata.items():
        package.user_defined_metadata[f"edgekit.{key}"] = text
    package.short_description = "Text classifier and embedding, made by edgekit"
    save_package(package, out)


def _without_aliases(exported: torch.export.ExportedProgram) -> None:
    """Take out operations that only rename a value: coremltools 9.0 does not know them."""
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.target in (torch.ops.aten.alias.default, torch.ops.aten.detach_.default, torch.ops.aten.detach.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    exported.graph_module.recompile()


TEXT_EXPORTERS: Mapping[Format, Callable[[TextConversion, Precision, Path], str]] = {
    "onnx": _onnx,
    "coreml": _coreml,
    "tflite": _tflite,
}


def texts_about(model: DeployText, tokenizer: Mapping[str, object]) -> dict[str, str]:
    """Return what a file says about itself."""
    spec = model.text.spec
    return {
        "classes": json.dumps(spec.classes),
        "input": f"int32 ids of the tokenizer in the bundle ({tokenizer['kind']}), padded with {spec.padding}",
    }

"""Half precision for TFLite: float16 weights, float32 arithmetic."""

from __future__ import annotations

from pathlib import Path

from edgekit import atomic
from edgekit.errors import MissingExtraError
from edgekit.export.chatter import native_output_captured
from edgekit.export.tflite_graph import Graph


def halve_tflite(float_path: Path, out: Path) -> None:
    """Write `out`, the float model with float16 weights, which the runtime widens when it loads them.

    Half the size at float32 speed; GPU delegates compute in float16.

    Args:
        float_path: a model of `export_tflite`; it is not changed.
        out: the .tflite file, written whole or not at all; it keeps the metadata.

    Raises:
        MissingExtraError: ai-edge-quantizer is not installed.
    """
    try:
        from ai_edge_quantizer import qtyping, quantizer
        from ai_edge_quantizer.recipe_manager import AlgorithmName, RecipeManager
    except ImportError as e:
        raise MissingExtraError("ai-edge-quantizer", "tflite", "TFLite fp16 export") from e
    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    recipe = RecipeManager()
    for operation in (
        qtyping.TFLOperationName.CONV_2D,
        qtyping.TFLOperationName.DEPTHWISE_CONV_2D,
        qtyping.TFLOperationName.FULLY_CONNECTED,
    ):
        recipe.add_quantization_config(
            regex=".*", operation_name=operation, op_config=config, algorithm_key=AlgorithmName.FLOAT_CASTING
        )
    with native_output_captured():
        engine = quantizer.Quantizer(str(float_path))
        engine.load_quantization_recipe(recipe.get_quantization_recipe())
        with atomic.atomic_path(out) as temporary:
            temporary.unlink()  # export_model refuses to replace a file
            engine.quantize().export_model(str(temporary))
            graph = Graph.read(temporary)
            graph.set_metadata(Graph.read(float_path).metadata())
            graph.write(temporary)

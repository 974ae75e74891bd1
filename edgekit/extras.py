"""Which extra brings a package: a command that needs one that is absent says so, whichever import it was."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from edgekit.errors import MissingExtraError

BROUGHT_BY: Mapping[str, tuple[str, str]] = {
    # module -> its distribution, and the extra that brings it
    "torch": ("torch", "train"),
    "torchvision": ("torchvision", "train"),
    "timm": ("timm", "train"),
    "open_clip": ("open_clip_torch", "train"),
    "accelerate": ("accelerate", "train"),
    "safetensors": ("safetensors", "train"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
    "coremltools": ("coremltools", "coreml"),
    "litert_torch": ("litert-torch", "tflite"),
    "ai_edge_litert": ("ai-edge-litert", "tflite"),
    "ai_edge_quantizer": ("ai-edge-quantizer", "tflite"),
    "tensorflow": ("tensorflow", "tensorflow"),
    "av": ("av", "video"),
    "transformers": ("transformers", "text"),
    "tokenizers": ("tokenizers", "text"),
    "jinja2": ("jinja2", "report"),
    "matplotlib": ("matplotlib", "report"),
    "segno": ("segno", "web"),
    "tensorboard": ("tensorboard", "tensorboard"),
}


def missing_extra(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """Return what to say of a failed import; None where no extra would mend it.

    Args:
        error: of the import.
        purpose: what needs the package, to begin a sentence.
    """
    module = (error.name or "").partition(".")[0]
    if module not in BROUGHT_BY or find_spec(module) is not None:  # there, and broken: its own words say more
        return None
    distribution, extra = BROUGHT_BY[module]
    return MissingExtraError(distribution, extra, purpose)

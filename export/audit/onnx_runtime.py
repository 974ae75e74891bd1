"""What ONNX Runtime makes of an .onnx file: its optimised graph, read back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgekit.errors import LoadError, MissingExtraError
from edgekit.export.audit.onnx import is_integer, read_onnx
from edgekit.export.audit.record import RuntimeAudit
from edgekit.export.onnx.macs import PRODUCTS

CPU = "CPUExecutionProvider"
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def audit_onnxruntime(path: Path) -> RuntimeAudit:
    """Open a file with ONNX Runtime on the CPU and tell what is left after its graph optimisations.

    The optimised graph is the runtime's own, all levels on, written out and read again: what it holds is what runs.

    Raises:
        LoadError: the runtime rejects the file.
        MissingExtraError: onnxruntime or onnx is not installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise MissingExtraError("onnxruntime", "onnx", "Telling what ONNX Runtime makes of a file") from e
    before = Counter(node.op_type for node in read_onnx(path).nodes)
    with TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        providers = _optimise(ort, path, optimised)
        nodes = list(read_onnx(optimised).nodes)
    kernels = Counter(node.op_type for node in nodes)
    own = Counter(node.op_type for node in nodes if node.domain not in _STANDARD)
    integer = sum(is_integer(node) and node.op_type in PRODUCTS for node in nodes)
    pairs, left = min(before[_QUANTIZE], before[_DEQUANTIZE]), kernels[_QUANTIZE] + kernels[_DEQUANTIZE]
    facts: dict[str, Any] = {
        "nodes_in_file": sum(before.values()),
        "nodes_run": len(nodes),
        "fused": dict(own),
        "providers": providers,
    }
    note = f"{len(nodes)} of {sum(before.values())} nodes are left, {sum(own.values())} of them its own kernels"
    if integer:
        note += f"; {integer} products compute in integers"
    if pairs:
        facts |= {"qdq_in_file": before[_QUANTIZE] + before[_DEQUANTIZE], "qdq_left": left}
        note += f"; of {facts['qdq_in_file']} Q/DQ nodes {left} are left"
    if (casts := kernels["Cast"] - before["Cast"]) > 0:
        facts["casts_added"] = casts
        note += f"; {casts} casts are added, because it has no float16 kernels for what lies between"
    return RuntimeAudit("onnxruntime", ort.__version__, providers[0], dict(kernels), integer, facts, note)


def _optimise(ort: Any, path: Path, out: Path) -> list[str]:
    """Write the runtime's optimised graph; return its execution providers."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: it warns that the optimised graph is for this machine alone
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(out)
    # weights beside the file: a graph above 2 GB cannot be written otherwise, and here nobody reads them
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    try:
        providers: list[str] = ort.InferenceSession(str(path), options, providers=[CPU]).get_providers()
    except Exception as e:  # the runtime's exceptions have no common base but Exception
        raise LoadError(f"ONNX Runtime rejects {path}: {_reason(e, path)}") from e
    return providers


def _reason(error: Exception, path: Path) -> str:
    """Return what the runtime says, without its own codes and the path again."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    said = first.split(" : ", 3)[-1] if first.startswith("[ONNXRuntimeError]") else first
    return said.replace(f"Load model from {path} failed:", "").strip()[:300]

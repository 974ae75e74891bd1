"""The precision audit: what an artifact really is, whoever made it, and whether its name says so.

No torch in the work; Core ML packages are read with coremltools, which edgekit only ever imports after torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import LoadError
from edgekit.export.audit.record import DYNAMIC, INT8, Audit, RuntimeAudit, StoredPrecision
from edgekit.export.contained import call_contained
from edgekit.export.parity import Precision
from edgekit.export.runtimes import FOLDERS, Format, format_of

AUDIT_TIMEOUT_S = 300.0
"""A minute would do for 2 GB on an idle machine."""


def _onnx(path: Path) -> Audit:
    from edgekit.export.audit.onnx import audit_onnx

    return audit_onnx(path)


def _tflite(path: Path) -> Audit:
    from edgekit.export.audit.tflite import audit_tflite

    return audit_tflite(path)


def _coreml(path: Path) -> Audit:
    from edgekit.export.audit.coreml import audit_coreml

    return audit_coreml(path)


def _onnxruntime(path: Path) -> RuntimeAudit:
    from edgekit.export.audit.onnx_runtime import audit_onnxruntime

    return audit_onnxruntime(path)


def _litert(path: Path) -> RuntimeAudit:
    from edgekit.export.audit.tflite import audit_litert

    return audit_litert(path)


def _core_ml_runtime(path: Path) -> RuntimeAudit:
    from edgekit.export.audit.coreml import audit_core_ml_runtime

    return audit_core_ml_runtime(path)


def _saved_model(path: Path) -> Audit:
    from edgekit.export.saved_model.convert import audit_saved_model

    return audit_saved_model(path)


def _tensorflow(path: Path) -> RuntimeAudit:
    from edgekit.export.saved_model.convert import audit_tensorflow

    return audit_tensorflow(path)


READERS: Mapping[Format, Callable[[Path], Audit]] = {
    "onnx": _onnx,
    "tflite": _tflite,
    "coreml": _coreml,
    "saved_model": _saved_model,
}
RUNTIME_READERS: Mapping[Format, Callable[[Path], RuntimeAudit]] = {
    "onnx": _onnxruntime,
    "tflite": _litert,
    "coreml": _core_ml_runtime,
    "saved_model": _tensorflow,
}


def audit(path: Path) -> Audit:
    """Read what an artifact is. In this process: for a file that one does not trust there is `audit_contained`.

    Raises:
        LoadError: not there, damaged, or of another format than its suffix says.
        MissingExtraError: the package that reads the format is not installed.
    """
    form = format_of(path)
    if not path.exists():
        raise LoadError(f"{path} is not there")
    _check_content(path, form)
    return READERS[form](path)


def audit_runtime(path: Path) -> RuntimeAudit:
    """Open an artifact with the runtime of its format and tell what it makes of it, in this process.

    Raises:
        LoadError: the runtime rejects the file.
        MissingExtraError: the runtime is not installed.
    """
    return RUNTIME_READERS[format_of(path)](path)


def audit_contained(path: Path) -> Audit:
    """Do `audit` in a child process; a crash or a hang there is a LoadError."""
    return Audit.from_dict(_contained("audit_values", path))


def audit_runtime_contained(path: Path) -> RuntimeAudit:
    """Do `audit_runtime` in a child process; a crash or a hang there is a LoadError."""
    if format_of(path) == "coreml":
        return audit_runtime(path)  # opens nothing
    return RuntimeAudit(**_contained("audit_runtime_values", path))


def audit_values(path: str) -> dict[str, Any]:
    """Return `audit(path)` as JSON-ready values, for a child process."""
    return audit(Path(path)).to_dict()


def audit_runtime_values(path: str) -> dict[str, Any]:
    """Return `audit_runtime(path)` as JSON-ready values, for a child process."""
    return audit_runtime(Path(path)).to_dict()


def stored_precision(path: Path) -> StoredPrecision:
    """Return what a file really is, whatever its name says.

    First the weights, by number of elements (not bytes, which would count a float weight four times): int32 biases,
    scales, zero points, shapes and look-up tables do not vote.

    - "fp64", "fp32", "bf16", "fp16": more than half of the weights are stored so. The arithmetic may be wider: a
      TFLite file with float16 weights computes in float32.
    - "sub-8-bit": more than half are stored in fewer than 8 bits (block-wise int4, palettes).
    - "mixed": no storage holds more than half. "none": there are no weights.

    Where more than half are 8-bit integers (or 8-bit floats), the multiply-accumulates of the operations with stored
    weights decide, by operations where their shapes are unknown:

    - "int8": more than half of them are between 8-bit codes, whose scales are in the file.
    - "int8-dynamic": more than half, together with those whose activations get their scales while they run.
    - "int8-weights": neither; the weights are unpacked and the arithmetic is float.

    Raises as `audit`.
    """
    return audit(path).precision


def check_precision(found: Audit, claimed: Precision) -> tuple[str, ...]:
    """Return why an audited file is not what it claims to be; empty where it is.

    - fp32: stored as fp32, and no product in 8 bits.
    - fp16: stored as fp16; in Core ML packages, where the arithmetic is a choice of the file's, computed so, too.
    - int8, mixed: stored in 8 bits; ONNX and TFLite files also compute in 8 bits, statically or dynamically, and ONNX
      Runtime makes integer kernels of at least half of the products that the file marks as such. A Core ML package
      with 8-bit weights and float16 arithmetic is int8 (its recipe says so); a mixed one computes something in 8 bits.
    - w8a8: stored in 8 bits, and computed so, which the name promises in Core ML packages, too.
    - dynamic, w8, palettes: stored in as many bits; of dynamic ones some products are in 8 bits, with dynamic ranges.

    Raises:
        LoadError: ONNX Runtime, where it is asked, rejects the file.
        MissingExtraError: it is not installed.
    """
    needs_runtime = claimed in ("int8", "mixed") and found.format == "onnx" and marked_products(found)
    return precision_reasons(found, audit_runtime(Path(found.path)) if needs_runtime else None, claimed)


def precision_reasons(found: Audit, runtime: RuntimeAudit | None, claimed: Precision) -> tuple[str, ...]:
    """Return what `check_precision` returns, from audits that were made already; no runtime's is None."""
    if claimed == "mixed" and found.format == "coreml" and not found.macs_by_dtype().get(INT8, 0):
        return ("it claims mixed, but none of its products is computed in 8 bits",)
    if claimed in ("int8", "mixed"):
        return _int8_reasons(found, runtime)
    if claimed in _COMPRESSED:
        return _compressed_reasons(found, claimed)
    if found.precision != claimed:
        return (_storage_reason(found, claimed),)
    by_dtype = found.macs_by_dtype()
    total = sum(by_dtype.values())
    if claimed == "fp32" and (coded := by_dtype.get(INT8, 0) + by_dtype.get(DYNAMIC, 0)):
        return (f"it claims fp32, but {_percent(coded, total)} of its multiply-accumulates are in 8 bits",)
    if claimed == "fp16" and found.format == "coreml" and 2 * by_dtype.get("fp16", 0) < total:
        return (f"it claims fp16, but only {_percent(by_dtype.get('fp16', 0), total)} of its arithmetic is float16",)
    return ()


_COMPRESSED: Mapping[Precision, tuple[StoredPrecision, ...]] = {
    "w8a8": ("int8",),
    "dynamic": ("int8-dynamic", "int8-weights"),
    "w8": ("int8-weights",),
    "palette8": ("int8-weights",),
    "palette6": ("sub-8-bit",),
    "palette4": ("sub-8-bit",),
}
"""What files of a claimed precision are found to be. Dynamic ones have some of their products in float, or most."""


def _compressed_reasons(found: Audit, claimed: Precision) -> tuple[str, ...]:
    if found.precision not in _COMPRESSED[claimed]:
        return (_storage_reason(found, claimed),)
    if claimed == "dynamic" and not found.macs_by_dtype().get(DYNAMIC, 0):
        return ("it claims dynamic, but none of its products takes its range from the picture",)
    return ()


def _int8_reasons(found: Audit, runtime: RuntimeAudit | None) -> tuple[str, ...]:
    if found.precision not in ("int8", "int8-dynamic", "int8-weights"):
        return (_storage_reason(found, "int8"),)
    if found.precision == "int8-weights" and found.format != "coreml":
        return ("it claims int8, but only its weights are 8-bit: its products are computed in float",)
    if runtime is None or runtime.integer_products is None:
        return ()
    marked, kernels = marked_products(found), runtime.integer_products
    if 2 * kernels < marked:
        return (f"it claims int8, but ONNX Runtime computes only {kernels} of its {marked} 8-bit products in integers",)
    return ()


def marked_products(found: Audit) -> int:
    """Return the number of products with multiply-accumulates that a file marks as 8-bit."""
    return sum(op.dtype in (INT8, DYNAMIC) and op.macs != 0 for op in found.ops)


def _storage_reason(found: Audit, claimed: Precision) -> str:
    shares = ", ".join(f"{_percent(g.elements, found.parameters)} {g.dtype}" for g in found.weights[:3])
    return f"it claims {claimed}, but it is {found.precision}: its weights are {shares or 'absent'}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _contained(function: str, path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = call_contained(
            f"edgekit.export.audit.audit:{function}", str(path.absolute()), timeout_s=AUDIT_TIMEOUT_S
        )
    except LoadError as e:
        raise LoadError(str(e) if str(path) in str(e) else f"{path}: {e}") from e
    return values


def _check_content(path: Path, form: Format) -> None:
    """Refuse a file whose first bytes are of another format than its suffix says, with a hint.

    Raises:
        LoadError: naming both.
    """
    if form in FOLDERS or path.is_dir():
        if path.is_dir() != (form in FOLDERS):
            found, wanted = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
            raise LoadError(f"{path} is {found}; an artifact with this suffix is {wanted}")
        return
    if not path.is_file():  # reading a pipe would wait for ever
        raise LoadError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as e:
        raise LoadError(f"{path} cannot be read: {e.strerror or e}") from e
    if not head:
        raise LoadError(f"{path} is empty")
    if head[:4] == b"PK\x03\x04":
        raise LoadError(f"{path} is a zip archive, not a model; unpack it first")
    if (head[4:8] == b"TFL3") != (form == "tflite"):
        is_tflite = head[4:8] == b"TFL3"
        raise LoadError(f"{path} is {'a TFLite' if is_tflite else 'not a TFLite'} model, whatever its suffix says")

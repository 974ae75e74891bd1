"""How `edgekit inspect` words an audit: the most important first, one screen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from edgekit.export.audit.record import DYNAMIC, INT8, Audit, Port, RuntimeAudit
from edgekit.export.manifest import FileRecord
from edgekit.export.roofline import SIDE, Roofline
from edgekit.printable import printable
from edgekit.terminal import human_bytes, human_count

_NAMES = {"onnx": "ONNX", "coreml": "Core ML", "tflite": "TFLite", "saved_model": "SavedModel"}
_MEANING = {
    "int8": "8-bit weights, most of the work between 8-bit codes",
    "int8-dynamic": "8-bit weights, activations quantized while it runs",
    "int8-weights": "8-bit weights, float arithmetic",
    "sub-8-bit": "weights of fewer than 8 bits",
    "mixed": "no dtype holds most of the weights",
    "none": "no weights",
}
_SHOWN_KINDS = 12


def report_lines(found: Audit, runtime: RuntimeAudit | None, *, verbose: bool) -> Iterator[str]:
    """Yield the lines of the report, each printable."""
    made_by = ", ".join(f"{key} {value}" for key, value in found.made_by.items())
    yield printable(f"{found.path}: {_NAMES[found.format]}, {human_bytes(found.size_bytes)}")
    meaning = _MEANING.get(found.precision, f"{found.precision} weights")
    yield f"precision   {found.precision}: {meaning}"
    yield from _weights(found)
    yield from _work(found)
    if runtime is not None:
        yield printable(f"runtime     {runtime.runtime} {runtime.version} ({runtime.provider}): {runtime.note}")
    for label, ports in (("input", found.inputs), ("output", found.outputs)):
        for port in ports if verbose else ports[:4]:
            yield printable(f"{label:<12}{_port(port)}")
        if len(ports) > 4 and not verbose:
            yield f"            … {len(ports) - 4} more"
    if found.boundaries:
        yield f"boundaries  {_counts(found.boundaries)}"
    yield from _operations(found, verbose=verbose)
    yield printable(f"made by     {made_by}")
    yield from _own_metadata(found.metadata)
    for note in found.notes:
        yield printable(f"note        {note}")
    if verbose:
        yield f"counted     {found.counted}"
        if runtime is not None and runtime.kernels:
            yield printable(f"kernels     {_counts(_by_number(runtime.kernels))}")


def roofline_lines(measured: Roofline) -> Iterator[str]:
    """Yield what the limit is, what is reached of it, and where the time goes."""
    threads = f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"
    peaks = ", ".join(f"{human_count(round(peak))} {dtype}" for dtype, peak in measured.peaks.items())
    yield f"roof        {peaks} MACs/s: products of {SIDE} × {SIDE} × {SIDE} in {measured.runtime}, {threads}"
    work = ", ".join(f"{human_count(count)} {dtype}" for dtype, count in measured.macs.items() if count)
    yield f"limit       {1e3 * measured.roof_s:.3g} ms, if its {work or 'no'} MACs ran like those"
    yield f"measured    {1e3 * measured.measured_s:.3g} ms: {100 * measured.reached:.0f} % of the roof"
    total = sum(kernel.time_s for kernel in measured.kernels)
    shown = [
        f"{kernel.count} {kernel.operator} {100 * kernel.time_s / total:.0f} %"
        for kernel in measured.kernels[:_SHOWN_KINDS]
        if kernel.time_s > 0.005 * total
    ]
    yield printable(f"time        {', '.join(shown) or 'LiteRT tells no times of operations'}", 4000)


def bundle_row(record: FileRecord, found: Audit, runtime: RuntimeAudit | None) -> tuple[str, ...]:
    """Return the row of one file in a bundle's table."""
    shares = found.macs_by_dtype()
    coded = shares.get(INT8, 0) + shares.get(DYNAMIC, 0)
    share = f"{100 * coded / found.macs:.1f} %" if found.macs else "–"
    ran = f"{runtime.runtime} {runtime.version}" if runtime else "–"
    return (record.path, record.precision, found.precision, human_bytes(found.size_bytes), share, ran)


def _weights(found: Audit) -> Iterator[str]:
    if not found.weights:
        return
    groups = [
        f"{group.dtype} {human_bytes(group.size_bytes)} ({100 * group.elements / found.parameters:.1f} %)"
        for group in found.weights
    ]
    scales = f"; scales and tables {human_bytes(found.quantization_bytes)}" if found.quantization_bytes else ""
    yield f"weights     {human_count(found.parameters)}: {', '.join(groups)}{scales}"


def _work(found: Audit) -> Iterator[str]:
    shares = [f"{100 * macs / found.macs:.1f} % {dtype}" for dtype, macs in found.macs_by_dtype().items()]
    unknown = sum(op.macs is None for op in found.ops)
    more = f"; {unknown} products of unknown size" if unknown else ""
    if shares or unknown:
        yield f"work        {human_count(found.macs)} MACs: {', '.join(shares) or 'unknown'}{more}"


def _operations(found: Audit, *, verbose: bool) -> Iterator[str]:
    kinds = found.ops_by_kind()
    shown = list(kinds.items()) if verbose else list(kinds.items())[:_SHOWN_KINDS]
    texts = [f"{kind} {' + '.join(f'{count} {dtype}' for dtype, count in by.items())}" for kind, by in shown]
    rest = f", … {len(kinds) - len(shown)} more kinds (-v)" if len(kinds) > len(shown) else ""
    yield printable(f"operations  {len(found.ops)}: {', '.join(texts)}{rest}", 4000)


def _own_metadata(metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield what edgekit wrote into the file: classes and preprocessing."""
    for key, text in metadata.items():
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if key == "classes" and isinstance(value, list):
            names = ", ".join(map(str, value[:5])) + (", …" if len(value) > 5 else "")
            yield printable(f"classes     {len(value)}: {names}")
        elif isinstance(value, dict):
            yield printable(f"{key:<12}{', '.join(f'{name} {content}' for name, content in value.items())}")
        else:
            yield printable(f"{key:<12}{value}")


def _port(port: Port) -> str:
    shape = " × ".join("?" if side is None else str(side) for side in port.shape) or "scalar"
    return f"{port.name} {shape} {port.dtype}" + (f" ({port.note})" if port.note else "")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _by_number(counts: Mapping[str, int]) -> dict[str, int]:
    pairs: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: -item[1])
    return dict(pairs)

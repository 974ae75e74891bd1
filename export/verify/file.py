"""The part of verification that opens what others wrote; `edgekit.export.verify.bundle` calls it in a child process.

Functions here take and return JSON values. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, LoadError, MissingExtraError, first_line
from edgekit.export.audit.audit import audit, check_precision
from edgekit.export.golden import PIXEL_TOLERANCE, Golden, preprocessing_difference, read_golden
from edgekit.export.manifest import GOLDEN_FILE, FileRecord, Manifest, read_manifest, resolve
from edgekit.export.parity import GATES, Gate, Parity, compare_outputs, failures
from edgekit.export.ports import describe_ports, differences, ports_of
from edgekit.export.runtimes import on_macos, open_session
from edgekit.export.session import FloatArray, Outputs, run_batched
from edgekit.export.tflite.tensorflow import run_tensorflow
from edgekit.export.verify.check import Check
from edgekit.preprocess import Preprocess, to_input

INTERPRETED_DB = 40.0
"""What the interpreter and Core ML itself may differ by: both round to half after each operation, but not in the same
order. Not measured on a Mac yet."""


def golden_checks(bundle: str) -> list[dict[str, Any]]:
    """Read the golden vectors of a bundle and prepare its raw pictures anew; return the checks."""
    manifest = read_manifest(Path(bundle))
    try:
        golden = read_golden(resolve(Path(bundle), GOLDEN_FILE))
        contract = Preprocess.from_dict(manifest.input.preprocess)
        worst = preprocessing_difference(golden, contract)
    except EdgekitError as e:
        return [vars(Check("bundle", "preprocessing", False, f"cannot be proven: {e}"))]
    detail = f"{len(golden.raw)} raw pictures, largest difference {worst} of 255 levels"
    return [vars(Check("bundle", "preprocessing", worst <= PIXEL_TOLERANCE, detail))]


def file_checks(bundle: str, number: int, threads: int, tensorflow_python: str | None) -> list[dict[str, Any]]:
    """Open the file of record `number` of a bundle's manifest and run the golden vectors; return the checks.

    Args:
        bundle: the folder.
        number: of the record in the manifest.
        threads: for the runtime.
        tensorflow_python: run a TFLite file under TensorFlow, by this Python; None takes the format's own runtime.
    """
    manifest = read_manifest(Path(bundle))
    record = manifest.files[number]
    path = resolve(Path(bundle), record.path)
    checks = file_alone(path, record)
    try:
        golden = read_golden(resolve(Path(bundle), GOLDEN_FILE))
    except EdgekitError:
        golden = None  # reported once, for the bundle
    try:
        if tensorflow_python is None:
            checks += _in_own_runtime(path, record, manifest, golden, threads)
        elif golden is not None:
            found = run_tensorflow(path, to_input(golden.pixels), Path(tensorflow_python), threads)
            checks.append(_golden(record, manifest, golden, found, "golden vectors, TensorFlow"))
    except EdgekitError as e:
        checks.append(Check(record.path, "runtime", False, str(e), isinstance(e, MissingExtraError)))
    return [vars(check) for check in checks]


def file_alone(path: Path, record: FileRecord) -> list[Check]:
    """Check what can be read without running the file: its precision, its inputs and outputs."""
    try:
        facts = audit(path)
        reasons = check_precision(facts, record.precision)
    except EdgekitError as e:
        return [Check(record.path, "precision", False, str(e), isinstance(e, MissingExtraError))]
    detail = "; ".join(reasons) or f"{record.precision}, as the manifest says"
    found = ports_of(facts)
    wrong = differences(found, (record.inputs, record.outputs))
    ports = f"{describe_ports(found[0])} to {describe_ports(found[1])}"
    return [
        Check(record.path, "precision", not reasons, detail),
        Check(record.path, "interface", not wrong, wrong or ports),
    ]


def _in_own_runtime(
    path: Path, record: FileRecord, manifest: Manifest, golden: Golden | None, threads: int
) -> list[Check]:
    session = open_session(path, threads)
    size = Preprocess.from_dict(manifest.input.preprocess).image_size
    frames = manifest.input.frames
    fits = tuple(session.input_shape[1:]) == (3, size, size) and (frames == 1 or session.input_shape[0] == frames)
    of_frames = f"{frames} frames of " if frames > 1 else ""
    detail = f"{session.input_shape}" + ("" if fits else f", the manifest says {of_frames}{size} px")
    checks = [Check(record.path, "input", fits, detail)]
    if fits and golden is not None:
        images: FloatArray = to_input(golden.pixels)
        try:
            found = run_batched(session, images)
        except EdgekitError:
            raise
        except Exception as e:  # native runtimes raise their own types
            raise LoadError(f"the runtime failed: {type(e).__name__}: {first_line(e)[:200]}") from e
        checks.append(_golden(record, manifest, golden, found, "golden vectors"))
        if record.format == "coreml" and on_macos():
            checks += _on_this_mac(path, record, manifest, golden, found)
    return checks


def _on_this_mac(
    path: Path, record: FileRecord, manifest: Manifest, golden: Golden, interpreted: Outputs
) -> list[Check]:
    """Run a package under Core ML itself, too: against PyTorch, and against what the interpreter made of it."""
    from edgekit.export.coreml.session import CoreMLSession

    found = run_batched(CoreMLSession(path, "CPU"), to_input(golden.pixels))
    checks = [_golden(record, manifest, golden, found, "golden vectors, Core ML")]
    parity = compare_outputs(interpreted, found)
    same = parity.snr_db >= INTERPRETED_DB
    detail = f"SNR {parity.snr_db:.1f} dB to Core ML itself" + ("" if same else f", under {INTERPRETED_DB:g}")
    return [*checks, Check(record.path, "interpreter", same, detail)]


def _golden(record: FileRecord, manifest: Manifest, golden: Golden, found: Outputs, name: str) -> Check:
    parity, problems = golden_parity(found, golden.outputs, manifest.outputs, GATES[record.precision])
    what = "clips" if manifest.input.frames > 1 else "pictures"
    return Check(record.path, name, not problems, "; ".join(problems) if problems else describe(parity, what))


def golden_parity(
    found: Outputs, golden: Outputs, outputs: Sequence[str], gate: Gate
) -> tuple[Parity | None, tuple[str, ...]]:
    """Compare what a file gave for the golden inputs with PyTorch's outputs; return parity and what fails, in words."""
    for what, names in (("outputs", found), ("golden outputs", golden)):
        missing = [name for name in outputs if name not in names]
        if missing:
            return None, (f"{what} {sorted(names)} lack {', '.join(missing)}",)
    try:
        parity = compare_outputs(golden, found)
    except ValueError as e:
        return None, (str(e),)
    return parity, failures(parity, golden_gate(gate, parity.images))


_SURE = 0.99
"""How likely a file that is just good enough on many inputs must be to pass on the few golden ones."""


def golden_gate(gate: Gate, rows: int) -> Gate:
    """Return the gate for so few golden rows: as many top classes may flip as chance makes of the share that may.

    That is 3 of 8 rows and 2 of 4 clips where a tenth of many may flip (int8), 1 where a hundredth may (fp16), none
    where none may. The other limits stay.
    """
    flip = 1 - gate.agreement
    flips, chance = 0, gate.agreement**rows
    while flips < rows and chance < _SURE:
        flips += 1
        chance += math.comb(rows, flips) * flip**flips * gate.agreement ** (rows - flips)
    return replace(gate, agreement=(rows - flips) / rows)


def describe(parity: Parity | None, what: str = "pictures") -> str:
    """Return parity in a line."""
    if parity is None:
        return ""
    parts = [f"max abs {parity.max_abs:.2g}", f"SNR {parity.snr_db:.1f} dB", f"cosine {parity.cosine:.5f}"]
    if parity.agreement is not None:
        parts.append(f"top-1 agreement {100 * parity.agreement.value:.1f} %")
        if parity.embedding_snr_db is not None:
            parts.insert(2, f"embedding SNR {parity.embedding_snr_db:.1f} dB")
    return ", ".join(parts) + f" over {parity.images} {what}"

"""Verify a bundle: hashes, contract, golden vectors. Needs numpy and each format's runtime, not torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, LoadError
from edgekit.export.audit import check_precision
from edgekit.export.golden import Golden, preprocessing_difference, read_golden
from edgekit.export.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    read_manifest,
    resolve,
    sha256_of,
)
from edgekit.export.parity import GATES, Gate, Parity, compare_outputs, failures
from edgekit.export.runtimes import open_session, size_bytes
from edgekit.export.session import FloatArray, Session, run_batched
from edgekit.preprocess import Preprocess, to_input

PIXEL_TOLERANCE = 2
"""Levels of 255 that two builds of a JPEG decoder may differ by."""


@dataclass(frozen=True)
class Check:
    """One line of the result: what was checked, on what, how it came out.

    Attributes:
        subject: a file of the bundle, or "bundle".
        check: e.g. "sha256", "golden vectors".
        passed: whether it held.
        detail: numbers, or what is wrong.
        unavailable: it could not be checked here, because a runtime is missing; does not count as passed.
    """

    subject: str
    check: str
    passed: bool
    detail: str
    unavailable: bool = False


def verify_bundle(bundle: Path, only: Sequence[str] = (), threads: int = 1) -> list[Check]:
    """Check a bundle's files against its manifest and golden vectors.

    Args:
        bundle: the folder.
        only: manifest paths to look at; empty means all.
        threads: for each runtime.

    Raises:
        LoadError: there is no readable manifest, or `only` names a file that it does not list.
    """
    manifest = read_manifest(bundle)
    missing = set(only) - {record.path for record in manifest.files}
    if missing:
        raise LoadError(f"{bundle / MANIFEST_FILE} does not list {', '.join(sorted(missing))}")
    checks = []
    golden: Golden | None = None
    try:
        golden = _checked_golden(bundle, manifest)
        checks.append(Check(GOLDEN_FILE, "sha256", True, "as in the manifest"))
        checks.append(_preprocessing(golden, manifest))
    except EdgekitError as e:
        checks.append(Check(GOLDEN_FILE, "golden vectors", False, str(e)))
    for record in manifest.files:
        if not only or record.path in only:
            checks += _verify_file(bundle, record, manifest, golden, threads)
    return checks


def _checked_golden(bundle: Path, manifest: Manifest) -> Golden:
    path = bundle / GOLDEN_FILE
    if not path.is_file():
        raise LoadError(f"{GOLDEN_FILE} is missing")
    if sha256_of(path) != manifest.golden_sha256:
        raise LoadError(f"{GOLDEN_FILE} is not the file that was exported: its sha256 differs")
    return read_golden(path)


def _preprocessing(golden: Golden, manifest: Manifest) -> Check:
    try:
        contract = Preprocess.from_dict(manifest.input.preprocess)
        worst = preprocessing_difference(golden, contract)
    except (EdgekitError, TypeError, KeyError) as e:
        return Check("bundle", "preprocessing", False, f"the contract cannot be applied: {e}")
    detail = f"{len(golden.raw)} raw pictures, largest difference {worst} of 255 levels"
    return Check("bundle", "preprocessing", worst <= PIXEL_TOLERANCE, detail)


def _verify_file(
    bundle: Path, record: FileRecord, manifest: Manifest, golden: Golden | None, threads: int
) -> list[Check]:
    checks: list[Check] = []

    def add(check: str, passed: bool, detail: str, unavailable: bool = False) -> None:
        checks.append(Check(record.path, check, passed, detail, unavailable))

    try:
        path = resolve(bundle, record.path)
    except EdgekitError as e:
        add("path", False, str(e))
        return checks
    if not path.exists():
        add("sha256", False, "the file is missing")
        return checks
    same = sha256_of(path) == record.sha256
    add("sha256", same, "as in the manifest" if same else "differs: not the file that was exported")
    size = size_bytes(path)
    if size != record.size_bytes:
        add("size", False, f"{size} bytes, the manifest says {record.size_bytes}")
    try:
        session = open_session(path, threads)
    except EdgekitError as e:
        add("runtime", False, str(e), unavailable="pip install" in str(e))
        return checks
    reasons = check_precision(path, record.precision)
    add("precision", not reasons, "; ".join(reasons) or f"{record.precision}, as the manifest says")
    size_expected = Preprocess.from_dict(manifest.input.preprocess).image_size
    fits = tuple(session.input_shape[1:]) == (3, size_expected, size_expected)
    add("input", fits, f"{session.input_shape}" + ("" if fits else f", the manifest says {size_expected} px"))
    if fits and golden is not None:
        parity, problems = golden_parity(session, golden, manifest.outputs, GATES[record.precision])
        add("golden vectors", not problems, "; ".join(problems) if problems else describe(parity))
    return checks


def golden_parity(
    session: Session, golden: Golden, outputs: Sequence[str], gate: Gate
) -> tuple[Parity | None, tuple[str, ...]]:
    """Run the golden inputs; return parity and what fails, in words."""
    images: FloatArray = to_input(golden.pixels)
    try:
        found = run_batched(session, images)
    except Exception as e:  # native runtimes raise their own types
        return None, (f"the runtime failed: {type(e).__name__}: {str(e).splitlines()[0][:200]}",)
    missing = [name for name in outputs if name not in found]
    if missing:
        return None, (f"outputs {sorted(found)} lack {', '.join(missing)}",)
    try:
        parity = compare_outputs(golden.outputs, found)
    except ValueError as e:
        return None, (str(e),)
    return parity, failures(parity, golden_gate(gate))


def golden_gate(gate: Gate) -> Gate:
    """Return the gate for eight golden inputs: one near-tie of eight may flip where the gate allows flips at all."""
    allowed = gate.agreement if gate.agreement == 1.0 else 1 - 2 / 8
    return Gate(gate.max_abs, gate.snr_db, allowed, gate.reason)


def describe(parity: Parity | None) -> str:
    """Return parity in a line."""
    if parity is None:
        return ""
    parts = [f"max abs {parity.max_abs:.2g}", f"SNR {parity.snr_db:.1f} dB", f"cosine {parity.cosine:.5f}"]
    if parity.agreement is not None:
        parts.append(f"top-1 agreement {100 * parity.agreement.value:.1f} %")
    return ", ".join(parts) + f" over {parity.images} pictures"


def summary(checks: Sequence[Check]) -> dict[str, Any]:
    """Return the checks as JSON-ready values."""
    return {"passed": all(check.passed for check in checks), "checks": [vars(check) for check in checks]}

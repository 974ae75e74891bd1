"""The part of a text bundle's verification that opens what others wrote; runs in a child process. Knows no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError, LoadError, MissingExtraError, UsageError, first_line
from edgekit.export.manifest import GOLDEN_FILE, FileRecord, TextManifest, read_any_manifest, resolve
from edgekit.export.parity import GATES
from edgekit.export.text.golden import TextGolden, bundled_tokenizer, read_text_golden
from edgekit.export.text.session import open_text_session, run_texts
from edgekit.export.verify.check import Check
from edgekit.export.verify.file import describe, file_alone, golden_parity


def golden_checks(bundle: str) -> list[dict[str, Any]]:
    """Read the golden vectors and the tokenizer of a bundle and cut its texts anew; return the checks."""
    manifest = _manifest(bundle)
    try:
        golden = read_text_golden(resolve(Path(bundle), GOLDEN_FILE))
        tokenizer = bundled_tokenizer(Path(bundle), manifest)
    except EdgekitError as e:
        return [vars(Check("bundle", "tokenizer", False, str(e), isinstance(e, MissingExtraError)))]
    found = tokenizer(golden.texts).ids
    same = found.shape == golden.ids.shape and np.array_equal(found, golden.ids)
    detail = f"{len(golden.texts)} texts give the same ids" if same else "its ids are not those that were exported"
    return [vars(Check("bundle", "tokenizer", same, detail))]


def file_checks(bundle: str, number: int, threads: int, tensorflow_python: str | None) -> list[dict[str, Any]]:
    """Open the file of record `number` of a bundle's manifest and run the golden vectors; return the checks."""
    if tensorflow_python is not None:
        raise UsageError("TensorFlow as a second opinion is there for files that take pictures, not for those of texts")
    manifest = _manifest(bundle)
    record = manifest.files[number]
    path = resolve(Path(bundle), record.path)
    checks = file_alone(path, record)
    try:
        golden = read_text_golden(resolve(Path(bundle), GOLDEN_FILE))
    except EdgekitError:
        golden = None  # reported once, for the bundle
    try:
        checks += _in_own_runtime(path, record, manifest, golden, threads)
    except EdgekitError as e:
        checks.append(Check(record.path, "runtime", False, str(e), isinstance(e, MissingExtraError)))
    return [vars(check) for check in checks]


def _in_own_runtime(
    path: Path, record: FileRecord, manifest: TextManifest, golden: TextGolden | None, threads: int
) -> list[Check]:
    session = open_text_session(path, threads)
    fits = session.input_shape[1] in (None, manifest.input.length)
    detail = f"{session.input_shape}" + ("" if fits else f", the manifest says {manifest.input.length} ids")
    checks = [Check(record.path, "input", fits, detail)]
    if not fits or golden is None:
        return checks
    try:
        found = run_texts(session, golden.ids)
    except EdgekitError:
        raise
    except Exception as e:  # native runtimes raise their own types
        raise LoadError(f"the runtime failed: {type(e).__name__}: {first_line(e)[:200]}") from e
    parity, problems = golden_parity(found, golden.outputs, manifest.outputs, GATES[record.precision])
    detail = "; ".join(problems) or describe(parity, "texts")
    return [*checks, Check(record.path, "golden vectors", not problems, detail)]


def _manifest(bundle: str) -> TextManifest:
    manifest = read_any_manifest(Path(bundle))
    if not isinstance(manifest, TextManifest):
        raise LoadError(f"{bundle} holds no text classifier")
    return manifest

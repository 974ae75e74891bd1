"""Verify a bundle: hashes, contract, golden vectors. Needs numpy and each format's runtime, not torch.

Runtimes and picture decoders are native code, and a bundle may come from anyone: whatever opens a file of it runs in
a child process, one for each file, so that a crash there is a failed check here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, LoadError
from edgekit.export.contained import TIMEOUT_S, call_contained
from edgekit.export.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    AnyManifest,
    FileRecord,
    TextManifest,
    plain_size_bytes,
    read_any_manifest,
    resolve,
    sha256_of,
)
from edgekit.export.tflite.tensorflow import TIMEOUT_S as TENSORFLOW_S
from edgekit.export.verify.check import Check
from edgekit.printable import printable

MAX_FILE_BYTES = 8 * 2**30
"""Larger files are not even hashed: no student or CLIP is near it."""


def verify_bundle(
    bundle: Path, only: Sequence[str] = (), threads: int = 1, tensorflow_python: Path | None = None
) -> list[Check]:
    """Check a bundle's files against its manifest and golden vectors.

    Args:
        bundle: the folder.
        only: manifest paths to look at; empty means all.
        threads: for each runtime.
        tensorflow_python: check the TFLite files alone, under TensorFlow run by this Python, as a second opinion.

    Raises:
        LoadError: there is no readable manifest, or `only` names a file that it does not list.
    """
    manifest = read_any_manifest(bundle)
    opener = "text" if isinstance(manifest, TextManifest) else "file"
    missing = set(only) - {record.path for record in manifest.files}
    if missing:
        raise LoadError(f"{bundle / MANIFEST_FILE} does not list {', '.join(sorted(missing))}")
    checks = _golden_file(bundle, manifest, opener)
    checks += [_statistics_file(bundle, name, sha256) for name, sha256 in manifest.statistics.items() if not only]
    chosen = [
        number
        for number, record in enumerate(manifest.files)
        if (not only or record.path in only) and (tensorflow_python is None or record.format == "tflite")
    ]
    if not chosen:
        raise LoadError(f"{bundle} holds no file to check" + (" under TensorFlow" if tensorflow_python else ""))
    for number in chosen:
        record = manifest.files[number]
        stored, opens = _stored_file(bundle, record)
        checks += stored
        if opens:
            python = str(tensorflow_python) if tensorflow_python else None
            arguments = (str(bundle.absolute()), number, threads, python)
            limit_s = _limit_s(record, python)
            checks += _contained(record.path, f"{opener}:file_checks", *arguments, timeout_s=limit_s)
    return checks


def _limit_s(record: FileRecord, tensorflow_python: str | None) -> float:
    """Return how long a file's child may take: TensorFlow runs in a child of it, whose own limit must pass before."""
    takes_tensorflow = tensorflow_python is not None or record.format == "saved_model"
    return TIMEOUT_S + TENSORFLOW_S if takes_tensorflow else TIMEOUT_S


def _golden_file(bundle: Path, manifest: AnyManifest, opener: str) -> list[Check]:
    try:
        path = resolve(bundle, GOLDEN_FILE)
        if not path.is_file():
            raise LoadError(f"{GOLDEN_FILE} is missing")
        if path.stat().st_size > MAX_FILE_BYTES or sha256_of(path) != manifest.golden_sha256:
            raise LoadError(f"{GOLDEN_FILE} is not the file that was exported: its sha256 differs")
    except (EdgekitError, OSError) as e:
        return [Check(GOLDEN_FILE, "golden vectors", False, str(e))]
    return [
        Check(GOLDEN_FILE, "sha256", True, "as in the manifest"),
        *_contained("bundle", f"{opener}:golden_checks", str(bundle.absolute())),
    ]


def _statistics_file(bundle: Path, name: str, sha256: str) -> Check:
    subject = printable(name, 120)
    try:
        path = resolve(bundle, name)
        same = plain_size_bytes(path) <= MAX_FILE_BYTES and sha256_of(path) == sha256
    except (EdgekitError, OSError) as e:
        return Check(subject, "sha256", False, printable(str(e), 300))
    return Check(subject, "sha256", same, "as in the manifest" if same else "differs: not the file that was exported")


def _stored_file(bundle: Path, record: FileRecord) -> tuple[list[Check], bool]:
    """Check a file by its bytes alone; return the checks, and whether it may be opened."""
    subject = printable(record.path, 120)
    try:
        path = resolve(bundle, record.path)
        if not path.exists():
            return [Check(subject, "sha256", False, "the file is missing")], False
        size = plain_size_bytes(path)
        if size != record.size_bytes:
            return [
                Check(subject, "sha256", False, "differs: not the file that was exported"),
                Check(subject, "size", False, f"{size} bytes, the manifest says {record.size_bytes}"),
            ], size <= MAX_FILE_BYTES
        if size > MAX_FILE_BYTES:
            return [Check(subject, "size", False, f"{size} bytes; at most {MAX_FILE_BYTES} are opened")], False
        same = sha256_of(path) == record.sha256
    except EdgekitError as e:
        return [Check(subject, "path", False, str(e))], False
    except OSError as e:
        return [Check(subject, "path", False, f"cannot be read: {e.strerror or e}")], False
    detail = "as in the manifest" if same else "differs: not the file that was exported"
    return [Check(subject, "sha256", same, detail)], True


def _contained(subject: str, function: str, *arguments: Any, timeout_s: float = TIMEOUT_S) -> list[Check]:
    """Run "module:function" of this package in a child process; what kills the child is a failed check."""
    try:
        values = call_contained(f"edgekit.export.verify.{function}", *arguments, timeout_s=timeout_s)
    except EdgekitError as e:
        return [Check(printable(subject, 120), "runtime", False, str(e))]
    return [
        Check(**value | {"subject": printable(value["subject"], 120), "detail": printable(value["detail"])})
        for value in values
    ]

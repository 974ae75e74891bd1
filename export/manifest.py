"""The bundle's manifest: what is in the folder, what it takes and gives, and the proof. Knows no torch."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.errors import LoadError, VerificationError, first_line
from edgekit.export.parity import Precision
from edgekit.export.runtimes import Format, size_bytes
from edgekit.printable import printable

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
STATISTICS_FILES = "calibration.*.npz"
MAX_FILES = 100
"""Each file of a bundle is opened when it is verified; no list that others wrote may go on for ever."""
_MAX_MANIFEST_BYTES = 16 * 1024 * 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PortRecord(_Frozen):
    """An input or output as the file itself has it; dtype "image" is a Core ML picture of 8-bit pixels."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str
    note: str = ""


class FileRecord(_Frozen):
    """One artifact: where, what, how large, what it takes and gives, how close to PyTorch it was when it was made."""

    path: str
    format: Format
    precision: Precision
    recipe: str
    sha256: Sha256
    size_bytes: int
    inputs: tuple[PortRecord, ...]
    outputs: tuple[PortRecord, ...]
    parity: dict[str, Any]
    runtime: dict[str, Any]


class InputContract(_Frozen):
    """What a model takes. `layout` and `dtype` are the file's own; NCHW and NHWC differ between formats.

    With `frames` > 1 a file takes one clip: that many pictures, evenly spread in time, in the place of the batch.
    """

    name: str = "image"
    frames: Annotated[int, Field(ge=1)] = 1
    layout: dict[Format, str]
    dtype: str = "float32"
    range: tuple[float, float] = (0.0, 1.0)
    colour_order: Literal["RGB"] = "RGB"
    preprocess: dict[str, Any]


class TokenContract(_Frozen):
    """What a text classifier takes: int32 ids (1, length) of the bundle's own tokenizer, padded at the end.

    The mask is made from the padding inside the model. A free dimension of an ONNX file stands in its record.
    """

    name: Literal["tokens"] = "tokens"
    dtype: Literal["int32"] = "int32"
    length: Annotated[int, Field(ge=1)]
    padding: Annotated[int, Field(ge=0)]
    tokenizer: str
    tokenizer_sha256: Sha256


class AnyManifest(_Frozen):
    """Everything that a user of the bundle, or a verifier, needs to know, but for what the files take."""

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    edgekit_version: str
    versions: dict[str, str | None]
    model: dict[str, Any]
    teacher: dict[str, Any] | None
    training: dict[str, Any]
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    files: Annotated[tuple[FileRecord, ...], Field(max_length=MAX_FILES)]
    golden_sha256: Sha256
    calibration: dict[str, str]
    statistics: Annotated[dict[str, Sha256], Field(max_length=MAX_FILES)] = {}
    verification: dict[str, str]
    choices: Annotated[tuple[dict[str, Any], ...], Field(max_length=MAX_FILES)] = ()


class Manifest(AnyManifest):
    """The manifest of files that take pictures."""

    input: InputContract


class TextManifest(AnyManifest):
    """The manifest of files that take the ids of texts."""

    input: TokenContract


def read_manifest(bundle: Path) -> Manifest:
    """Read and check the manifest of a bundle whose files take pictures.

    Raises:
        LoadError: not there, too large, not a manifest, or that of a text classifier.
    """
    manifest = read_any_manifest(bundle)
    if isinstance(manifest, TextManifest):
        raise LoadError(f"{bundle} holds a text classifier, whose files take ids; this needs files that take pictures")
    return manifest


def read_any_manifest(bundle: Path) -> Manifest | TextManifest:
    """Read and check a bundle's manifest, whatever its files take.

    Raises:
        LoadError: not there, too large, or not a manifest.
    """
    path = bundle / MANIFEST_FILE
    try:
        values = json.loads(read_limited(bundle, MANIFEST_FILE, _MAX_MANIFEST_BYTES).decode("utf-8"))
        contract = values.get("input") if isinstance(values, dict) else None
        takes_ids = isinstance(contract, dict) and contract.get("name") == "tokens"
        return TextManifest.model_validate(values) if takes_ids else Manifest.model_validate(values)
    except OSError as e:
        raise LoadError(f"{bundle} is no bundle: {MANIFEST_FILE} cannot be read ({e.strerror})") from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LoadError(f"{path} is not a manifest that this edgekit reads: {where}: {first['msg']}") from e
    except (ValueError, RecursionError) as e:
        raise LoadError(f"{path} is not JSON: {e}") from e


def read_limited(bundle: Path, name: str, limit_bytes: int) -> bytes:
    """Return the content of a small file of a bundle that anyone may have made.

    Raises:
        LoadError: a pipe or device, which would be read for ever, a link out of the bundle, or too large.
        OSError: not there, or not to be read.
    """
    try:
        path = resolve(bundle, name)
    except VerificationError as e:
        raise LoadError(f"{bundle / name} is a link out of its folder, or one that leads nowhere") from e
    if not stat.S_ISREG(path.stat().st_mode):
        raise LoadError(f"{bundle / name} is no regular file")
    with path.open("rb") as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise LoadError(f"{bundle / name} has more than {limit_bytes} bytes, more than any such file")
    return content


def plain_size_bytes(path: Path) -> int:
    """Return the size of a plain file, or of a folder of plain files.

    Raises:
        LoadError: a pipe or device, which would be read for ever, or a link inside a package, which could lead there.
    """
    for entry in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise LoadError(f"{entry.name} is a link or no regular file; artifacts are made of plain files")
    return size_bytes(path)


def resolve(bundle: Path, relative: str) -> Path:
    """Return the path of a file that the manifest names, which must lie inside the bundle.

    Raises:
        VerificationError: it is absolute, climbs out, is a link out of the bundle, or no path at all.
    """
    shown = printable(relative, 120)
    pure = PurePosixPath(relative)
    try:
        inside = bundle.resolve()
        target = (inside / pure).resolve()
        target.exists()  # asks the file system, which refuses names that it cannot hold
    except (ValueError, RuntimeError, OSError) as e:  # a null character; links in a ring; a name that is too long
        reason = printable(first_line(e), 120)
        raise VerificationError(f"the manifest names '{shown}', which is no path of a file: {reason}") from e
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative or not target.is_relative_to(inside):
        raise VerificationError(f"the manifest names '{shown}', which lies outside the bundle: do not trust it")
    return target


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, or of a package: over the relative names and hashes of its files, sorted."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n".encode())
        return digest.hexdigest()
    whole = hashlib.sha256()
    with path.open("rb") as content:  # hashlib.file_digest needs Python 3.11
        while block := content.read(1 << 20):
            whole.update(block)
    return whole.hexdigest()


def statistics_name(form: Format) -> str:
    """Return the name of the file of activation statistics that a format's 8-bit ranges come from."""
    return STATISTICS_FILES.replace("*", form)


def layouts(frames: int = 1) -> Mapping[Format, str]:
    """Return each format's own input layout; the frames of a clip stand where the batch does, N."""
    if frames > 1:
        return {"onnx": "NCHW", "coreml": "NCHW", "tflite": "NHWC", "saved_model": "NHWC"}
    return {"onnx": "NCHW", "coreml": "image", "tflite": "NHWC", "saved_model": "NHWC"}

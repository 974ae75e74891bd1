"""The files under test, and what bench must know of a model, file or not, to open and feed it.

Files are only hashed here. What opens one runs in a process of its own, see `edgekit.bench.worker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.bench.results import Kind
from edgekit.bench.trained_on import TrainedOn, trained_on_of_bundle
from edgekit.bench.worker import Opening
from edgekit.errors import EdgekitError, LoadError, UsageError
from edgekit.export.clip.bundle import TOWERS, is_clip_bundle
from edgekit.export.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    TextManifest,
    read_any_manifest,
    resolve,
    sha256_of,
)
from edgekit.export.parity import Precision
from edgekit.export.runtimes import CAN_BE_TIMED, DEFAULT_RUNTIME, Format, format_of, is_package, size_bytes
from edgekit.preprocess import Preprocess

UNREAD = "?"
"""Stands for a format or precision that is not known (yet)."""
LIBRARIES: Mapping[Format, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "edgekit.export.onnx.session"),
    "tflite": ("ai_edge_litert.interpreter", "edgekit.export.tflite.session", "email.parser"),
    "coreml": ("torch", "edgekit.export.mil.interpreter"),
    "saved_model": ("edgekit.export.saved_model.convert",),  # TensorFlow has a process of its own, perhaps elsewhere
}
"""What is loaded before the clock of a cold start: the runtime, and our own code around it. `email.parser` is what
`importlib.metadata` reads a version with; ONNX Runtime has loaded it already."""


@dataclass(frozen=True)
class Candidate:
    """One model under test.

    Attributes:
        name: shown in the table, unique.
        kind, format, precision: as in `BenchRow`.
        opening: how a process of its own opens it; None for a teacher of which only the answers are known.
        path: of an artifact.
        sha256: of an artifact, as in manifests.
        contract: how pictures are prepared; None takes the session's size and ImageNet's usual geometry.
        size_bytes, parameters: None where unknown.
        timed: whether its latency means anything here.
        scored: whether it is run on the pictures; a teacher's answers are on record instead.
        frames: pictures that it takes for one answer: 1, or those of a clip.
        golden: file of golden vectors that it was proven with, where it comes from a bundle.
        claimed: precision that its manifest tells.
        outputs: names of what it gives, as its manifest tells.
        classes: which class each of its scores is, as its manifest tells.
        accelerator: what runs it, where that can be chosen, e.g. "webgpu"; "" takes the runtime's usual.
        trained: what is recorded of its training; None where nothing is.
        note: what a reader of its row must know.
        problem: why it is not even opened.
    """

    name: str
    kind: Kind
    format: str
    precision: str
    opening: Opening | None
    path: Path | None = None
    sha256: str | None = None
    contract: Preprocess | None = None
    size_bytes: int | None = None
    parameters: int | None = None
    timed: bool = True
    scored: bool = True
    frames: int = 1
    golden: Path | None = None
    claimed: Precision | None = None
    outputs: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    accelerator: str = ""
    trained: TrainedOn | None = None
    note: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class Given:
    """An artifact that was asked for.

    Attributes:
        path: of the file, or of the bundle where not even its list can be read.
        record: what the manifest beside it says of it; None where none lists it.
        manifest: that manifest.
        problem: why it cannot be opened.
    """

    path: Path
    record: FileRecord | None = None
    manifest: Manifest | TextManifest | None = field(default=None, repr=False)
    problem: str | None = None


def given_artifacts(paths: Sequence[Path]) -> list[Given]:
    """Return the artifacts that the given paths stand for: files, or bundles with all of theirs.

    Raises:
        UsageError: a folder that is no bundle.
    """
    found: list[Given] = []
    for path in paths:
        if (path / MANIFEST_FILE).is_file():
            found += _of_bundle(path)
        elif is_clip_bundle(path):
            for tower in TOWERS:
                found += _of_bundle(path / tower)
        elif path.is_dir() and not is_package(path):
            raise UsageError(f"{path} is a folder without {MANIFEST_FILE}; give artifacts, or bundles made by export")
        else:
            found.append(_of_file(path))
    return found


def _of_bundle(bundle: Path) -> list[Given]:
    try:
        manifest = read_any_manifest(bundle)
    except LoadError as e:
        return [Given(bundle, problem=str(e))]
    return [_of_record(bundle, record, manifest) for record in manifest.files]


def _of_record(bundle: Path, record: FileRecord, manifest: Manifest | TextManifest) -> Given:
    try:
        return Given(resolve(bundle, record.path), record, manifest)
    except EdgekitError as e:
        return Given(bundle / Path(record.path).name, record, manifest, str(e))


def _of_file(path: Path) -> Given:
    """Return a file with what the manifest beside it says of it, where one lists it."""
    if not (path.parent / MANIFEST_FILE).is_file():
        return Given(path)
    try:
        manifest = read_any_manifest(path.parent)
    except LoadError as e:
        return Given(path, problem=f"the manifest beside it cannot be read: {e}")
    records = [record for record in manifest.files if record.path == path.name]
    return Given(path, records[0], manifest) if records else Given(path)


def artifact_candidates(given: Sequence[Given], threads: int) -> list[Candidate]:
    """Return a candidate per artifact; files of the same name are told apart by their folders."""
    names = distinct_names([one.path for one in given])
    return [_artifact(name, one, threads) for name, one in zip(names, given, strict=True)]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart; a path that is there again says so."""
    absolute = [path.absolute() for path in paths]
    names = []
    for number, path in enumerate(absolute):
        others = {other.parts for other in absolute if other != path}
        ends = (path.parts[-length:] for length in range(1, len(path.parts)))
        end = next((end for end in ends if all(other[-len(end) :] != end for other in others)), path.parts)
        earlier = absolute[:number].count(path)
        again = "" if not earlier else " (again)" if earlier == 1 else f" (again {earlier})"
        names.append(str(Path(*end)) + again)
    return names


def _artifact(name: str, given: Given, threads: int) -> Candidate:
    unread = Candidate(name, "artifact", UNREAD, UNREAD, None, given.path, problem=given.problem)
    try:
        if given.problem is None and not given.path.exists():
            raise LoadError(f"{given.path} is not there")
        form = format_of(given.path)
        if given.problem is not None:
            return replace(unread, format=form)
        sha256 = sha256_of(given.path)
        size = size_bytes(given.path)
    except (EdgekitError, OSError) as e:
        return replace(unread, problem=given.problem or str(e))
    known = replace(unread, format=form, sha256=sha256, size_bytes=size)
    if given.record is not None and given.record.sha256 != sha256:
        return replace(known, problem="it is not the file that was exported: its sha256 differs from the manifest's")
    if given.record is not None and isinstance(given.manifest, TextManifest):
        return _of_texts(known, given.manifest, form, threads)
    listed = given.manifest if given.record is not None and isinstance(given.manifest, Manifest) else None
    return replace(
        known,
        opening=Opening(
            "edgekit.bench.openers:artifact",
            (str(given.path.absolute()), threads),
            (*LIBRARIES[form], "edgekit.export.runtimes"),
        ),
        contract=Preprocess.from_dict(listed.input.preprocess) if listed else None,
        timed=CAN_BE_TIMED[DEFAULT_RUNTIME[form]],
        frames=listed.input.frames if listed else 1,
        golden=given.path.parent / GOLDEN_FILE if listed else None,
        claimed=given.record.precision if given.record else None,
        outputs=listed.outputs if listed else (),
        classes=listed.classes if listed else (),
        trained=trained_on_of_bundle(listed) if listed else None,
    )


def _of_texts(known: Candidate, manifest: TextManifest, form: Format, threads: int) -> Candidate:
    """Return a file that takes the ids of a text: it is timed, but no pictures are run through it."""
    assert known.path is not None
    token = 1 if manifest.input.padding == 0 else 0  # any that is not padding: a text of full length
    arguments = (str(known.path.absolute()), threads, manifest.input.length, token)
    return replace(
        known,
        opening=Opening(
            "edgekit.bench.openers:text_artifact", arguments, (*LIBRARIES[form], "edgekit.export.text.session")
        ),
        timed=CAN_BE_TIMED[DEFAULT_RUNTIME[form]],
        scored=False,
        note=f"takes texts: its latency is of one text of {manifest.input.length} ids",
    )

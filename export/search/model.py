"""The pair of towers that a search runs: out of a CLIP's bundle, or two files of which one takes texts. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import LoadError, UsageError
from edgekit.export.clip.bundle import check_tower, is_clip_bundle, read_clip_record
from edgekit.export.manifest import (
    MANIFEST_FILE,
    AnyManifest,
    FileRecord,
    Manifest,
    TextManifest,
    plain_size_bytes,
    read_any_manifest,
    resolve,
    sha256_of,
)
from edgekit.export.runtimes import Format, open_session
from edgekit.export.session import FloatArray, Session
from edgekit.export.text.golden import bundled_tokenizer
from edgekit.export.text.session import open_text_session, run_texts
from edgekit.models.text_tokenizer import Encoded
from edgekit.preprocess import Preprocess

_FORMATS: tuple[Format, ...] = ("onnx", "tflite", "coreml", "saved_model")
_PRECISIONS = ("fp32", "fp16", "int8")
"""What is taken out of a bundle: ONNX before the others, the most exact before the smaller."""


@dataclass(frozen=True)
class TowerFile:
    """An artifact and the manifest that says what it is.

    Attributes:
        bundle: the folder of both.
        record: of the file.
        manifest: of the folder.
    """

    bundle: Path
    record: FileRecord
    manifest: Manifest | TextManifest

    @property
    def path(self) -> Path:
        """The artifact."""
        return resolve(self.bundle, self.record.path)

    def checked(self) -> Path:
        """Return the artifact, if it is the one that was exported.

        Raises:
            LoadError: it is another one, or not there.
        """
        path = self.path
        if not path.exists():
            raise LoadError(f"{path} is not there, although its manifest lists it; export the bundle again")
        if plain_size_bytes(path) != self.record.size_bytes or sha256_of(path) != self.record.sha256:
            raise LoadError(f"{path} is not the file that was exported: its sha256 differs. Run edgekit verify on it")
        return path


class SearchModel:
    """Embeds pictures and queries into the same space.

    Attributes:
        embed_dim: of the space.
        preprocess: how a picture becomes the input.
        fingerprint: hash of image tower and preprocessing.

    Raises:
        LoadError: a file is missing, changed, or cannot be opened; or the two are not towers of one CLIP.
        UsageError: the paths do not stand for an image tower and a text tower.
    """

    def __init__(self, paths: Sequence[Path], threads: int = 1) -> None:
        image, text = towers_of(paths)
        _check_pair(image.manifest, text.manifest)
        assert isinstance(image.manifest, Manifest) and isinstance(text.manifest, TextManifest), "see towers_of"
        self.embed_dim = int(image.manifest.model["embed_dim"])
        self.preprocess = Preprocess.from_dict(image.manifest.input.preprocess)
        contract = json.dumps(self.preprocess.to_dict(), sort_keys=True)
        image_file, text_file = image.checked(), text.checked()
        self.fingerprint = hashlib.sha256(f"{image.record.sha256} {contract}".encode()).hexdigest()
        self._tokenizer = bundled_tokenizer(text.bundle, text.manifest)
        self._text = open_text_session(text_file, threads)
        self._image_file, self._threads = image_file, threads
        self._image: Session | None = None

    def pictures(self) -> Session:
        """Return the image tower, opened once and only when it is needed: most searches find all pictures indexed."""
        if self._image is None:
            self._image = open_session(self._image_file, self._threads)
        return self._image

    def encode(self, query: str) -> Encoded:
        """Return the ids of a query, and whether it was cut or nothing was left of it."""
        return self._tokenizer([query])

    def embed(self, encoded: Encoded) -> FloatArray:
        """Return the unit row (D,) of an encoded query.

        Raises:
            LoadError: the text tower gives something else.
        """
        found = run_texts(self._text, encoded.ids).get("embedding")
        if found is None or found.shape != (1, self.embed_dim) or not np.linalg.norm(found) > 0:
            raise LoadError(f"the text tower gives no finite embedding of {self.embed_dim} dimensions")
        return np.asarray(found[0] / np.linalg.norm(found[0]), np.float32)


def towers_of(paths: Sequence[Path]) -> tuple[TowerFile, TowerFile]:
    """Return the image tower and the text tower that the paths stand for.

    Args:
        paths: the bundle of a CLIP; or two bundles or files of bundles, one of them of a text tower. The other may
            be a student that was distilled from that CLIP.

    Raises:
        UsageError, LoadError: they stand for something else.
    """
    if len(paths) == 1 and is_clip_bundle(paths[0]):
        record = read_clip_record(paths[0])
        image, text = (_best(paths[0] / name, check_tower(paths[0], name, record)) for name in ("image", "text"))
        return image, text
    if len(paths) != 2:
        raise UsageError("--model needs the bundle of a CLIP, or twice a file or bundle: an image and a text tower")
    files = [_file(path) for path in paths]
    images = [file for file in files if isinstance(file.manifest, Manifest)]
    texts = [file for file in files if isinstance(file.manifest, TextManifest)]
    if len(images) != 1 or len(texts) != 1:
        given = f"{len(images)} files that take pictures and {len(texts)} that take texts"
        raise UsageError(f"--model got {given}; one of each is needed")
    return images[0], texts[0]


def _file(path: Path) -> TowerFile:
    """Return the file of a bundle that `path` is, or the best one of the bundle that it is."""
    if is_clip_bundle(path):
        raise UsageError(f"{path} holds both towers of a CLIP; give {path / 'image'} or {path / 'text'} beside another")
    if (path / MANIFEST_FILE).is_file():
        return _best(path, read_any_manifest(path))
    if not path.exists():
        raise LoadError(f"{path} is not there; give a bundle, or a file inside one")
    if not (path.parent / MANIFEST_FILE).is_file():
        raise LoadError(f"{path} has no {MANIFEST_FILE} beside it, which says how its input is prepared")
    manifest = read_any_manifest(path.parent)
    for record in manifest.files:
        if record.path == path.name:
            return TowerFile(path.parent, record, manifest)
    raise LoadError(f"{path.parent / MANIFEST_FILE} does not list {path.name}")


def _best(bundle: Path, manifest: Manifest | TextManifest) -> TowerFile:
    if not manifest.files:
        raise LoadError(f"{bundle} holds no files")

    def order(record: FileRecord) -> tuple[int, int]:
        known = record.precision in _PRECISIONS
        return _FORMATS.index(record.format), _PRECISIONS.index(record.precision) if known else len(_PRECISIONS)

    return TowerFile(bundle, min(manifest.files, key=order), manifest)


def _check_pair(image: AnyManifest, text: AnyManifest) -> None:
    """Raise unless the image side is of the same CLIP as the text side, or was distilled from it."""
    for what, manifest in (("image", image), ("text", text)):
        if "embedding" not in manifest.outputs:
            raise LoadError(f"the {what} file gives {', '.join(manifest.outputs)} and no embedding to search by")
    if isinstance(image, Manifest) and image.input.frames > 1:
        raise UsageError("the image file takes clips of several frames; search is for pictures")
    same = image.training.get("checkpoint_sha256") == text.training.get("checkpoint_sha256")
    teacher, fingerprint = image.teacher or {}, text.training.get("fingerprint")
    distilled = fingerprint is not None and teacher.get("fingerprint") == fingerprint
    if not (same or distilled):
        raise LoadError(
            "the two towers are not of one CLIP, nor was the image one distilled from the text one's: their embeddings "
            "cannot be compared. Export both from one run, or the student and its teacher"
        )
    if image.model.get("embed_dim") != text.model.get("embed_dim"):
        raise LoadError(f"the towers give {image.model.get('embed_dim')} and {text.model.get('embed_dim')} dimensions")

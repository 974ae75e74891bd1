"""A CLIP's bundle: a bundle for each tower, and a record that ties them together. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.errors import LoadError, VerificationError
from edgekit.export.manifest import (
    MANIFEST_FILE,
    Manifest,
    Sha256,
    TextManifest,
    read_any_manifest,
    read_limited,
    resolve,
    sha256_of,
)

CLIP_RECORD = "clip.json"
TowerName = Literal["image", "text"]
TOWERS: Mapping[TowerName, type[Manifest] | type[TextManifest]] = {"image": Manifest, "text": TextManifest}
"""Folder of each tower, and the kind of its bundle."""
_MAX_RECORD_BYTES = 2**20


class TowerRecord(BaseModel):
    """One tower: the hash of its bundle's manifest, which holds the hashes of all its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_sha256: Sha256


class ClipRecord(BaseModel):
    """What both towers have in common.

    Attributes:
        embed_dim: dimension of the shared space.
        scale: factor on the cosines: softmax(scale · cosine + bias) over texts is CLIP's zero-shot classifier.
        bias: of a CLIP trained with the sigmoid loss.
        retrieval: R@1 of each pair of files, and of PyTorch, on the pictures and captions that they were compared on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    embed_dim: Annotated[int, Field(ge=1)]
    scale: float
    bias: float | None
    towers: dict[TowerName, TowerRecord]
    retrieval: dict[str, dict[str, float]]


def is_clip_bundle(path: Path) -> bool:
    """Return whether a folder is the bundle of a CLIP."""
    return (path / CLIP_RECORD).is_file()


def read_clip_record(bundle: Path) -> ClipRecord:
    """Read and check the record of a CLIP's bundle.

    Raises:
        LoadError: not there, too large, or not such a record.
    """
    path = bundle / CLIP_RECORD
    try:
        record = ClipRecord.model_validate_json(read_limited(bundle, CLIP_RECORD, _MAX_RECORD_BYTES))
    except OSError as e:
        raise LoadError(f"{bundle} is no bundle of a CLIP: {CLIP_RECORD} cannot be read ({e.strerror})") from e
    except (ValidationError, RecursionError) as e:
        reason = e.errors()[0]["msg"] if isinstance(e, ValidationError) else str(e)
        raise LoadError(f"{path} is not a record that this edgekit reads: {reason}") from e
    if set(record.towers) != set(TOWERS):
        raise LoadError(f"{path} names the towers {', '.join(sorted(record.towers))}; needed are {', '.join(TOWERS)}")
    return record


def check_tower(bundle: Path, name: TowerName, record: ClipRecord) -> Manifest | TextManifest:
    """Return a tower's manifest, after checking that it is the one that was exported.

    Raises:
        LoadError: there is none that can be read, or it is of the other kind.
        VerificationError: it is another one than the record's, or its folder is a link out of the bundle.
    """
    resolve(bundle, name)
    manifest = read_any_manifest(bundle / name)
    if not isinstance(manifest, TOWERS[name]):
        raise LoadError(f"{bundle / name} is not the bundle of a CLIP's {name} tower: its files take something else")
    if sha256_of(bundle / name / MANIFEST_FILE) != record.towers[name].manifest_sha256:
        raise VerificationError(
            f"{bundle / name / MANIFEST_FILE} is not the one that was exported: its sha256 differs from {CLIP_RECORD}"
        )
    return manifest

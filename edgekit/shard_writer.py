"""Write a data set as tar shards by the WebDataset convention, with an index beside them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import atomic
from edgekit.data import ImageDataset, Sample, check_broken
from edgekit.errors import UsageError
from edgekit.listing import Split
from edgekit.shards import write_index


@dataclass
class Written:
    """What `write_shards` wrote.

    Attributes:
        shards: the index's entries.
        broken: key → reason of files that could not be read.
    """

    shards: list[dict[str, Any]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)


def write_shards(
    dataset: ImageDataset,
    output: Path,
    *,
    shard_bytes: int = 100_000_000,
    seed: int = 0,
    max_broken: float = 0.01,
    overwrite: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Written:
    """Write train-000000.tar …, val-000000.tar … and index.json into a new folder, whole or not at all.

    Training pictures are put in a random order, a function of `seed`: neighbours in a tar are read together, and would
    else all be of one class. Files are copied as they are, so a teacher store of the folder serves the shards, too.

    Args:
        dataset: its pictures.
        output: the folder.
        shard_bytes: a shard is closed when it has this many bytes of pictures.
        seed: of the order.
        max_broken: share of unreadable files that is tolerated.
        overwrite: replace the folder.
        advance: called with the number of pictures written since the last call.

    Raises:
        UsageError: the data are clips, or shards would hold nothing.
        OutputExistsError: the folder is there and not to be replaced, or holds pictures of the data set.
        DataError: too many files cannot be read; nothing is written then.
        WriteError: the disk refuses.
    """
    if dataset.kind != "pictures":
        raise UsageError(f"{dataset.root} holds {dataset.kind}; `edgekit data shard` writes pictures")
    if shard_bytes < 1:
        raise UsageError(f"--shard-size {shard_bytes}: give a positive number of bytes, such as 100MB")
    atomic.refuse_replacing(output, (dataset.root, *(sample.path for sample in (*dataset.train, *dataset.val))))
    written = Written()
    with atomic.atomic_folder(output, overwrite=overwrite) as folder:
        for split, samples in (("train", _shuffled(dataset.train, seed)), ("val", dataset.val)):
            _write_split(folder, split, samples, dataset.classes, (shard_bytes, written, advance or (lambda n: None)))  # type: ignore[arg-type]
        check_broken(written.broken, len(dataset.train) + len(dataset.val), max_broken)
        write_index(folder, dataset.classes, written.shards)
    return written


def _shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    return sorted(samples, key=lambda s: hashlib.blake2b(f"{seed}/shard/{s.key}".encode(), digest_size=8).digest())


_Job = tuple[int, Written, Callable[[int], None]]


def _write_split(folder: Path, split: Split, samples: Sequence[Sample], classes: Sequence[str], job: _Job) -> None:
    shard_bytes, written, advance = job
    readable = _readable(samples, written.broken, advance)
    item = next(readable, None)
    number = position = 0
    while item is not None:
        name, filled, labelled, first = f"{split}-{number:06d}.tar", 0, 0, position
        with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT) as tar:
            while item is not None and (filled == 0 or filled + len(item[1]) <= shard_bytes):
                sample, content = item
                _add(tar, position, sample, content, classes)
                position, filled, labelled = position + 1, filled + len(content), labelled + (sample.label is not None)
                item = next(readable, None)
        written.shards.append(_entry(folder / name, split, position - first, labelled))
        number += 1


def _readable(
    samples: Sequence[Sample], broken: dict[str, str], advance: Callable[[int], None]
) -> Iterator[tuple[Sample, bytes]]:
    for sample in samples:
        advance(1)
        try:
            content = sample.path.read_bytes()
        except OSError as e:
            broken[sample.key] = f"cannot read {sample.path}: {e.strerror or e}"
            continue
        if not content:
            broken[sample.key] = f"cannot read {sample.path}: the file is empty"
            continue
        yield sample, content


def _add(tar: tarfile.TarFile, position: int, sample: Sample, content: bytes, classes: Sequence[str]) -> None:
    """Add a sample's files; names are numbers, as a dot in a name would end the key."""
    note: dict[str, Any] = {"key": sample.key}
    files = {sample.path.suffix.lower(): content}
    if sample.label is not None:
        note["label"] = classes[sample.label]
        files[".cls"] = str(sample.label).encode()
    files[".json"] = json.dumps(note, ensure_ascii=False).encode()
    for suffix, data in files.items():
        member = tarfile.TarInfo(f"{position:09d}{suffix}")  # no time, no owner: the same data give the same bytes
        member.size = len(data)
        member.mode = 0o644
        tar.addfile(member, io.BytesIO(data))


def _entry(path: Path, split: Split, pictures: int, labelled: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "file": path.name,
        "split": split,
        "pictures": pictures,
        "labelled": labelled,
        "size_bytes": path.stat().st_size,
        "sha256": digest.hexdigest(),
    }

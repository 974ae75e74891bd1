"""Damage artifacts as accidents and attackers do: cut, flip bits, overwrite, swap types; a function of a seed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

KINDS = ("truncate", "flip bits", "flip head", "fill", "other suffix")
SUFFIXES = (".onnx", ".tflite", ".mlpackage")


def damaged(source: Path, folder: Path, seed: int) -> Path:
    """Write a damaged copy of a file or package into `folder`; return it."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    if kind == "other suffix":
        suffix = SUFFIXES[(SUFFIXES.index(source.suffix) + 1 + seed // len(KINDS) % 2) % 3]
        target = folder / f"{seed}{suffix}"
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        return target
    target = folder / f"{seed}{source.suffix}"
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    files = [target] if target.is_file() else sorted(path for path in target.rglob("*") if path.is_file())
    victim = files[int(rng.integers(len(files)))]
    victim.write_bytes(_damage(victim.read_bytes(), kind, rng))
    return target


def _damage(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    if kind == "truncate":
        return content[: int(rng.integers(len(content)))]
    data = np.frombuffer(content, np.uint8).copy()
    if kind == "fill":
        start, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
        data[start : start + length] = rng.choice([0, 0xFF, 0x7F, 0x80])
        return data.tobytes()
    # the structure sits at the ends of such files, the weights between: damage in the weights goes unnoticed
    reach = min(len(data), 2048) if kind == "flip head" else len(data)
    at = rng.integers(0, reach, size=int(rng.integers(1, 9)))
    ends = rng.random(len(at)) < 0.5
    data[np.where(ends & (kind == "flip head"), len(data) - 1 - at, at)] ^= (1 << rng.integers(0, 8, len(at))).astype(
        np.uint8
    )
    return data.tobytes()


def damaged_copies(sources: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """Return `count` damaged copies, going round the sources."""
    folder.mkdir(parents=True, exist_ok=True)
    return [damaged(sources[seed % len(sources)], folder, seed) for seed in range(count)]

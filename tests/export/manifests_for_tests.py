"""Manifests of bundles without files: what reads them must decide before it opens one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekit.export.clip.bundle import CLIP_RECORD
from edgekit.export.manifest import MANIFEST_FILE, sha256_of
from edgekit.preprocess import Preprocess

NO_SHA = "0" * 64
RECORD: dict[str, Any] = {
    "path": "model.fp32.onnx", "format": "onnx", "precision": "fp32", "recipe": "", "sha256": NO_SHA,
    "size_bytes": 1, "inputs": [], "outputs": [], "parity": {}, "runtime": {},
}  # fmt: skip
COMMON: dict[str, Any] = {
    "created": "", "edgekit_version": "", "versions": {}, "model": {"embed_dim": 4}, "teacher": None, "training": {},
    "outputs": ["embedding"], "classes": [], "files": [RECORD], "golden_sha256": NO_SHA, "calibration": {},
    "verification": {},
}  # fmt: skip
PICTURES = {"layout": {"onnx": "NCHW"}, "preprocess": Preprocess(32, 32).to_dict()}
TEXTS = {"name": "tokens", "length": 8, "padding": 0, "tokenizer": "tokenizer.json", "tokenizer_sha256": NO_SHA}


def write_manifest(folder: Path, contract: dict[str, Any], **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).write_text(json.dumps({**COMMON, "input": contract, **changes}))


def write_clip(folder: Path) -> Path:
    for name, contract in (("image", PICTURES), ("text", TEXTS)):
        write_manifest(folder / name, contract)
    towers = {name: {"manifest_sha256": sha256_of(folder / name / MANIFEST_FILE)} for name in ("image", "text")}
    record = {"embed_dim": 4, "scale": 1.0, "bias": None, "towers": towers, "retrieval": {}}
    (folder / CLIP_RECORD).write_text(json.dumps(record))
    return folder

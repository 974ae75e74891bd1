"""Small ONNX classifiers written by hand: they open in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from edgekit.bench.worker import Opening, Worker
from edgekit.export.manifest import sha256_of
from edgekit.preprocess import Preprocess

SIZE = 16
CLASSES = {"a-red": (220, 20, 20), "b-green": (20, 220, 20), "c-blue": (20, 20, 220)}


def write_classifier(path: Path, *, classes: int = 3, batch: int | str = 1, seed: int = 0, work: int = 0) -> Path:
    """Write a classifier of mean colours: red, green, blue are classes 0, 1, 2. `work` adds matrix products."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.zeros((3, classes), np.float32)
    weights[:3, :3] = 10 * np.eye(3)[:, : min(3, classes)]
    weights += 0.01 * np.random.default_rng(seed).standard_normal(weights.shape).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weights"], ["scores"]),
    ]
    constants = [numpy_helper.from_array(weights, "weights")]
    last = "scores"
    if work:
        constants.append(numpy_helper.from_array(np.eye(256, dtype=np.float32), "unit"))
        constants.append(numpy_helper.from_array(np.zeros((1, 1), np.float32), "nothing"))
        nodes.append(helper.make_node("Add", ["unit", "mean_of_scores"], ["product0"]))
        nodes.insert(3, helper.make_node("ReduceMean", ["scores"], ["mean_of_scores"], keepdims=0))
        nodes += [helper.make_node("MatMul", [f"product{n}", "unit"], [f"product{n + 1}"]) for n in range(work)]
        nodes.append(helper.make_node("ReduceMean", [f"product{work}"], ["sum"], keepdims=0))
        nodes.append(helper.make_node("Mul", ["sum", "nothing"], ["zero"]))
        nodes.append(helper.make_node("Add", ["scores", "zero"], ["logits"]))
        last = "logits"
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, classes])],
        constants,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def opening(path: Path) -> Opening:
    """Return how a process opens a file."""
    return Opening("edgekit.bench.openers:artifact", (str(path), 1), ("onnxruntime",))


@contextmanager
def opened(path: Path) -> Iterator[Worker]:
    """Yield a worker that holds a file."""
    with Worker(opening(path)) as worker:
        worker.open()
        yield worker


def write_bundle(folder: Path, files: Sequence[Path]) -> Path:
    """Move classifiers into a bundle with a manifest that lists them."""
    folder.mkdir(parents=True)
    records = []
    for file in files:
        path = folder / file.name
        path.write_bytes(file.read_bytes())
        record = {
            "path": file.name, "format": "onnx", "precision": "fp32", "recipe": "fp32", "sha256": sha256_of(path),
            "size_bytes": path.stat().st_size, "inputs": [], "outputs": [], "parity": {}, "runtime": {},
        }  # fmt: skip
        records.append(record)
    contract = {"layout": {"onnx": "NCHW"}, "preprocess": Preprocess(SIZE, SIZE, "bilinear").to_dict()}
    manifest = {
        "created": "2026-01-02T03:04:05Z", "edgekit_version": "0.1.0", "versions": {}, "model": {}, "teacher": None,
        "training": {}, "outputs": ["logits"], "classes": list(CLASSES), "files": records, "golden_sha256": "0" * 64,
        "calibration": {}, "verification": {}, "input": contract,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def draw(root: Path, each: int = 4) -> Path:
    """Write pictures of one colour per class, for validation and (one each) for training."""
    for split, count in (("train", 1), ("val", each)):
        for name, colour in CLASSES.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.new("RGB", (SIZE, SIZE), tuple(max(0, part - 9 * number) for part in colour))
                picture.save(root / split / name / f"{number}.png")
    return root

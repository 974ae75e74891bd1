"""Golden vectors: whatever the pictures are, the bundle holds some that prove its preprocessing and its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned_for_tests import train_small_clip
from PIL import Image

from edgekit.data import Sample
from edgekit.errors import VerificationError
from edgekit.export.attempt import Workshop
from edgekit.export.clip.export import export_clip_run
from edgekit.export.config import ExportConfig
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.export import export_run
from edgekit.export.export_clips import ExportClips, frames_of
from edgekit.export.exporters import Conversion
from edgekit.export.golden import MAX_RAW_BYTES, Golden, prove_golden, read_golden, reduced, write_golden
from edgekit.export.manifest import GOLDEN_FILE
from edgekit.export.session import run_batched
from edgekit.export.verify.bundle import verify_bundle
from edgekit.export.verify.clip import verify_clip
from edgekit.models.checkpoint import save_student
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, student_preprocess
from edgekit.preprocess import Preprocess, to_input
from edgekit.terminal import Terminal
from tests.export.nets_for_tests import pictures

SIZE = 32
CLASSES = ("cat", "dog")


def student() -> Student:
    torch.manual_seed(0)
    return Student(StudentSpec("test_byobnet", 16, CLASSES, student_preprocess("test_byobnet", SIZE))).eval()


def photos(folder: Path, shape: tuple[int, int, int], count: int = 5) -> Path:
    """Write pictures of noise, which no format makes small: 3 bytes a pixel."""
    rng = np.random.default_rng(0)
    for name in (f"{split}/{label}/{n}.png" for split in ("train", "val") for label in CLASSES for n in range(count)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
    return folder


def exported(tmp_path: Path, data: Path) -> Path:
    save_student(tmp_path / "student.safetensors", student())
    config = ExportConfig(tmp_path / "student.safetensors", tmp_path / "bundle", ("onnx",), ("fp32",), data=data)
    assert [attempt.problems for attempt in export_run(config, Terminal(-1))] == [()]
    return config.output


def test_photos_too_large_to_travel_still_make_a_bundle_that_verifies(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", (600, 700, 3))
    assert min(path.stat().st_size for path in data.rglob("*.png")) > MAX_RAW_BYTES
    bundle = exported(tmp_path, data)
    assert [check for check in verify_bundle(bundle) if not check.passed] == []
    golden = read_golden(bundle / GOLDEN_FILE)
    assert len(golden.raw) == 2 and len(golden.pixels) == 8
    assert max(map(len, golden.raw)) < MAX_RAW_BYTES, "what travels is small"
    said = run_batched(TorchSession(DeployModel(student())), to_input(golden.pixels))
    for name, values in said.items():  # the outputs are those of the smaller pictures, not of the photos
        np.testing.assert_allclose(golden.outputs[name], values, atol=1e-6)


def test_a_clip_of_large_photos_verifies(tmp_path: Path) -> None:
    run = train_small_clip(tmp_path / "clip")
    data = photos(tmp_path / "photos", (600, 700, 3), count=2) / "val"
    for number, path in enumerate(data.rglob("*.png")):
        path.with_suffix(".txt").write_text(f"photo {number}")
    settings = {"outputs": ("embedding",), "data": data, "val_fraction": 0.5}
    attempts = export_clip_run(ExportConfig(run, tmp_path / "bundle", ("onnx",), ("fp32",), **settings), Terminal(-1))  # type: ignore[arg-type]
    assert [attempt.problems for attempt in attempts] == [(), ()]
    assert [check for check in verify_clip(tmp_path / "bundle") if not check.passed] == []
    assert max(map(len, read_golden(tmp_path / "bundle" / "image" / GOLDEN_FILE).raw)) < MAX_RAW_BYTES


def test_large_frames_of_a_clip_travel_smaller(tmp_path: Path) -> None:
    folder, contract, rng = tmp_path / "clip", Preprocess(SIZE, SIZE), np.random.default_rng(0)
    folder.mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (600, 700, 3), np.uint8)).save(folder / f"{number}.png")
    frames = frames_of([Sample("clip", folder, 0)], 4, contract)
    model = DeployModel(Student(replace(student().spec, frames=4))).eval()
    clips = ExportClips(frames, frames, {}, {}, (folder,), contract, 4)
    write_golden(tmp_path / GOLDEN_FILE, clips.golden(TorchSession(model)))
    golden = prove_golden(tmp_path / GOLDEN_FILE, contract)
    assert len(golden.raw) == 2 and max(map(len, golden.raw)) < MAX_RAW_BYTES
    said = run_batched(TorchSession(model), to_input(golden.pixels))
    np.testing.assert_allclose(golden.outputs["logits"], said["logits"], atol=1e-6)


def test_small_pictures_travel_as_they_are(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", (48, 40, 3))
    golden = read_golden(exported(tmp_path, data) / GOLDEN_FILE)
    files = {path.read_bytes() for path in (data / "val").rglob("*.png")}
    assert len(golden.raw) == 2 and set(golden.raw) <= files


@pytest.mark.parametrize("size", [(3000, 2000), (9000, 300), (300, 9000), (100, 90), (2000, 3)])
def test_reduced_pictures_are_small_and_still_need_resizing(size: tuple[int, int]) -> None:
    import io

    contract = Preprocess(128, 146)
    found = Image.open(io.BytesIO(reduced(Image.new("RGB", size, "red"), contract)))
    assert min(found.size) == min(2 * 146, *size)
    assert max(found.size) <= 8 * min(found.size)


def test_golden_vectors_that_do_not_prove_the_preprocessing_are_not_kept(tmp_path: Path) -> None:
    contract = Preprocess(SIZE, SIZE)
    raw = reduced(Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 80, 3), np.uint8)), contract)
    other = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    write_golden(tmp_path / GOLDEN_FILE, Golden(other, {"logits": np.ones((1, 2), np.float32)}, (raw,)))
    with pytest.raises(VerificationError, match="differs by"):
        prove_golden(tmp_path / GOLDEN_FILE, contract)


def test_a_file_that_verify_would_refuse_is_not_proven(tmp_path: Path) -> None:
    model = DeployModel(student()).eval()
    images = pictures(8, SIZE, seed=2).numpy()
    expected = run_batched(TorchSession(model), images)
    pixels = np.rint(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    golden = Golden(pixels, run_batched(TorchSession(model), to_input(pixels)), (b"",))
    good = Workshop(Conversion(model, images, tmp_path), (images, expected), golden)
    assert good.make("onnx", "fp32").problems == ()
    other = replace(golden, outputs={name: values * 1.1 for name, values in golden.outputs.items()})
    bad = Workshop(Conversion(model, images, tmp_path), (images, expected), other)
    assert any(problem.startswith("golden vectors: ") for problem in bad.make("onnx", "fp32").problems)

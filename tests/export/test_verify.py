"""Verification catches what goes wrong with a bundle on its way, and says what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_path_for_tests import WholePath

from edgekit.errors import LoadError
from edgekit.export.manifest import GOLDEN_FILE, MANIFEST_FILE, sha256_of
from edgekit.export.verify import Check, verify_bundle


@pytest.fixture
def bundle(whole_path: WholePath, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(whole_path.bundle, tmp_path / "bundle"))


def failed(bundle: Path) -> list[Check]:
    return [check for check in verify_bundle(bundle) if not check.passed]


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / MANIFEST_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def record(content: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(r for r in content["files"] if r["path"] == name)
    return found


def test_an_untouched_bundle_passes(bundle: Path) -> None:
    assert failed(bundle) == []


def test_a_flipped_byte_in_a_weight_is_caught(bundle: Path) -> None:
    path = bundle / "model.fp32.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    assert ("model.fp32.onnx", "sha256") in {(c.subject, c.check) for c in failed(bundle)}


def test_golden_vectors_catch_wrong_weights_that_the_manifest_vouches_for(bundle: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = bundle / "model.fp32.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    onnx.save(model, path)
    edit_manifest(bundle, lambda c: record(c, path.name).update(sha256=sha256_of(path), size_bytes=path.stat().st_size))
    assert {(c.subject, c.check) for c in failed(bundle)} == {(path.name, "golden vectors")}


def test_swapped_channels_are_caught(bundle: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        with np.load(bundle / GOLDEN_FILE) as file:
            arrays = {name: file[name] for name in file.files}
        arrays["pixels"] = arrays["pixels"][..., ::-1]
        np.savez(bundle / GOLDEN_FILE, **arrays)
        content["golden_sha256"] = sha256_of(bundle / GOLDEN_FILE)

    edit_manifest(bundle, swap)
    found = {(c.subject, c.check) for c in failed(bundle)}
    assert ("bundle", "preprocessing") in found
    assert ("model.fp32.tflite", "golden vectors") in found


def test_another_resize_is_caught(bundle: Path) -> None:
    edit_manifest(bundle, lambda c: c["input"]["preprocess"].update(resize=c["input"]["preprocess"]["image_size"]))
    assert ("bundle", "preprocessing") in {(c.subject, c.check) for c in failed(bundle)}


def test_a_renamed_output_is_caught(bundle: Path) -> None:
    import onnx

    path = bundle / "model.fp32.onnx"
    model = onnx.load(path)
    old = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["scores" if name == old else name for name in node.output]
    model.graph.output[0].name = "scores"
    onnx.save(model, path)
    edit_manifest(bundle, lambda c: record(c, path.name).update(sha256=sha256_of(path), size_bytes=path.stat().st_size))
    check = next(c for c in failed(bundle) if c.subject == path.name)
    assert "lack logits" in check.detail


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "model.int8.tflite").unlink()
    assert [(c.subject, c.detail) for c in failed(bundle)] == [("model.int8.tflite", "the file is missing")]


def test_a_missing_golden_file_fails_every_claim(bundle: Path) -> None:
    (bundle / GOLDEN_FILE).unlink()
    assert any(c.subject == GOLDEN_FILE for c in failed(bundle))


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd", "a/../../outside.onnx"])
def test_a_path_out_of_the_bundle_is_refused(bundle: Path, path: str) -> None:
    edit_manifest(bundle, lambda c: c["files"][0].update(path=path))
    check = next(c for c in failed(bundle) if c.subject == path)
    assert check.check == "path" and "outside the bundle" in check.detail


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.onnx"
    shutil.move(bundle / "model.fp32.onnx", target)
    (bundle / "model.fp32.onnx").symlink_to(target)
    assert any(c.subject == "model.fp32.onnx" and c.check == "path" for c in failed(bundle))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_a_bad_manifest_is_one_clear_line(bundle: Path, content: str) -> None:
    (bundle / MANIFEST_FILE).write_text(content)
    with pytest.raises(LoadError, match=MANIFEST_FILE) as caught:
        verify_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_only_one_file_can_be_asked_for(bundle: Path) -> None:
    subjects = {c.subject for c in verify_bundle(bundle, only=["model.int8.onnx"])}
    assert subjects == {"model.int8.onnx", "bundle", GOLDEN_FILE}
    with pytest.raises(LoadError, match="does not list"):
        verify_bundle(bundle, only=["model.int9.onnx"])


def test_verify_needs_no_torch(bundle: Path) -> None:
    """A fresh interpreter in which torch cannot be imported verifies ONNX and TFLite."""
    import subprocess
    import sys

    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['coremltools'] = None\n"
        "from pathlib import Path; from edgekit.export.verify import verify_bundle\n"
        "names = ['model.fp32.onnx', 'model.int8.onnx', 'model.fp32.tflite', 'model.int8.tflite']\n"
        "checks = verify_bundle(Path(sys.argv[1]), only=names)\n"
        "bad = [c for c in checks if not c.passed]; print(bad); sys.exit(bool(bad))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]

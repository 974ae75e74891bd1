"""Verification catches what goes wrong with a bundle on its way, and says what."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_path_for_tests import WholePath

from edgekit.errors import LoadError
from edgekit.export.calibration.statistics import Histograms
from edgekit.export.manifest import GOLDEN_FILE, MANIFEST_FILE, sha256_of
from edgekit.export.onnx.fp16 import halve_onnx
from edgekit.export.runtimes import size_bytes
from edgekit.export.tflite.fp16 import halve_tflite
from edgekit.export.verify.bundle import verify_bundle
from edgekit.export.verify.check import Check


@pytest.fixture
def bundle(whole_path: WholePath, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(whole_path.bundle, tmp_path / "bundle"))


def failed(bundle: Path, *names: str) -> list[Check]:
    """Return what is wrong with a bundle, or with some of its files: six take seconds."""
    return [check for check in verify_bundle(bundle, only=names) if not check.passed]


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
    assert ("model.fp32.onnx", "sha256") in {(c.subject, c.check) for c in failed(bundle, path.name)}


def test_golden_vectors_catch_wrong_weights_that_the_manifest_vouches_for(bundle: Path) -> None:
    import onnx
    from onnx import numpy_helper

    path = bundle / "model.fp32.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    onnx.save(model, path)
    vouch(bundle, path.name)
    assert {(c.subject, c.check) for c in failed(bundle)} == {(path.name, "golden vectors")}


def test_swapped_channels_are_caught(bundle: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        with np.load(bundle / GOLDEN_FILE) as file:
            arrays = {name: file[name] for name in file.files}
        arrays["pixels"] = arrays["pixels"][..., ::-1]
        np.savez(bundle / GOLDEN_FILE, **arrays)
        content["golden_sha256"] = sha256_of(bundle / GOLDEN_FILE)

    edit_manifest(bundle, swap)
    found = {(c.subject, c.check) for c in failed(bundle, "model.fp32.tflite")}
    assert ("bundle", "preprocessing") in found
    assert ("model.fp32.tflite", "golden vectors") in found


def test_another_resize_is_caught(bundle: Path) -> None:
    edit_manifest(bundle, lambda c: c["input"]["preprocess"].update(resize=c["input"]["preprocess"]["image_size"]))
    assert ("bundle", "preprocessing") in {(c.subject, c.check) for c in failed(bundle, "model.fp32.onnx")}


def test_a_renamed_output_is_caught(bundle: Path) -> None:
    import onnx

    path = bundle / "model.fp32.onnx"
    model = onnx.load(path)
    old = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["scores" if name == old else name for name in node.output]
    model.graph.output[0].name = "scores"
    onnx.save(model, path)
    vouch(bundle, path.name)
    found = {c.check: c.detail for c in failed(bundle, path.name) if c.subject == path.name}
    assert set(found) == {"interface", "golden vectors"}
    assert "lack logits" in found["golden vectors"]


def vouch(bundle: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed."""
    path = bundle / name
    edit_manifest(bundle, lambda c: record(c, name).update(sha256=sha256_of(path), size_bytes=size_bytes(path)))


def test_a_wrong_mean_is_caught(bundle: Path) -> None:
    """A file that subtracts ImageNet's means, which this student does not know."""
    import onnx
    from onnx import numpy_helper

    path = bundle / "model.fp32.onnx"
    model = onnx.load(path)
    name = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["centred_pictures" if given == name else given for given in node.input]
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(mean, "imagenet_mean"))
    model.graph.node.insert(0, onnx.helper.make_node("Sub", [name, "imagenet_mean"], ["centred_pictures"]))
    onnx.save(model, path)
    vouch(bundle, path.name)
    assert {(c.subject, c.check) for c in failed(bundle, path.name)} == {(path.name, "golden vectors")}


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.int8.tflite", "model.int8.mlpackage"])
def test_a_half_precision_file_that_calls_itself_int8_is_caught(bundle: Path, name: str) -> None:
    source, target = bundle / name.replace("int8", "fp32"), bundle / name
    if name.endswith("onnx"):
        halve_onnx(source, target)
    elif name.endswith("tflite"):
        halve_tflite(source, target)
    else:  # a whole package, in float32: there is no converter from package to package
        shutil.rmtree(target)
        shutil.copytree(source, target)
    vouch(bundle, name)
    assert "precision" in {check.check for check in failed(bundle, name) if check.subject == name}


def test_statistics_of_the_ranges_are_kept_and_checked(bundle: Path) -> None:
    for form in ("onnx", "tflite"):
        statistics = Histograms.load(bundle / f"calibration.{form}.npz")
        assert statistics.images == 96
        assert len(statistics.names) > 50
        low, high = statistics.ranges()[statistics.names[0]]
        assert low < high
    (bundle / "calibration.onnx.npz").write_bytes(b"other ranges")
    (bundle / "calibration.tflite.npz").unlink()
    found = {check.subject: check.detail for check in failed(bundle)}
    assert set(found) == {"calibration.onnx.npz", "calibration.tflite.npz"}
    assert "differs" in found["calibration.onnx.npz"]


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "model.int8.tflite").unlink()
    assert [(c.subject, c.detail) for c in failed(bundle)] == [("model.int8.tflite", "the file is missing")]


def test_a_missing_golden_file_fails_every_claim(bundle: Path) -> None:
    (bundle / GOLDEN_FILE).unlink()
    assert any(c.subject == GOLDEN_FILE for c in failed(bundle, "model.fp32.onnx"))


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd", "a/../../outside.onnx"])
def test_a_path_out_of_the_bundle_is_refused(bundle: Path, path: str) -> None:
    edit_manifest(bundle, lambda c: c["files"][0].update(path=path))
    check = next(c for c in failed(bundle, path) if c.subject == path)
    assert check.check == "path" and "outside the bundle" in check.detail


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.onnx"
    shutil.move(bundle / "model.fp32.onnx", target)
    (bundle / "model.fp32.onnx").symlink_to(target)
    assert any(c.subject == "model.fp32.onnx" and c.check == "path" for c in failed(bundle, "model.fp32.onnx"))


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 200_000, '{"schema_version": 99}', '{"schema_version": 1}'])
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


def test_verify_needs_no_torch(bundle: Path, tmp_path: Path) -> None:
    """Where torch cannot be imported, neither here nor in a child process, ONNX and TFLite are verified."""
    for name in ("torch", "torchvision", "coremltools"):
        (tmp_path / "none").mkdir(exist_ok=True)
        (tmp_path / "none" / f"{name}.py").write_text(
            f"raise ModuleNotFoundError('not installed here', name='{name}')\n"
        )
    script = (
        "import sys; from pathlib import Path; from edgekit.export.verify.bundle import verify_bundle\n"
        "names = ['model.fp32.onnx', 'model.int8.onnx', 'model.fp32.tflite', 'model.int8.tflite']\n"
        "checks = verify_bundle(Path(sys.argv[1]), only=names)\n"
        "core = verify_bundle(Path(sys.argv[1]), only=['model.fp32.mlpackage'])\n"
        "bad = [c for c in checks if not c.passed]; print(bad)\n"
        "sys.exit(bool(bad) or not any(c.unavailable for c in core))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(bundle)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "none")},
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]


def test_a_crash_of_a_runtime_is_a_failed_check(bundle: Path, tmp_path: Path) -> None:
    """A runtime that dies of a segmentation fault, as native code does on a file that its checks let through."""
    (tmp_path / "onnxruntime.py").write_text("import faulthandler; faulthandler._sigsegv()\n")
    command = [sys.executable, "-m", "edgekit", "verify", str(bundle / "model.fp32.onnx"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    failed = [check for check in json.loads(result.stdout)["checks"] if not check["passed"]]
    assert [(check["subject"], check["check"]) for check in failed] == [("model.fp32.onnx", "runtime")]
    assert "SIGSEGV" in failed[0]["detail"]


def test_one_file_costs_little_more_than_its_runtime(bundle: Path) -> None:
    """The child process of each file starts in less than two seconds of processor time."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    verify_bundle(bundle, only=["model.fp32.onnx"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 2 * 2.0, "one child for the pictures, one for the file"


@pytest.mark.parametrize("how", ["pipe", "link inside a package", "sparse"])
def test_what_would_be_read_for_ever_is_not_read(bundle: Path, how: str) -> None:
    if how == "pipe":
        (bundle / "model.fp32.onnx").unlink()
        os.mkfifo(bundle / "model.fp32.onnx")
    elif how == "link inside a package":
        (bundle / "model.fp32.mlpackage/Data/com.apple.CoreML/extra").symlink_to("/dev/zero")
    else:
        with (bundle / "model.fp32.onnx").open("r+b") as file:
            file.truncate(2**40)
        edit_manifest(bundle, lambda c: record(c, "model.fp32.onnx").update(size_bytes=2**40))
    name = "model.fp32.mlpackage" if how == "link inside a package" else "model.fp32.onnx"
    found = [c for c in verify_bundle(bundle, only=[name]) if not c.passed]
    assert [(c.subject, c.check) for c in found] == [(name, "size" if how == "sparse" else "path")]


@pytest.mark.parametrize("bomb", ["zip of zeros", "header that claims much"])
def test_golden_bombs_are_one_line(bundle: Path, bomb: str) -> None:
    import io
    import zipfile

    path = bundle / GOLDEN_FILE
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if bomb == "zip of zeros":
            with archive.open("pixels.npy", "w", force_zip64=True) as member:
                for _ in range(300):
                    member.write(bytes(2**20))
        else:
            header = io.BytesIO()
            claim = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 128, 128, 3)}
            np.lib.format.write_array_header_1_0(header, claim)
            archive.writestr("pixels.npy", header.getvalue() + bytes(100))
    edit_manifest(bundle, lambda c: c.update(golden_sha256=sha256_of(path)))
    found = [c for c in verify_bundle(bundle, only=["model.fp32.onnx"]) if not c.passed]
    assert [(c.subject, c.check) for c in found] == [("bundle", "preprocessing")]
    assert "holds no golden vectors" in found[0].detail and "\n" not in found[0].detail

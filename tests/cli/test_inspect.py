"""`edgekit inspect`, on good files, on lying bundles and on damaged ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli.main import run
from edgekit.errors import EdgekitError
from edgekit.export.audit.audit import audit_runtime_contained
from edgekit.export.manifest import MANIFEST_FILE, sha256_of
from tests.damage_for_tests import damaged_copies
from tests.export.artifacts_for_tests import Artifacts, artifacts

Captured = pytest.CaptureFixture[str]
SOURCES = (
    "onnx fp32", "tflite fp32", "coreml fp32", "onnx int8", "tflite int8", "coreml int8-weights", "coreml palette",
)  # fmt: skip
QUICK, FULL = 30, 200


@pytest.fixture(scope="module")
def files() -> Artifacts:
    return artifacts()


def inspected(capsys: Captured, *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command; return the exit code, standard output and standard error."""
    code = run(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


# ---- the report


def test_the_report_says_the_important_first(files: Artifacts, capsys: Captured) -> None:
    code, out, err = inspected(capsys, files["onnx int8"])
    lines = err.splitlines()
    assert (code, out) == (0, "")
    assert lines[0].startswith(f"{files['onnx int8']}: ONNX, ") and lines[0].endswith(" kB")
    assert lines[1] == "precision   int8: 8-bit weights, most of the work between 8-bit codes"
    assert lines[2].startswith("weights     38.92 k: int8 37.2 kB (95.7 %)")
    assert lines[3] == "work        3.12 M MACs: 75.5 % int8, 24.5 % fp32"
    assert "3 products compute in integers" in lines[4]
    assert len(lines) < 24


def test_what_a_file_holds_cannot_write_to_the_terminal(files: Artifacts, capsys: Captured) -> None:
    _, _, err = inspected(capsys, files["onnx fp32"])
    assert "classes     3: cat, dog, \N{REPLACEMENT CHARACTER}[31mred" in err
    assert "\x1b[31m" not in err


@pytest.mark.parametrize("name", ["onnx int8", "tflite int8-dynamic", "coreml palette"])
def test_json_alone_is_on_standard_output(files: Artifacts, capsys: Captured, name: str) -> None:
    code, out, err = inspected(capsys, files[name], "--json", "-q")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["schema_version"], found["kind"]) == (1, "inspect")
    assert found["file"]["macs"] == sum(op["macs"] for op in found["file"]["ops"])
    assert found["file"]["precision"] == {"palette": "sub-8-bit"}.get(name.split()[1], name.split()[1])


@pytest.mark.parametrize("name", ["onnx fp32", "onnx int8", "tflite fp32", "tflite int8"])
def test_the_roofline_says_how_far_the_limit_is(files: Artifacts, capsys: Captured, name: str) -> None:
    code, out, err = inspected(capsys, files[name], "--roofline", "--json")
    assert code == 0
    found = json.loads(out)["roofline"]
    assert found["peaks"]["int8"] > 0.8 * found["peaks"]["fp32"] > 1e9  # twice and more where there are instructions
    assert (found["macs"]["int8"] > found["macs"]["fp32"]) == ("int8" in name)
    assert 0 < found["reached"] < 1
    assert found["roof_s"] == pytest.approx(found["reached"] * found["measured_s"])
    assert "% of the roof" in err
    times = [kernel["time_s"] for kernel in found["kernels"]]
    assert times == sorted(times, reverse=True)
    assert bool(times) == name.startswith("onnx")


def test_the_roofline_is_for_one_file_that_is_timed_here(files: Artifacts, capsys: Captured, tmp_path: Path) -> None:
    code, _, err = inspected(capsys, files["coreml fp32"], "--roofline")
    assert code == 2
    assert "onnx and tflite" in err


def test_the_picture_is_written_where_it_was_asked_for(files: Artifacts, capsys: Captured, tmp_path: Path) -> None:
    code, _, err = inspected(capsys, files["tflite int8"], "--png", tmp_path / "new" / "p.png")
    assert code == 0 and (tmp_path / "new" / "p.png").read_bytes()[:4] == b"\x89PNG" and "p.png" in err
    (tmp_path / "new" / "p.png").write_text("mine")
    code, _, err = inspected(capsys, files["tflite int8"], "--png", tmp_path / "new" / "p.png")
    assert code == 2 and "--overwrite" in err and (tmp_path / "new" / "p.png").read_text() == "mine"


# ---- bundles


def make_bundle(folder: Path, claims: dict[Path, str]) -> Path:
    """Write a bundle whose manifest claims a precision for each file."""
    folder.mkdir()
    records: list[dict[str, Any]] = []
    forms = {".onnx": "onnx", ".tflite": "tflite", ".mlpackage": "coreml"}
    for path, claim in claims.items():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
        records.append({
            "path": path.name, "format": forms[path.suffix], "precision": claim, "recipe": "", "parity": {},
            "runtime": {}, "sha256": sha256_of(path), "size_bytes": 1, "inputs": [], "outputs": [],
        })  # fmt: skip
    contract = {"name": "image", "layout": {}, "preprocess": {}}
    manifest = {
        "schema_version": 1, "created": "", "edgekit_version": "", "versions": {}, "model": {}, "teacher": None,
        "training": {}, "input": contract, "outputs": ["logits"], "classes": [], "files": records,
        "golden_sha256": "0" * 64, "calibration": {}, "verification": {},
    }  # fmt: skip
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return folder


def test_an_honest_bundle_is_one_table(files: Artifacts, capsys: Captured, tmp_path: Path) -> None:
    honest = {files["onnx int8"]: "int8", files["tflite fp16"]: "fp16", files["coreml int8-weights"]: "int8"}
    code, out, err = inspected(capsys, make_bundle(tmp_path / "b", honest), "--json")
    assert code == 0 and "warning" not in err
    assert [file["problems"] for file in json.loads(out)["files"]] == [[], [], []]


def test_a_file_that_lies_about_its_precision_is_caught(files: Artifacts, capsys: Captured, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", {files["tflite fp16"]: "int8", files["onnx fp32"]: "fp32"})
    lie = "fp16.tflite: it claims int8, but it is fp16: its weights are 98.7 % fp16, 1.3 % fp32"
    code, _, err = inspected(capsys, bundle)
    assert code == 1 and lie in err
    code, _, err = inspected(capsys, bundle / "fp16.tflite")  # its manifest lies beside it
    assert code == 1 and lie in err


def test_a_bundle_that_lacks_a_file_or_leads_out(files: Artifacts, capsys: Captured, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", {files["onnx fp32"]: "fp32", files["tflite fp32"]: "fp32"})
    (bundle / "fp32.tflite").unlink()
    code, _, err = inspected(capsys, bundle)
    assert code == 3 and "fp32.tflite is not there" in err
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    manifest["files"][1]["path"] = "../outside.onnx"
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))
    code, _, err = inspected(capsys, bundle)
    assert code == 3 and "lies outside the bundle" in err


def test_one_picture_of_many_files_is_refused(files: Artifacts, capsys: Captured, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", {files["onnx fp32"]: "fp32"})
    code, _, err = inspected(capsys, bundle, "--png", tmp_path / "p.png")
    assert code == 2 and "--png and --roofline are for one file" in err


# ---- what cannot be read


def test_a_file_that_is_not_there(capsys: Captured, tmp_path: Path) -> None:
    code, out, err = inspected(capsys, tmp_path / "nothing.onnx", "--json")
    assert (code, out) == (3, "") and err.startswith("error: ") and err.count("\n") == 1


def test_a_file_that_reads_but_does_not_run_is_shown_and_fails(capsys: Captured, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="org.nowhere")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("org.nowhere", 1)]
    save(
        helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:]), opset_imports=opsets),
        tmp_path / "m.onnx",
    )
    code, _, err = inspected(capsys, tmp_path / "m.onnx")
    assert code == 3
    assert "operations  1: NoSuchOperator 1 fp32" in err
    assert "warning: ONNX Runtime rejects" in err


def test_a_pipe_is_not_waited_for(capsys: Captured, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.onnx")
    code, _, err = inspected(capsys, tmp_path / "pipe.onnx")
    assert code == 3 and "not a regular file" in err


def test_a_crash_of_a_runtime_is_one_line(
    files: Artifacts, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that dies natively when it is imported stands for one that dies on a file."""
    (tmp_path / "onnxruntime.py").write_text("import faulthandler; faulthandler._sigsegv()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, _, err = inspected(capsys, files["onnx fp32"])
    assert code == 3 and "the child process was killed by SIGSEGV" in err
    assert "precision   fp32" in err  # what can be told without the runtime is


_READ_ALL = """
import json, sys
from pathlib import Path
from edgekit.errors import EdgekitError
from edgekit.export.audit.audit import audit

for name in json.loads(sys.argv[1]):
    try:
        audit(Path(name)).to_dict()
        result = ""
    except EdgekitError as e:
        result = str(e)
    print(json.dumps([name, result]), flush=True)
"""


def read_all(paths: list[Path]) -> dict[str, str]:
    """Audit files in one child; return name -> "" or the error. Anything but an EdgekitError fails the test."""
    names = json.dumps([str(path) for path in paths])
    done = subprocess.run([sys.executable, "-c", _READ_ALL, names], capture_output=True, text=True, timeout=600)
    found: dict[str, str] = dict(json.loads(line) for line in done.stdout.splitlines())
    unread = [path for path in paths if str(path) not in found]
    assert done.returncode == 0, f"{unread[:1]} ended the process ({done.returncode}): {done.stderr[-2000:]}"
    return found


def check_damaged(sources: list[Path], folder: Path, count: int) -> None:
    paths = damaged_copies(sources, folder, count)
    results = read_all(paths)
    assert len(results) == count
    refused = [message for message in results.values() if message]
    assert len(refused) > count / 4, "the damage must be such that it is often found"
    assert all(message.isprintable() and len(message) < 1000 for message in refused)
    for path in paths:
        if path.suffix == ".mlpackage" or results[str(path)]:
            continue  # nothing native opens a package here; what cannot be read is not run
        try:
            audit_runtime_contained(path)
        except EdgekitError as e:
            assert str(e).isprintable()


def test_damaged_files_are_one_clear_line_each(files: Artifacts, tmp_path: Path) -> None:
    check_damaged([files[name] for name in SOURCES], tmp_path, QUICK)


@pytest.mark.slow
def test_two_hundred_damaged_files_are_one_clear_line_each(files: Artifacts, tmp_path: Path) -> None:
    check_damaged([files[name] for name in SOURCES], tmp_path, FULL)


@pytest.mark.parametrize("name", ["onnx fp32", "tflite fp32", "coreml fp32"])
def test_a_cut_file_at_the_command_line(files: Artifacts, capsys: Captured, tmp_path: Path, name: str) -> None:
    source = files[name]
    target = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, target)
        target_file = next(target.rglob("model.mlmodel"))
    else:
        shutil.copy(source, target)
        target_file = target
    target_file.write_bytes(target_file.read_bytes()[: target_file.stat().st_size // 3])
    code, out, err = inspected(capsys, target, "--json")
    assert (code, out) == (3, "")
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_package_that_decodes_to_more_than_all_memory(files: Artifacts, capsys: Captured, tmp_path: Path) -> None:
    """A bomb: the small program names one stored tensor as a vast one."""
    from tests.export.mil_for_tests import ct

    bomb = Path(shutil.copytree(files["coreml fp32"], tmp_path / "bomb.mlpackage"))
    path = next(bomb.rglob("model.mlmodel"))
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
    stored = [op for op in block.operations if op.type == "const" and op.attributes["val"].HasField("blobFileValue")]
    for dimension in stored[0].attributes["val"].type.tensorType.dimensions:
        dimension.constant.size = 2**31
    path.write_bytes(spec.SerializeToString())
    code, _, err = inspected(capsys, bomb)
    assert code == 3 and "more than the allowed" in err

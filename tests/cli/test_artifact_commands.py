"""export, verify and bench as a user calls them: what they print, what they leave, how they end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from whole_path_for_tests import WholePath


def edgekit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the real command line."""
    command = [sys.executable, "-W", "error::DeprecationWarning:edgekit", "-m", "edgekit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the error, which must be one clear line and no traceback."""
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines, "an error must say something"
    return lines[-1]


def test_export_one_format_prints_what_was_compared(whole_path: WholePath, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    result = edgekit(
        "export", whole_path.run, "--format", "onnx", "--precision", "fp32", "--outputs", "embedding,logits",
        "--dynamic-batch", "--comparison-images", "16", "-o", out, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["kind"] == "export" and content["schema_version"] == 1
    assert content["files"][0]["passed"] and content["files"][0]["parity"]["max_abs"] < 1e-3
    assert "proven" in result.stderr and "SNR" in result.stderr
    import onnx

    model = onnx.load(out / "model.fp32.onnx")
    assert [output.name for output in model.graph.output] == ["embedding", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, "the batch is free"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "onxx"), "did you mean 'onnx'?"),
        (("--precision", "int4"), "did you mean 'int8'?"),
        (("--outputs", "logit"), "did you mean 'logits'?"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_export_refuses_what_it_does_not_know(
    whole_path: WholePath, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = edgekit("export", whole_path.run, *arguments, "-o", tmp_path / "bundle")
    assert result.returncode == 2
    assert words in one_line(result)
    assert not (tmp_path / "bundle").exists()


def test_export_of_no_run_ends_with_3(tmp_path: Path) -> None:
    result = edgekit("export", tmp_path / "no-run", "-o", tmp_path / "bundle")
    assert result.returncode == 3
    assert "holds no student" in one_line(result)


def test_export_leaves_an_existing_output_alone(whole_path: WholePath, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "precious.txt").write_text("mine")
    result = edgekit("export", whole_path.run, "--format", "onnx", "-o", tmp_path / "bundle")
    assert result.returncode == 2
    assert "--overwrite" in one_line(result)
    assert (tmp_path / "bundle" / "precious.txt").read_text() == "mine"


def test_verify_says_which_check_failed(whole_path: WholePath, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(whole_path.bundle, tmp_path / "bundle"))
    assert edgekit("verify", bundle).returncode == 0
    content = bytearray((bundle / "model.fp32.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.fp32.tflite").write_bytes(content)
    result = edgekit("verify", bundle / "model.fp32.tflite", "--json")
    assert result.returncode == 1
    assert "FAILED" in result.stderr
    assert not json.loads(result.stdout)["passed"]


def test_verify_against_the_run_on_its_data(whole_path: WholePath) -> None:
    result = edgekit("verify", whole_path.bundle / "model.fp32.onnx", "--reference", whole_path.run)
    assert result.returncode == 0, result.stderr
    assert "top-1 agreement 100.0 %" in " ".join(result.stderr.split())


def test_verify_of_a_lonely_file_says_what_it_needs(whole_path: WholePath, tmp_path: Path) -> None:
    shutil.copy(whole_path.bundle / "model.fp32.onnx", tmp_path / "model.onnx")
    result = edgekit("verify", tmp_path / "model.onnx")
    assert result.returncode == 3
    assert "--reference" in one_line(result)


def test_bench_of_files_alone_compares_with_the_first(whole_path: WholePath, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = edgekit(
        "bench", whole_path.bundle / "model.fp32.onnx", whole_path.bundle / "model.fp32.tflite", "--data",
        whole_path.drawings, "--max-images", "24", "--budget", "3", "--json", "-o", out,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["baseline"] == "model.fp32.onnx"
    assert content["rows"][1]["speedup"]["verdict"] in ("faster", "slower", "inconclusive")
    assert content["rows"][0]["scores"]["top1"]["value"] == content["rows"][1]["scores"]["top1"]["value"]
    assert json.loads(out.read_text())["rows"] == content["rows"]
    assert "model.fp32.tflite" in out.with_suffix(".md").read_text()


def test_bench_goes_on_when_one_file_is_broken(whole_path: WholePath, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((whole_path.bundle / "model.fp32.onnx").read_bytes()[:5000])
    result = edgekit("bench", whole_path.bundle / "model.fp32.tflite", broken, "--budget", "2", "--json")
    assert result.returncode == 1
    good, bad = json.loads(result.stdout)["rows"]
    assert good["status"] == "ok" and good["latency"] is not None
    assert bad["status"] == "failed" and bad["failure"]


def test_bench_of_nothing_is_a_usage_error() -> None:
    result = edgekit("bench")
    assert result.returncode == 2
    assert "nothing to bench" in one_line(result)

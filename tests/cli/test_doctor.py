"""`edgekit doctor`: real environments, with packages missing, broken and crashing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.environment import INT8_FEATURES, PARTS, int8_features, known_conflicts, try_part
from edgekit.probes import PROBES, run_probe
from tests.bare_environment_for_tests import BareEnvironment
from tests.export.artifacts_for_tests import artifacts


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> BareEnvironment:
    """Nothing but the core."""
    return BareEnvironment(tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> BareEnvironment:
    """A device that runs artifacts: the runtimes, no torch."""
    return BareEnvironment(tmp_path_factory.mktemp("device"), ["onnx", "onnxruntime", "ai-edge-litert"])


def parts(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert "Traceback" not in done.stderr, done.stderr
    return {part["part"]: part for part in json.loads(done.stdout)["parts"]}


def test_the_core_alone_works_and_the_rest_has_its_command(core: BareEnvironment) -> None:
    done = core.edgekit("doctor", "--json")
    found = parts(done)
    assert done.returncode == 0, done.stderr
    assert found.keys() == PARTS.keys()
    assert found["core"]["status"] == "works"
    assert {found[name]["status"] for name in PARTS if name != "core"} == {"not installed"}
    assert found["train"]["fix"] == "pip install 'edgekit[train]'"
    assert found["run tflite"]["fix"] == "pip install 'edgekit[tflite]'"
    assert "pip install 'edgekit[coreml]'" in done.stderr


def test_runtimes_work_without_torch(device: BareEnvironment) -> None:
    done = device.edgekit("doctor", "--json")
    found = parts(done)
    assert done.returncode == 0, done.stderr
    assert found["run onnx"]["status"] == found["run tflite"]["status"] == "works"
    assert found["run onnx"]["detail"].startswith("ran a model")
    assert found["export onnx"]["detail"] == "missing: torch, onnxscript"
    assert found["coreml"]["status"] == "not installed"


def test_inspect_works_without_torch(device: BareEnvironment) -> None:
    files = artifacts()
    for name in ("onnx int8", "tflite int8"):
        done = device.edgekit("inspect", files[name])
        assert done.returncode == 0, done.stderr
        assert "precision   int8" in done.stderr and "runtime     " in done.stderr
    done = device.edgekit("inspect", files["coreml fp32"])
    assert done.returncode == 3 and "pip install 'edgekit[coreml]'" in done.stderr


def test_bench_works_without_torch(device: BareEnvironment) -> None:
    files = [artifacts()[name] for name in ("onnx fp32", "onnx int8", "tflite int8")]
    done = device.edgekit("bench", *files, "--budget", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["name"] for row in report["rows"]] == [file.name for file in files]
    assert report["problems"] == [] and all(row["latency"]["p50_s"] > 0 for row in report["rows"])


@pytest.mark.parametrize(
    "command", ["distill", "train image", "train clip", "train text", "teach", "compress", "export"]
)
def test_without_torch_a_command_says_what_to_install(device: BareEnvironment, command: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "student.safetensors").touch()
    given = [tmp_path / "run"] if command in ("compress", "export") else ["--data", tmp_path / "photos"]
    teacher = ["--teacher", "ViT-B-32:openai"] if command in ("distill", "teach") else []
    more = ["--qat"] if command == "compress" else []
    done = device.edgekit(*command.split(), *given, *teacher, *more, "-o", tmp_path / "out")
    first = command.partition(" ")[0]
    assert done.returncode == 3, done.stderr
    said = rf"error: edgekit {first} needs the package '(torch|timm)': pip install 'edgekit\[train\]'\n"
    assert re.fullmatch(said, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_inspect_without_a_runtime_says_what_to_install(core: BareEnvironment) -> None:
    done = core.edgekit("inspect", artifacts()["onnx fp32"])
    assert done.returncode == 3
    assert done.stderr.strip().endswith("pip install 'edgekit[onnx]'") and done.stderr.count("\n") == 1


def test_what_is_installed_and_broken_fails(tmp_path: Path) -> None:
    environment = BareEnvironment(tmp_path)
    environment.add_module("onnxruntime", "onnxruntime", "raise ImportError('libcudart.so.13: cannot open')")
    environment.add_module("av", "av", "import faulthandler; faulthandler._sigsegv()")
    done = environment.edgekit("doctor", "--json")
    found = parts(done)
    assert done.returncode == 1
    assert found["run onnx"]["status"] == "broken" and "libcudart.so.13" in found["run onnx"]["detail"]
    assert found["video"]["status"] == "broken" and "SIGSEGV" in found["video"]["detail"]
    assert "force-reinstall 'edgekit[video]'" in done.stderr
    assert found["core"]["status"] == "works"


@pytest.mark.slow
def test_everything_that_is_installed_here_works() -> None:
    done = subprocess.run([sys.executable, "-m", "edgekit", "doctor", "--json"], capture_output=True, text=True)
    assert {name: part["detail"] for name, part in parts(done).items() if part["status"] == "broken"} == {}
    assert done.returncode == 0


# ---- the pieces


def test_every_part_has_a_trial() -> None:
    assert PROBES.keys() == PARTS.keys()


def test_extras_are_those_of_the_project() -> None:
    from importlib import metadata

    declared = set(metadata.metadata("edgekit").get_all("Provides-Extra") or ())
    assert {part.extra for part in PARTS.values() if part.extra} <= declared


@pytest.mark.parametrize("part", ["core", "run onnx", "export onnx", "video", "report"])
def test_a_trial_does_what_it_says(part: str) -> None:
    assert run_probe(part)


def test_a_failed_trial_is_told_in_one_line() -> None:
    def fail(part: str) -> str:
        raise RuntimeError(f"{part} burns\nand smokes")

    finding = try_part("core", fail)
    assert (finding.status, finding.detail) == ("broken", "core burns")
    assert finding.fix == "pip install --upgrade --force-reinstall 'edgekit'"


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"torch": "2.14.1+cpu", "torchvision": "0.29.2+cu130"}, "operator torchvision::nms does not exist"),
        ({"torch": "2.14.1+cu130", "torchvision": "0.28.0"}, "not made for torch 2.14.1"),
        ({"torch": "2.15.0", "torchvision": "0.30.0", "litert-torch": "0.10.0"}, ">=2.14,<2.15"),
        ({"tensorflow": "2.20.0", "coremltools": "9.0"}, "before torchvision crashes"),
    ],
)
def test_known_conflicts_are_named_with_the_way_out(versions: dict[str, str | None], says: str) -> None:
    (found,) = known_conflicts(versions)
    assert says in found


@pytest.mark.parametrize(
    "versions",
    [
        {},
        {"torch": "2.14.1+cu130", "torchvision": "0.29.2", "litert-torch": "0.10.0", "coremltools": "9.0"},
        {"torch": "2.14.1+cpu", "torchvision": "0.29.2+cpu", "tensorflow": None},
    ],
)
def test_good_environments_have_no_conflicts(versions: dict[str, str | None]) -> None:
    assert known_conflicts(versions) == ()


def test_processor_features_are_known_names_or_unknown() -> None:
    features = int8_features()
    assert features is None or set(features) <= INT8_FEATURES.keys()


def test_processor_features_of_an_arm_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "darwin":
        pytest.skip("macOS has no /proc/cpuinfo")
    board = tmp_path / "cpuinfo"
    board.write_text("processor\t: 0\nFeatures\t: fp asimd aes asimdhp asimddp i8mm bf16\n\nprocessor\t: 1\n")
    monkeypatch.setattr("edgekit.environment._CPU_INFO", board)
    assert int8_features() == ("dotprod", "i8mm")
    board.write_text("nothing of interest\n")
    assert int8_features() is None

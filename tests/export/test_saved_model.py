"""SavedModels: made from TFLite files, run under TensorFlow, proven like other files. Skipped without TensorFlow."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from nets_for_tests import TwoHeads, pictures
from whole_path_for_tests import WholePath

from edgekit.bench.candidates import LIBRARIES, artifact_candidates, given_artifacts
from edgekit.cli.export import _config
from edgekit.errors import DataError, LoadError, MissingExtraError, UsageError
from edgekit.export.audit.audit import READERS, RUNTIME_READERS, audit, check_precision
from edgekit.export.exporters import DYNAMIC_BATCH
from edgekit.export.manifest import layouts, read_manifest
from edgekit.export.precisions import CANDIDATES, MEANING, parse_precisions
from edgekit.export.runtimes import DEFAULT_RUNTIME, FORMATS, KNOWN, SUFFIX_OF, open_session, parse_formats
from edgekit.export.saved_model.convert import export_saved_model
from edgekit.export.tflite.convert import export_tflite
from edgekit.export.tflite.tensorflow import PYTHON_VARIABLE, tensorflow_python
from edgekit.export.verify.bundle import verify_bundle
from tests.cli.commands_for_tests import call
from tests.tolerances import FP32_EXPORT


@pytest.fixture
def with_tensorflow() -> Path:
    if not os.environ.get(PYTHON_VARIABLE) and importlib.util.find_spec("tensorflow") is None:
        pytest.skip(f"no TensorFlow here; set {PYTHON_VARIABLE} to the python of an environment that has it")
    return tensorflow_python(None)


@pytest.mark.usefixtures("with_tensorflow")
@pytest.mark.parametrize("arch", ["mobilevit_xxs", "mobilevitv2_050", "resnet18"])
def test_it_computes_what_the_net_computes(arch: str, tmp_path: Path) -> None:
    net, images = TwoHeads(arch).eval(), pictures(3, 64)
    export_tflite(net, 64, tmp_path / "m.tflite")
    export_saved_model(tmp_path / "m.tflite", tmp_path / "m.savedmodel")
    session = open_session(tmp_path / "m.savedmodel")
    assert session.input_shape == (1, 3, 64, 64)
    for image in images.split(1):
        found = session(image.numpy())
        for name, expected in zip(("logits", "embedding"), net(image), strict=True):
            assert np.abs(found[name] - expected.detach().numpy()).max() < FP32_EXPORT
    facts = audit(tmp_path / "m.savedmodel")
    assert check_precision(facts, "fp32") == ()
    assert [port.name for port in facts.inputs] == ["image"]
    assert facts.parameters > 0.9 * sum(p.numel() for p in net.parameters())
    with pytest.raises(DataError, match=r"\(1, 3, 32, 32\)"):
        session(images[:1, :, :32, :32].numpy())


@pytest.mark.usefixtures("with_tensorflow")
def test_the_command_makes_it_and_verify_proves_it(whole_path: WholePath, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    asked = ("--format", "saved_model", "--precision", "fp32", "--comparison-images", "16")
    code, _, problem = call("export", whole_path.run, *asked, "-o", bundle)
    assert code == 0, problem
    code, said, problem = call("inspect", bundle / "model.fp32.savedmodel")
    assert code == 0, problem
    assert "SavedModel" in said + problem
    (record,) = read_manifest(bundle).files
    assert (record.path, record.format) == ("model.fp32.savedmodel", "saved_model")
    assert record.parity["max_abs"] < FP32_EXPORT
    checks = verify_bundle(bundle)
    assert all(check.passed for check in checks), [check for check in checks if not check.passed]
    assert {"golden vectors", "precision", "interface"} <= {c.check for c in checks if c.subject == record.path}


def test_a_program_that_is_not_arithmetic_is_not_run(with_tensorflow: Path, tmp_path: Path) -> None:
    written, folder = tmp_path / "written.txt", tmp_path / "m.savedmodel"
    code = f"""
import tensorflow as tf
class Net(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3], tf.float32, name="image")])
    def __call__(self, image):
        tf.io.write_file({str(written)!r}, "owned")
        return {{"logits": tf.reduce_mean(image, [1, 2])}}
net = Net()
tf.saved_model.save(net, {str(folder)!r}, signatures={{"serving_default": net.__call__.get_concrete_function()}})
"""
    subprocess.run([str(with_tensorflow), "-c", code], check=True, capture_output=True)
    with pytest.raises(LoadError, match="WriteFile, which is not arithmetic"):
        open_session(folder)
    assert not written.exists()


def test_every_table_of_formats_knows_it() -> None:
    """A format that one table forgot is a KeyError in some command."""
    tables = (MEANING, CANDIDATES, READERS, RUNTIME_READERS, DEFAULT_RUNTIME, DYNAMIC_BATCH, SUFFIX_OF, LIBRARIES)
    for table in (*tables, layouts(), layouts(8)):
        assert set(table) == set(KNOWN)


def test_bench_takes_it_and_leaves_its_time_out(tmp_path: Path) -> None:
    folder = tmp_path / "m.savedmodel"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"a program")
    (candidate,) = artifact_candidates(given_artifacts([folder]), threads=1)
    assert (candidate.format, candidate.timed, candidate.problem) == ("saved_model", False, None)


@pytest.mark.parametrize("kind", ["clip", "text"])
def test_what_takes_texts_has_no_such_file(kind: Literal["clip", "text"]) -> None:
    with pytest.raises(UsageError, match="exported as onnx, coreml, tflite"):
        _config({"formats": "saved_model", "precisions": "fp32", "outputs": None, "int8": False}, kind)


@pytest.mark.usefixtures("with_tensorflow")
@pytest.mark.parametrize("content", [None, b"", b"\0" * 100, b"not a model"])
def test_what_is_no_saved_model_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    folder = tmp_path / "m.savedmodel"
    folder.mkdir()
    if content is not None:
        (folder / "saved_model.pb").write_bytes(content)
    with pytest.raises(LoadError) as caught:
        open_session(folder)
    assert str(caught.value).isprintable()
    assert "m.savedmodel" in str(caught.value)


def test_it_is_made_where_it_is_asked_for_by_name_and_as_fp32() -> None:
    assert "saved_model" not in parse_formats("all")
    assert parse_formats("all") == FORMATS
    assert parse_formats("saved_model") == ("saved_model",)
    for precision in ("int8", "auto"):
        with pytest.raises(UsageError, match="allowed there: fp32"):
            parse_precisions(precision, ("saved_model",), ("logits",))


def test_without_tensorflow_the_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.savedmodel").mkdir()
    (tmp_path / "m.savedmodel" / "saved_model.pb").write_bytes(b"")
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    if importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(MissingExtraError, match=r"edgekit\[tensorflow\]"):
            open_session(tmp_path / "m.savedmodel")
        monkeypatch.delenv(PYTHON_VARIABLE)
        with pytest.raises(MissingExtraError, match=PYTHON_VARIABLE):
            open_session(tmp_path / "m.savedmodel")
        code, _, problem = call("inspect", tmp_path / "m.savedmodel")
        assert code == 3
        assert "edgekit[tensorflow]" in problem.replace("\n", "")
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "python"))
    with pytest.raises(UsageError, match="is not there"):
        open_session(tmp_path / "m.savedmodel")

"""ONNX for real: export, run under ONNX Runtime, compare with eager PyTorch, look into the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from edgekit.errors import DataError, LoadError, UsageError
from edgekit.export.onnx.convert import export_naive, export_onnx
from edgekit.export.onnx.fp16 import halve_onnx
from edgekit.export.onnx.session import OnnxSession, profile
from edgekit.export.session import FloatArray
from tests.export.nets_for_tests import TwoHeads, pictures
from tests.tolerances import FP32_EXPORT

SIZE = 64
ARCHS = ("mobilevit_xxs", "mobilevitv2_050")


Exported = tuple[TwoHeads, Path]


@pytest.fixture(scope="module", params=ARCHS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    model = TwoHeads(request.param).eval()
    path = tmp_path_factory.mktemp("onnx") / f"{request.param}.onnx"
    export_onnx(model, SIZE, path, metadata={"labels": '["cat", "Hütte"]'})
    yield model, path


@pytest.fixture(scope="module")
def xxs(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = TwoHeads("mobilevit_xxs").eval()
    path = tmp_path_factory.mktemp("xxs") / "model.onnx"
    export_onnx(model, SIZE, path)
    return model, path


def eager(model: TwoHeads, images: FloatArray) -> dict[str, FloatArray]:
    with torch.no_grad():
        logits, embedding = model(torch.from_numpy(images))
    return {"logits": logits.numpy(), "embedding": embedding.numpy()}


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_runs_as_eager(exported: Exported) -> None:
    model, path = exported
    session = OnnxSession(path)
    assert session.input_shape == (1, 3, SIZE, SIZE)
    for seed in range(3):
        images = pictures(1, SIZE, seed).numpy()
        found, wanted = session(images), eager(model, images)
        assert found.keys() == wanted.keys() == {"logits", "embedding"}
        for name, values in wanted.items():
            assert found[name].shape == values.shape and found[name].dtype == np.float32
            assert np.abs(found[name] - values).max() <= FP32_EXPORT * np.abs(values).max()
        assert np.linalg.norm(found["embedding"], axis=1) == pytest.approx(1, abs=1e-5)


def test_file_is_whole_valid_and_tells_nothing_of_the_machine(exported: Exported) -> None:
    _, path = exported
    assert [file.name for file in path.parent.iterdir()] == [path.name], "weights belong inside, in one file"
    model = onnx.load(path)
    onnx.checker.check_model(model)
    content = path.read_bytes()
    assert b"site-packages" not in content and str(Path.cwd()).encode() not in content
    assert {entry.key: entry.value for entry in model.metadata_props} == {"edgekit.labels": '["cat", "Hütte"]'}
    assert [entry.name for entry in model.graph.input] == ["image"]


def test_rewritten_graph_has_the_runtime_s_own_nodes(xxs: Exported, tmp_path: Path) -> None:
    model, path = xxs
    fast = kinds(path)
    assert (fast["Attention"], fast["RMSNormalization"], fast["QuickGelu"]) == (9, 21, 34)
    assert not {"LayerNormalization", "Softmax", "BatchNormalization", "Sigmoid"} & fast.keys()
    export_naive(model, SIZE, tmp_path / "naive.onnx")
    naive = kinds(tmp_path / "naive.onnx")
    assert fast["Transpose"] < naive["Transpose"] / 2
    assert sum(fast.values()) < 0.6 * sum(naive.values())


@pytest.mark.parametrize("arch", ARCHS)
def test_dynamic_batch(arch: str, tmp_path: Path) -> None:
    model, path = TwoHeads(arch).eval(), tmp_path / "model.onnx"
    export_onnx(model, SIZE, path, dynamic_batch=True)
    session = OnnxSession(path)
    assert session.input_shape == (None, 3, SIZE, SIZE)
    for batch in (1, 5):
        images = pictures(batch, SIZE).numpy()
        wanted = eager(model, images)["logits"]
        assert np.abs(session(images)["logits"] - wanted).max() <= FP32_EXPORT * np.abs(wanted).max()


def test_exporting_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(TwoHeads("mobilenetv3_small_050").eval(), SIZE, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("arithmetic", ["float32", "float16"])
def test_float16(xxs: Exported, tmp_path: Path, arithmetic: str) -> None:
    model, path = xxs
    half = tmp_path / "half.onnx"
    halve_onnx(path, half, arithmetic="float16" if arithmetic == "float16" else "float32")
    assert half.stat().st_size < 0.53 * path.stat().st_size
    onnx.checker.check_model(onnx.load(half))
    images = pictures(1, SIZE).numpy()
    found, wanted = OnnxSession(half)(images), eager(model, images)
    for name, values in wanted.items():
        error = np.abs(found[name] - values).max() / np.abs(values).max()
        assert 1e-6 < error < 5e-3, f"{name}: float16 keeps 11 bits, no less and no more ({error:.1e})"


def test_profile_tells_the_kernels(xxs: Exported) -> None:
    found = {kernel.operator: kernel for kernel in profile(xxs[1], runs=3)}
    assert found["Attention"].count == 9
    assert all(kernel.time_s >= 0 and kernel.provider == "CPUExecutionProvider" for kernel in found.values())
    times = [kernel.time_s for kernel in profile(xxs[1], runs=3)]
    assert times == sorted(times, reverse=True) and sum(times) > 1e-4


def foreign(path: Path, shape: list[int | str], dtype: int) -> None:
    """Write a model made elsewhere: mean colour of a picture (B, 3) under the name "scores"."""
    axes = numpy_helper.from_array(np.array([2, 3] if shape[1] == 3 else [1, 2]), "axes")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["wide"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide", "axes"], ["scores"], keepdims=0),
    ]
    image = helper.make_tensor_value_info("pixels", dtype, shape)
    scores = helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "foreign", [image], [scores], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dtype", "scale"), [("FLOAT", 1), ("FLOAT16", 1), ("UINT8", 255)])
def test_models_made_elsewhere(tmp_path: Path, channels_last: bool, dtype: str, scale: int) -> None:
    path = tmp_path / "foreign.onnx"
    foreign(path, ["n", 8, 10, 3] if channels_last else ["n", 3, 8, 10], onnx.TensorProto.DataType.Value(dtype))
    session = OnnxSession(path)
    assert session.input_shape == (None, 3, 8, 10)
    images = np.random.default_rng(0).random((2, 3, 8, 10), dtype=np.float32)
    assert session(images)["logits"] == pytest.approx(images.mean((2, 3)) * scale, abs=2e-3 * scale)


def test_bad_files_and_inputs_are_named(tmp_path: Path, xxs: Exported) -> None:
    with pytest.raises(LoadError, match="is not a file"):
        OnnxSession(tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(xxs[1].read_bytes()[:1000])
    with pytest.raises(LoadError, match=r"broken\.onnx is not a model"):
        OnnxSession(broken)
    foreign(tmp_path / "free.onnx", ["n", 3, "h", "w"], onnx.TensorProto.FLOAT)
    with pytest.raises(LoadError, match="of a fixed size"):
        OnnxSession(tmp_path / "free.onnx")
    foreign(tmp_path / "ids.onnx", [1, 3, 8, 8], onnx.TensorProto.INT64)
    with pytest.raises(LoadError, match="one picture input"):
        OnnxSession(tmp_path / "ids.onnx")
    with pytest.raises(UsageError, match="CPUExecutionProvider"):
        OnnxSession(xxs[1], providers=["CPUExecutionProvide"])
    with pytest.raises(DataError, match=r"\(1, 3, 32, 32\)"):
        OnnxSession(xxs[1])(np.zeros((1, 3, 32, 32), np.float32))

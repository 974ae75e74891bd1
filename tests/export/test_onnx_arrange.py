"""What is rearranged in an int8 ONNX file: fewer conversions run, and not one number of the answers moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.export.calibration.ranges import RangeConfig
from edgekit.export.onnx import int8
from edgekit.export.onnx.arrange import enter_channels_last, merge_reshapes, narrow_concatenations
from edgekit.export.onnx.convert import export_onnx
from edgekit.export.onnx.graph import OnnxGraph
from edgekit.export.onnx.session import OnnxSession, profile
from edgekit.export.session import FloatArray
from tests.export.nets_for_tests import TwoHeads, pictures

SIZE = 64
CONFIG = int8.Int8Config(ranges=RangeConfig(), attention_tokens=16)


def batches() -> Iterator[FloatArray]:
    return iter(np.split(pictures(8, SIZE, seed=1).numpy(), 8))


@pytest.fixture(scope="module")
def float_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "s.onnx"
    export_onnx(TwoHeads("mobilevit_s").eval(), SIZE, path)
    return path


@pytest.fixture(scope="module")
def plain(float_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the int8 file as it is before anything is rearranged."""
    path = tmp_path_factory.mktemp("plain") / "s.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "arrange", lambda graph, shapes: None)
        int8.quantize_onnx(float_path, path, batches, CONFIG)
    return path


@pytest.fixture(scope="module")
def arranged(float_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arranged") / "s.onnx"
    int8.quantize_onnx(float_path, path, batches, CONFIG)
    return path


def kernels(path: Path) -> dict[str, int]:
    return {kernel.operator: kernel.count for kernel in profile(path, runs=2)}


def test_the_answers_are_the_same_bit_for_bit(plain: Path, arranged: Path) -> None:
    sessions = OnnxSession(plain), OnnxSession(arranged)
    for image in np.split(pictures(4, SIZE, seed=2).numpy(), 4):
        before, after = (session(image) for session in sessions)
        assert all(np.array_equal(before[name], after[name]) for name in before)
    onnx.checker.check_model(onnx.load(arranged))


def test_fewer_conversions_run(plain: Path, arranged: Path) -> None:
    before, after = kernels(plain), kernels(arranged)
    # queries of the two opened attentions
    assert after["QLinearConv"] == before["QLinearConv"] + 2 and after["QGemm"] == before["QGemm"] - 2
    # keys and values of both: none becomes uint8 on its way to int8
    assert after["DequantizeLinear"] <= before["DequantizeLinear"] - 4
    assert after["Transpose"] < before["Transpose"], "the bytes that enter the int8 part are channels last already"
    assert after["MatMulIntegerToFloat"] == before["MatMulIntegerToFloat"] == 4


def test_the_way_into_the_int8_part(arranged: Path) -> None:
    graph = OnnxGraph.read(arranged)
    axes = [helper.get_attribute_value(n.attribute[0]) for n in graph.nodes if n.op_type == "Flatten"]
    assert sorted(axes) == [1, 1, 1, 1, 3], "two keys, two values, one feature map"


def test_a_free_batch_stays_free(tmp_path: Path) -> None:
    export_onnx(TwoHeads("mobilevit_s").eval(), SIZE, tmp_path / "float.onnx", dynamic_batch=True)
    int8.quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", batches, CONFIG)
    assert sum(node.op_type == "Flatten" for node in OnnxGraph.read(tmp_path / "int8.onnx").nodes) == 5
    session, images = OnnxSession(tmp_path / "int8.onnx"), pictures(3, SIZE, seed=3).numpy()
    alone = [session(image[None])["embedding"][0] for image in images]
    np.testing.assert_array_equal(session(images)["embedding"], np.stack(alone))


def _graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int]) -> OnnxGraph:
    initializers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(helper.make_graph(nodes, "hand", [x], [y], initializers), opset_imports=opsets)
    return OnnxGraph(model)


def test_reshapes_that_copy_a_side_are_left() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "first"], ["a"], name="a"),
        helper.make_node("Reshape", ["a", "second"], ["b"], name="b"),
        helper.make_node("Reshape", ["b", "copy"], ["y"], name="y"),
    ]
    shapes = {"first": np.array([4, 6]), "second": np.array([-1, 8]), "copy": np.array([0, 2, 4])}
    graph = _graph(nodes, shapes, [2, 12])
    assert merge_reshapes(graph) == 1
    assert [(node.name, node.input[0]) for node in graph.nodes] == [("b", "x"), ("y", "b")]


@pytest.mark.parametrize("readers", [1, 2])
def test_a_concatenation_that_something_else_reads_stays_float(readers: int) -> None:
    nodes = [
        helper.make_node("Concat", ["x", "x"], ["joined"], name="joined", axis=1),
        helper.make_node("QuantizeLinear", ["joined", "scale", "zero"], ["codes"], name="codes"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["wide"], name="wide"),
        helper.make_node("Add", ["wide", "joined" if readers == 2 else "wide"], ["y"], name="y"),
    ]
    constants = {"scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8)}
    graph = _graph(nodes, constants, [1, 2, 4, 4])
    assert narrow_concatenations(graph) == (readers == 1)
    before_codes = next(node for node in graph.nodes if "codes" in node.output).op_type
    assert before_codes == ("Concat" if readers == 1 else "QuantizeLinear")


@pytest.mark.parametrize("reader", ["Conv", "Add"])
def test_only_what_convolutions_read_enters_channels_last(reader: str) -> None:
    last = {
        "Conv": helper.make_node("Conv", ["wide", "w"], ["y"], name="y"),
        "Add": helper.make_node("Add", ["wide", "wide"], ["y"], name="y"),
    }[reader]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"], name="map"),
        helper.make_node("Relu", ["map"], ["sharp"], name="sharp"),
        helper.make_node("QuantizeLinear", ["sharp", "scale", "zero"], ["codes"], name="codes"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["wide"], name="wide"),
        last,
    ]
    constants = {
        "w": np.ones((2, 2, 1, 1), np.float32), "scale": np.array(0.1, np.float32), "zero": np.array(3, np.uint8),
    }  # fmt: skip
    graph = _graph(nodes, constants, [1, 2, 4, 4])
    assert enter_channels_last(graph, {"sharp": ["batch", 2, 4, 4]}) == (reader == "Conv")
    assert enter_channels_last(graph, {}) == 0, "a map of unknown size stays"

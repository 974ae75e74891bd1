"""The audit of files that other tools made, and of what is no artifact at all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import LoadError
from edgekit.export.audit.audit import audit, audit_runtime
from edgekit.export.audit.record import INT8, Op
from edgekit.export.tflite.graph import Graph
from tests.export.artifacts_for_tests import Artifacts, SmallNet, artifacts, batches


@pytest.fixture(scope="module")
def files() -> Artifacts:
    return artifacts()


def test_operator_oriented_quantization_of_onnx_runtime(files: Artifacts, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = batches()

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else {"image": row}

    path = tmp_path / "qoperator.onnx"
    quantize_static(
        str(files["onnx fp32"]), str(path), Pictures(), quant_format=QuantFormat.QOperator, per_channel=True,
        op_types_to_quantize=["Conv", "Gemm"],
    )  # fmt: skip
    found = audit(path)
    assert found.ops_by_kind()["QLinearConv"] == {INT8: 3} and found.ops_by_kind()["QGemm"] == {INT8: 3}
    assert found.precision == "int8" and found.macs == SmallNet.macs()


def test_models_that_come_with_onnx_and_onnx_runtime() -> None:
    import onnxruntime

    folders = [Path(module.__file__).parent for module in (onnx, onnxruntime) if module.__file__]
    paths = [path for folder in folders for path in folder.rglob("*.onnx")]
    if not paths:
        pytest.skip("these builds of onnx and onnxruntime bring no models along")
    for path in paths:
        nodes = [node for node in onnx.load(path).graph.node if node.op_type != "Constant"]
        assert len(audit(path).ops) >= len(nodes), path
    assert audit(folders[1] / "datasets" / "logreg_iris.onnx").made_by["opset"].startswith("ai.onnx.ml 1")


@pytest.mark.parametrize("opset", [9, 13, 17, 21])
def test_old_and_new_opsets_with_branches(tmp_path: Path, opset: int) -> None:
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    other = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w2")

    def branch(name: str, tensor: Any) -> Any:
        node = helper.make_node("Conv", ["x", tensor.name], [f"{name}_y"])
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 8, 6, 6])
        return helper.make_graph([node], name, [], [out], [tensor])

    flag = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True)))
    both = helper.make_node("If", ["flag"], ["y"], then_branch=branch("a", weight), else_branch=branch("b", other))
    graph = helper.make_graph(
        [flag, both],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "branches.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    found = audit(path)
    assert found.ops_by_kind() == {"Conv": {"fp32": 2}, "If": {"fp32": 1}}
    assert (found.parameters, found.precision) == (2 * 8 * 27, "fp32")


def test_weights_in_other_files_and_files_that_are_not_there(files: Artifacts, tmp_path: Path) -> None:
    found = audit(files["onnx external"])
    assert found.size_bytes > found.weights[0].size_bytes
    model = onnx.load(files["onnx external"], load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../../secret" if entry.key == "location" else entry.value
    path = tmp_path / "climbs.onnx"
    onnx.save(model, path)
    assert "not there, or outside the folder: ../../secret" in audit(path).notes
    with pytest.raises(LoadError, match="rejects"):
        audit_runtime(path)


def test_several_subgraphs_and_signatures(files: Artifacts, tmp_path: Path) -> None:
    graph = Graph.read(files["tflite fp32"])
    graph.model.subgraphs.append(copy.deepcopy(graph.model.subgraphs[0]))
    second = copy.deepcopy(graph.model.signatureDefs[0])
    second.subgraphIndex, second.signatureKey = 1, b"again"
    graph.model.signatureDefs.append(second)
    path = tmp_path / "two.tflite"
    graph.write(path)
    found, single = audit(path), audit(files["tflite fp32"])
    assert found.made_by["signatures"].endswith("again") and "2 subgraphs" in found.notes[0]
    assert len(found.ops) == 2 * len(single.ops)
    assert found.parameters == single.parameters  # the buffers are shared


def test_a_tflite_file_that_takes_bytes(tmp_path: Path) -> None:
    path = tmp_path / "bytes.tflite"
    path.write_bytes(_byte_adder())
    found = audit(path)
    assert (found.inputs[0].dtype, found.inputs[0].note) == ("uint8", "scale 0.00784, zero point 128")
    assert found.ops == (Op("ADD", INT8),) and found.precision == "none"
    assert audit_runtime(path).facts["partitions"] in (0, 1)


def _byte_adder() -> bytes:
    """Return a TFLite model that adds a uint8 vector to itself, without a signature."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model, graph, code, add = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    add.inputs, add.outputs = [0, 0], [1]
    add.builtinOptionsType, add.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    graph.tensors = []
    for name in ("x", "y"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, [4], schema.TensorType.UINT8
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [0.00784], [128]
        graph.tensors.append(tensor)
    graph.operators, graph.inputs, graph.outputs = [add], [0], [1]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def test_a_neural_network_package_is_refused_by_name(tmp_path: Path) -> None:
    from coremltools.models import datatypes
    from coremltools.models.neural_network import NeuralNetworkBuilder

    from tests.export.mil_for_tests import ct

    builder = NeuralNetworkBuilder([("x", datatypes.Array(4))], [("y", None)])
    builder.add_activation("relu", "RELU", "x", "y")
    path = tmp_path / "old.mlpackage"
    ct.models.MLModel(builder.spec, skip_model_load=True, weights_dir=str(tmp_path)).save(str(path))
    with pytest.raises(LoadError, match="of type 'neuralNetwork'; only ML Programs"):
        audit(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.onnx", b"", "is empty"),
        ("other.onnx", b"\x1c\0\0\0TFL3" + bytes(64), "is a TFLite model, whatever its suffix says"),
        ("other.tflite", b"\x08\x08\x12\x07pytorch", "is not a TFLite model"),
        ("packed.onnx", b"PK\x03\x04" + bytes(64), "is a zip archive"),
        ("text.onnx", b"<!DOCTYPE html><html>", "not an ONNX model"),
        ("file.mlpackage", b"PK\x03\x04", "is a file; an artifact with this suffix is a folder"),
        ("model.bin", b"x", "no artifact that edgekit knows"),
    ],
)
def test_what_is_no_artifact_is_told_in_words(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=message):
        audit(tmp_path / name)

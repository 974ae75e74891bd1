"""The audit tells what a file is, also one that others made, and catches those that are not what they claim."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.export.audit.audit import audit, audit_contained, audit_runtime, check_precision, stored_precision
from edgekit.export.audit.picture import COLOURS, draw_precision, rows_of
from edgekit.export.audit.record import DYNAMIC, INT8, UNPACK, Audit, Op, Weights, precision_of
from edgekit.export.parity import Precision
from edgekit.export.quiet import quiet
from tests.export.artifacts_for_tests import METADATA, SIZE, Artifacts, SmallNet, artifacts, small_net

CLAIMS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
EXPECTED = {
    # file -> what it is, and the claims that it may make
    "onnx fp32": ("fp32", {"fp32"}),
    "onnx free batch": ("fp32", {"fp32"}),
    "onnx external": ("fp32", {"fp32"}),
    "onnx fp16": ("fp16", {"fp16"}),
    "onnx fp16 arithmetic": ("fp16", {"fp16"}),
    "onnx int8": ("int8", {"int8"}),
    "onnx int8-dynamic": ("int8-dynamic", {"int8"}),
    "onnx int8-weights": ("int8-weights", set()),
    "tflite fp32": ("fp32", {"fp32"}),
    "tflite fp16": ("fp16", {"fp16"}),
    "tflite int8": ("int8", {"int8"}),
    "tflite int8-dynamic": ("int8-dynamic", {"int8"}),
    "coreml fp32": ("fp32", {"fp32"}),
    "coreml fp16": ("fp16", {"fp16"}),
    "coreml int8-weights": ("int8-weights", {"int8"}),
    "coreml palette": ("sub-8-bit", set()),
}


@pytest.fixture(scope="module")
def files() -> Artifacts:
    return artifacts()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_is_what_it_is_and_may_claim_only_that(files: Artifacts, name: str) -> None:
    precision, claims = EXPECTED[name]
    assert stored_precision(files[name]) == precision
    assert {claim for claim in CLAIMS if not check_precision(audit(files[name]), claim)} == claims


@pytest.mark.parametrize("name", EXPECTED)
def test_multiply_accumulates_are_those_counted_by_hand(files: Artifacts, name: str) -> None:
    assert audit(files[name]).macs == SmallNet.macs()


@pytest.mark.parametrize("name", ["onnx fp32", "tflite fp32", "coreml fp32"])
def test_parameters_are_the_nets(files: Artifacts, name: str) -> None:
    found = audit(files[name])
    learned = sum(parameter.numel() for parameter in small_net().parameters())
    assert learned <= found.parameters <= learned + 8  # and a few scalars: an epsilon, a scale
    assert found.weights[0].size_bytes == 4 * found.weights[0].elements
    assert found.weights[0].size_bytes < found.size_bytes


@pytest.mark.parametrize("name", ["onnx fp32", "onnx int8", "tflite fp32", "tflite int8", "coreml fp32"])
def test_our_metadata_is_read_back(files: Artifacts, name: str) -> None:
    assert audit(files[name]).metadata == METADATA


def test_what_a_file_claims_is_named_beside_what_it_is(files: Artifacts) -> None:
    (reason,) = check_precision(audit(files["tflite fp16"]), "int8")
    assert reason == "it claims int8, but it is fp16: its weights are 98.7 % fp16, 1.3 % fp32"


@pytest.mark.parametrize("name", EXPECTED)
def test_an_audit_survives_json(files: Artifacts, name: str) -> None:
    found = audit(files[name])
    assert Audit.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_a_child_process_finds_the_same(files: Artifacts) -> None:
    assert audit_contained(files["onnx int8"]) == audit(files["onnx int8"])


# ---- inputs and operations


def test_interfaces(files: Artifacts) -> None:
    shapes = {form: audit(files[f"{form} fp32"]).inputs[0] for form in ("onnx", "tflite", "coreml")}
    assert (shapes["onnx"].shape, shapes["onnx"].dtype) == ((1, 3, SIZE, SIZE), "fp32")
    assert (shapes["tflite"].shape, shapes["tflite"].dtype) == ((1, SIZE, SIZE, 3), "fp32")
    assert (shapes["coreml"].shape, shapes["coreml"].dtype, shapes["coreml"].note) == ((SIZE, SIZE), "image", "RGB")
    assert audit(files["onnx free batch"]).inputs[0].shape[0] == "batch"
    for form in shapes:
        assert {port.name for port in audit(files[f"{form} fp32"]).outputs} >= {"logits", "embedding"}


def test_static_int8_onnx_is_told_from_its_float_rest(files: Artifacts) -> None:
    found = audit(files["onnx int8"])
    kinds = found.ops_by_kind()
    assert kinds["Conv"] == {"fp32": 2, INT8: 1}  # the stem and the depthwise convolution stay float
    pointwise, linears = 8 * 8 * 128 * 32, 64 * 128 * 192 + 64 * 64 * 128
    assert found.macs_by_dtype()[INT8] == pointwise + linears
    assert found.boundaries["quantize"] == found.boundaries["dequantize"] == 4
    assert audit_runtime(files["onnx int8"]).integer_products == 3


def test_dynamic_int8_is_told_from_static(files: Artifacts) -> None:
    assert audit(files["tflite int8-dynamic"]).macs_by_dtype()[DYNAMIC] > 0
    assert INT8 not in audit(files["tflite int8-dynamic"]).macs_by_dtype()
    assert audit(files["onnx int8-dynamic"]).boundaries == {"quantize at run time": 3}
    assert audit_runtime(files["onnx int8-dynamic"]).integer_products == 3


def test_float16_weights_of_tflite_compute_in_float32(files: Artifacts) -> None:
    found = audit(files["tflite fp16"])
    assert found.macs_by_dtype() == {"fp32": found.macs}
    assert found.boundaries == {"dequantize weights": 6}


def test_core_ml_arithmetic_and_unpacking(files: Artifacts) -> None:
    assert audit(files["coreml fp16"]).macs_by_dtype() == {"fp16": SmallNet.macs()}
    coded = audit(files["coreml int8-weights"])
    assert coded.macs_by_dtype() == {"fp16": SmallNet.macs()}
    assert coded.ops_by_kind()["constexpr_affine_dequantize"] == {UNPACK: 3}
    assert coded.made_by["target"] == "iOS 17, macOS 14"
    palette = audit(files["coreml palette"])
    assert palette.weights[0] == Weights("uint4", 6, 38400, 19200)


def test_core_ml_with_quantized_activations_computes_in_8_bits(tmp_path: Path) -> None:
    from tests.export.mil_for_tests import ct, mb

    weight = np.linspace(-1, 1, 64 * 32, dtype=np.float32).reshape(64, 32)
    codes, scale = np.round(weight * 127).astype(np.int8), np.float32(1 / 127)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 32))], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        x = mb.dequantize(input=mb.quantize(input=x, scale=scale, output_dtype="int8"), scale=scale)
        stored = mb.constexpr_affine_dequantize(quantized_data=codes, scale=scale, zero_point=np.int8(0), axis=0)
        return mb.linear(x=x, weight=stored)

    path = tmp_path / "w8a8.mlpackage"
    with quiet():
        ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS17,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
            compute_precision=ct.precision.FLOAT32,
        ).save(str(path))
    assert audit(path).macs_by_dtype() == {INT8: 64 * 32}
    assert stored_precision(path) == "int8" and check_precision(audit(path), "int8") == ()


# ---- what the runtimes do


def test_onnx_runtime_fuses_and_says_so(files: Artifacts) -> None:
    found = audit_runtime(files["onnx fp32"])
    assert found.kernels["QuickGelu"] == 3 and found.provider == "CPUExecutionProvider"
    assert found.integer_products == 0
    half = audit_runtime(files["onnx fp16 arithmetic"])
    assert half.facts["casts_added"] > 0 and "no float16 kernels" in half.note


def test_partitions_and_what_falls_out_of_them(files: Artifacts) -> None:
    assert audit_runtime(files["tflite int8"]).facts == {
        "partitions": 1,
        "delegated": sum(audit_runtime(files["tflite int8"]).facts["outside"].values(), 0)
        + len(audit(files["tflite int8"]).ops),
        "outside": {},
    }
    dynamic = audit_runtime(files["tflite int8-dynamic"])
    assert dynamic.facts["partitions"] == 2 and dynamic.facts["outside"] == {"DEPTHWISE_CONV_2D": 1}


def test_an_int8_file_that_the_runtime_does_not_fuse_is_found_out(files: Artifacts, tmp_path: Path) -> None:
    """Without zero points of the weights ONNX Runtime 1.31 leaves the products in float: slow, and called int8."""
    model = onnx.load(files["onnx int8"])
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            del node.input[2:]
    path = tmp_path / "unfused.onnx"
    onnx.save(model, path)
    assert stored_precision(path) == "int8"
    (reason,) = check_precision(audit(path), "int8")
    assert "of its 3 8-bit products in integers" in reason


# ---- the definition, and the picture


@pytest.mark.parametrize(
    ("weights", "ops", "precision"),
    [
        ([("int8", 60), ("fp32", 40)], [(INT8, 60), ("fp32", 40)], "int8"),
        ([("int8", 60), ("fp32", 40)], [(INT8, 50), ("fp32", 50)], "int8-weights"),
        ([("uint8", 60), ("fp32", 40)], [(INT8, 30), (DYNAMIC, 30), ("fp32", 40)], "int8-dynamic"),
        ([("int8", 50), ("fp32", 50)], [(INT8, 100)], "mixed"),
        ([("int8", 51), ("fp32", 49), ("int32", 900)], [(INT8, 100)], "int8"),
        ([("int8", 30), ("uint8", 30), ("fp16", 40)], [("fp16", 1)], "int8-weights"),
        ([("uint4", 30), ("uint6", 30), ("int8", 40)], [("fp16", 1)], "sub-8-bit"),
        ([("int32", 5)], [], "none"),
    ],
)
def test_precision_by_its_definition(
    weights: list[tuple[str, int]], ops: list[tuple[str, int]], precision: str
) -> None:
    stored = [Weights(dtype, 1, elements, elements) for dtype, elements in weights]
    assert precision_of(stored, [Op("Conv", dtype, macs, True) for dtype, macs in ops]) == precision


def test_products_of_unknown_size_vote_by_their_number() -> None:
    ops = [Op("Conv", INT8, None, True), Op("Conv", INT8, 1, True), Op("Conv", "fp32", 10**9, True)]
    assert precision_of([Weights("int8", 1, 1, 1)], ops) == "int8"


def test_the_picture_shows_what_computes_in_what(files: Artifacts, tmp_path: Path) -> None:
    from PIL import Image

    def colours(name: str) -> set[str]:
        draw_precision(audit(files[name]), tmp_path / "picture.png")
        pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).reshape(-1, 3)
        packed, counts = np.unique(pixels.astype(np.uint32) @ [65536, 256, 1], return_counts=True)
        return {f"#{value:06X}" for value, count in zip(packed, counts, strict=True) if count > 200}

    assert {COLOURS["int8"], COLOURS["fp32"]} <= colours("onnx int8")
    assert COLOURS["int8"] not in colours("onnx fp32")
    assert COLOURS["fp16"] in colours("coreml fp16")


def test_rows_of_the_picture_keep_every_operation_but_unpacking() -> None:
    ops = [Op("Add", "fp32"), Op("Conv", INT8, 5), Op("DQ", UNPACK), Op("Relu", "fp32"), Op("Gemm", INT8, 7)]
    first, second = rows_of(ops)
    assert [op.kind for op in first.beside] == ["Add", "Relu"] and second.beside == ()


def test_a_picture_of_a_file_without_products(files: Artifacts, tmp_path: Path) -> None:
    found = dataclasses.replace(audit(files["onnx fp32"]), ops=(Op("Add", "fp32"),))
    draw_precision(found, tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 1000

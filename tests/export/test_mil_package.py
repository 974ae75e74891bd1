"""Damaged, hostile and foreign packages: one clear line each, never a traceback, a crash or a hang."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mil_for_tests import ct, floats, mb

from edgekit.errors import EdgekitError
from edgekit.export.mil import package as mil_package
from edgekit.export.mil.blob import BlobFile, PackageError, decode
from edgekit.export.mil.interpreter import MilProgram, MilSession
from edgekit.export.mil.kernel import ProgramError, UnknownOpError
from edgekit.export.quiet import quiet

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small sound package: a convolution, a mean, a linear layer."""

    @mb.program(input_specs=[mb.TensorSpec((1, 3, 8, 8))], opset_version=ct.target.iOS17)
    def program(image):  # type: ignore[no-untyped-def]
        y = mb.conv(x=image, weight=floats((8, 3, 3, 3), 0), pad_type="same", strides=[2, 2])
        y = mb.reshape(x=mb.reduce_mean(x=mb.silu(x=y), axes=[2, 3], keep_dims=False), shape=[1, -1])
        return mb.linear(x=y, weight=floats((5, 8), 1), bias=floats((5,), 2), name="logits")

    path = tmp_path_factory.mktemp("sound") / "small.mlpackage"
    with quiet():
        ct.convert(
            program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32, skip_model_load=True,
        ).save(str(path))  # fmt: skip
    return path


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "small.mlpackage"))


def edit_spec(package: Path, change: Callable[..., object]) -> None:
    """Load the specification, let `change` alter the message, store it."""
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString((package / SPEC).read_bytes())
    change(spec)
    (package / SPEC).write_bytes(spec.SerializeToString())


def block(spec):  # type: ignore[no-untyped-def]
    body = spec.mlProgram.functions["main"]
    return body.block_specializations[body.opset]


def test_a_sound_package_loads_and_runs(package: Path) -> None:
    session = MilSession(package)
    assert session.input_shape == (1, 3, 8, 8)
    assert session(floats((1, 3, 8, 8), 3, 0, 1))["logits"].shape == (1, 5)


def refused(package: Path, message: str, error: type[EdgekitError] = PackageError) -> None:
    with pytest.raises(error, match=message) as caught:
        MilSession(package)(floats((1, 3, 8, 8), 3, 0, 1))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_reading_needs_nothing_of_coremltools_but_its_messages(sound: Path) -> None:
    """Its converters come with torch, scikit-learn and transformers; and both see the same message."""
    script = (
        "import sys; from pathlib import Path; from edgekit.export.mil.package import read_package\n"
        "said = read_package(Path(sys.argv[1])).description\n"
        "print([name for name in ('torch', 'sklearn', 'transformers', 'coremltools') if name in sys.modules])\n"
        "from edgekit.export.coreml.convert import coremltools_module\n"
        "model = coremltools_module().models.MLModel(sys.argv[1], skip_model_load=True)\n"
        "print(model.get_spec().description == said)\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(sound)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\nTrue\n", "")


def test_missing_parts(package: Path) -> None:
    (package / WEIGHTS).unlink()
    refused(package, "cannot read the weight file .*weight.bin")
    (package / SPEC).unlink()
    refused(package, "cannot read .*model.mlmodel: No such file")
    (package / "Manifest.json").unlink()
    refused(package, "cannot read .*Manifest.json: No such file")
    refused(package / "Manifest", "does not exist")
    refused(Path(__file__), "is a file; an .mlpackage is a folder")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nul", "[" * 100_000, '{"rootModelIdentifier": "a"}', "\xff\x00"])
def test_bad_manifests(package: Path, text: str) -> None:
    (package / "Manifest.json").write_text(text, encoding="latin-1")
    refused(package, "does not name a model")


@pytest.mark.parametrize("target", ["../../outside", "/etc/hostname", "a/../../../b", "..\\b"])
def test_a_manifest_cannot_lead_out_of_the_package(package: Path, target: str) -> None:
    manifest = {"itemInfoEntries": {"a": {"path": target}}, "rootModelIdentifier": "a"}
    (package / "Manifest.json").write_text(json.dumps(manifest))
    refused(package, "leads out of the package")


def test_a_link_cannot_lead_out_of_the_package(package: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.bin"
    shutil.move(package / WEIGHTS, outside)
    (package / WEIGHTS).symlink_to(outside)
    refused(package, "leads out of the package through a link")


def test_a_weight_path_cannot_lead_out_of_the_package(package: Path) -> None:
    def change(spec) -> None:  # type: ignore[no-untyped-def]
        for operation in block(spec).operations:
            if operation.type == "const" and operation.attributes["val"].HasField("blobFileValue"):
                operation.attributes["val"].blobFileValue.fileName = "@model_path/../../../secret"

    edit_spec(package, change)
    refused(package, "leads out of the package")


def test_sizes_are_limited(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mil_package, "MAX_WEIGHT_BYTES", 100)
    refused(package, "larger than the allowed 100 bytes")
    monkeypatch.setattr(mil_package, "MAX_SPEC_BYTES", 100)
    refused(package, "larger than the allowed 100 bytes")


def test_decoded_weights_are_limited_in_total(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mil_package, "MAX_DECODED_BYTES", 900)
    refused(package, "decode to more than the allowed 900 bytes")


def test_tensors_are_limited_before_anything_is_allocated(package: Path) -> None:
    def change(spec) -> None:  # type: ignore[no-untyped-def]
        for operation in block(spec).operations:
            if operation.type == "conv":
                operation.outputs[0].type.tensorType.dimensions[1].constant.size = 2**40

    edit_spec(package, change)
    refused(package, "more than the allowed")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("part", [SPEC, WEIGHTS])
def test_truncated_files(package: Path, part: str, keep: float) -> None:
    content = (package / part).read_bytes()
    (package / part).write_bytes(content[: int(len(content) * keep)])
    refused(package, "cut short|not a Core ML|outside the file|model of type|version 2|not match|no function|damaged")


def test_an_unknown_operation_is_named_with_its_place(package: Path) -> None:
    def change(spec) -> None:  # type: ignore[no-untyped-def]
        next(operation for operation in block(spec).operations if operation.type == "silu").type = "quantum_silu"

    edit_spec(package, change)
    refused(package, r"operation 1 'quantum_silu' that gives '\w+': the interpreter does not know", UnknownOpError)


def test_a_wrong_shape_is_named_with_its_place(package: Path) -> None:
    def change(spec) -> None:  # type: ignore[no-untyped-def]
        silu = next(operation for operation in block(spec).operations if operation.type == "silu")
        silu.outputs[0].type.tensorType.dimensions[1].constant.size = 9

    edit_spec(package, change)
    refused(package, r"operation 1 'silu' .* declared is \(1, 9, 4, 4\)", ProgramError)


def test_other_kinds_of_models_are_refused(package: Path) -> None:
    edit_spec(package, lambda spec: spec.neuralNetwork.layers.add())
    refused(package, "holds a model of type 'neuralNetwork'; only ML Programs")


def test_a_weight_of_another_type_or_place_is_refused(package: Path) -> None:
    content = bytearray((package / WEIGHTS).read_bytes())
    (sentinel,) = struct.unpack_from("<I", content, 64)
    assert sentinel == 0xDEADBEEF
    struct.pack_into("<I", content, 68, 1)
    (package / WEIGHTS).write_bytes(content)
    refused(package, "is fp16, the program says fp32")
    struct.pack_into("<IIQ", content, 64, 0xDEADBEEF, 2, 2**60)
    (package / WEIGHTS).write_bytes(content)
    refused(package, "ends outside the file")
    struct.pack_into("<I", content, 64, 0)
    (package / WEIGHTS).write_bytes(content)
    refused(package, "no tensor at offset 64")


@pytest.mark.parametrize("seed", range(150))
def test_random_damage_gives_a_clear_error_or_a_result(package: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    part = package / (SPEC if seed % 3 else WEIGHTS)
    content = np.frombuffer(part.read_bytes(), np.uint8).copy()
    for _ in range(random.integers(1, 4)):
        content[random.integers(len(content))] ^= np.uint8(1 << random.integers(8))
    part.write_bytes(content.tobytes())
    try:
        program = MilProgram.load(package)
        program.run({name: np.zeros([n or 1 for n in f.shape], np.float32) for name, f in program.inputs.items()})
    except EdgekitError as e:
        assert "\n" not in str(e)


@pytest.mark.parametrize(("dtype", "bits", "signed"), [("int4", 4, True), ("uint3", 3, False), ("uint6", 6, False)])
def test_elements_below_a_byte(dtype: str, bits: int, signed: bool) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = np.random.default_rng(bits).integers(low, high, (3, 7))
    planes = (values.reshape(-1, 1) >> np.arange(bits)) & 1
    packed = np.packbits(planes.astype(np.uint8).ravel(), bitorder="little")
    assert decode(packed.tobytes(), dtype, (3, 7)).tolist() == values.tolist()
    with pytest.raises(PackageError, match="bytes, not"):
        decode(packed.tobytes()[:-1], dtype, (3, 7))


def test_an_empty_weight_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weight.bin").touch()
    with pytest.raises(PackageError, match="not a Core ML weight file"):
        BlobFile.open(tmp_path / "weight.bin")

"""Students: any timm backbone, weights from files, and what is said where a net cannot be built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from edgekit.errors import EdgekitError, LoadError, UsageError
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, check_arch, student_preprocess
from edgekit.models.weights import read_state_dict
from edgekit.preprocess import Preprocess
from tests.conftest import REPOSITORY
from tests.tolerances import FP32_EXACT


def spec(arch: str, image_size: int = 64, classes: int = 3) -> StudentSpec:
    names = tuple(f"class {number}" for number in range(classes))
    return StudentSpec(arch, 24, names, student_preprocess(arch, image_size))


def refusal(kind: type[EdgekitError], student: StudentSpec, weights: Path | None = None) -> str:
    with pytest.raises(kind) as caught:
        build_student(student, weights=weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arch", "image_size"),
    [
        ("mobilevit_xxs", 64),
        ("mobilevit_xs", 96),
        ("mobilevit_s", 64),
        ("mobilevitv2_050", 64),
        ("mobilevitv2_100", 96),
        ("test_efficientnet", 48),
        ("test_resnet", 33),
        ("test_vit", 96),  # of a fixed input size: built for this one
        ("test_convnext", 64),
    ],
)
def test_any_timm_backbone_gives_embedding_and_logits(arch: str, image_size: int) -> None:
    student = build_student(spec(arch, image_size)).eval()
    with torch.no_grad():
        output = student(torch.rand(2, 3, image_size, image_size))
    assert output.embedding.shape == (2, 24)
    assert output.logits.shape == (2, 3)
    assert torch.allclose(output.logits, student.classifier(output.embedding))  # the classifier reads the embedding
    assert not torch.allclose(output.embedding[0], output.embedding[1])


def test_every_mobilevit_of_timm_is_known() -> None:
    names = [n for n in timm.list_models("mobilevit*")]  # noqa: C416
    assert {"mobilevit_xxs", "mobilevit_xs", "mobilevit_s", "mobilevitv2_050", "mobilevitv2_200"} <= set(names)
    for name in names:
        assert check_arch(name) == name


def test_pictures_are_normalised_inside() -> None:
    contract = Preprocess(32, 32, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    student = Student(StudentSpec("test_byobnet", 8, ("a", "b"), contract)).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        expected = student.projection(student.backbone((images - mean) / std))
        assert torch.allclose(student(images).embedding, expected, atol=FP32_EXACT)
    assert not {"mean", "std"} & set(student.state_dict())  # they are the spec's, not the weights'


def test_the_contract_is_the_one_timm_states() -> None:
    contract = student_preprocess("mobilevit_xxs", 256)
    assert (contract.image_size, contract.resize, contract.interpolation) == (256, 284, "bicubic")
    assert contract.mean == (0.0, 0.0, 0.0)
    assert student_preprocess("test_vit", 160).mean == (0.5, 0.5, 0.5)
    # tags of one architecture were trained with different crops
    assert student_preprocess("resnet50.tv_in1k", 224).resize != student_preprocess("resnet50.a1h_in1k", 224).resize


def test_unknown_names_get_a_near_one() -> None:
    for name, near in (("mobilevit_xs2", "mobilevit_xs"), ("mobilevit_xxs.cvnets_in1", "mobilevit_xxs.cvnets_in1k")):
        with pytest.raises(UsageError, match=f"did you mean '{near}'"):
            check_arch(name)
    with pytest.raises(UsageError) as caught:
        check_arch("qqqqqqqqqqqq")
    assert len(str(caught.value)) < 1500  # timm knows more than a thousand
    with pytest.raises(UsageError, match="weights that timm does not have"):
        check_arch("mobilevit_xxs.")


@pytest.mark.parametrize(
    ("arch", "image_size", "words"),
    [
        ("mobilevit_xxs", 16, "at least 32 pixels"),
        ("mobilevitv2_050", 31, "at least 32 pixels"),
        ("test_vit", 20, "does not work with test_vit"),
    ],
)
def test_an_image_size_the_net_cannot_take_is_refused(arch: str, image_size: int, words: str) -> None:
    assert words in refusal(UsageError, spec(arch, image_size))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
def test_local_weights_are_loaded_into_the_backbone(tmp_path: Path, suffix: str, prefix: str) -> None:
    torch.manual_seed(1)
    donor = timm.create_model("test_byobnet", num_classes=10)  # with its own classifier, which is left out
    tensors = {prefix + name: tensor.contiguous() for name, tensor in donor.state_dict().items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"epoch": 3, "state_dict": tensors}, file)
    else:
        save_file(tensors, file)
    student = build_student(spec("test_byobnet"), weights=file)
    given = donor.state_dict()
    for name, tensor in student.backbone.state_dict().items():
        assert torch.equal(tensor, given[name])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "other.safetensors")
    message = refusal(LoadError, spec("test_byobnet"), tmp_path / "other.safetensors")
    assert "weights of another architecture" in message
    assert "test_byobnet" in message


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    assert "never unpickles code" in refusal(LoadError, spec("test_byobnet"), tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_broken_files_of_every_kind_are_one_line(tmp_path: Path, suffix: str) -> None:
    good = tmp_path / f"good{suffix}"
    tensors = {f"layer.{number}": torch.rand(7, 3) for number in range(9)}
    if suffix == ".safetensors":
        save_file(tensors, good)
    else:
        torch.save(tensors, good)
    content, rng = good.read_bytes(), np.random.default_rng(0)
    broken = [b"", b"x", content[:50], content[: len(content) // 2], rng.bytes(300)]
    for _ in range(30):  # single bytes changed anywhere
        damaged = bytearray(content)
        damaged[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
        broken.append(bytes(damaged))
    for number, bad in enumerate(broken):
        file = tmp_path / f"bad{number}{suffix}"
        file.write_bytes(bad)
        try:
            read_state_dict(file)  # a changed weight cannot be noticed
        except LoadError as e:
            assert file.name in str(e)
            assert "\n" not in str(e)
    for number in range(5):
        with pytest.raises(LoadError):
            read_state_dict(tmp_path / f"bad{number}{suffix}")


def test_files_without_tensors_or_that_are_not_there_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("empty.pt", "list.pt"):
        with pytest.raises(LoadError, match="no tensors by name"):
            read_state_dict(tmp_path / name)
    for name in ("missing.pt", "missing.safetensors"):
        with pytest.raises(LoadError, match="is not there"):
            read_state_dict(tmp_path / name)


def test_hub_weights_that_cannot_be_fetched_are_a_load_error(tmp_path: Path) -> None:
    """In its own process: the hub client reads HF_HUB_OFFLINE when it is imported."""
    code = (
        "from tests.models.test_student import spec\n"
        "from edgekit.models.student import build_student\n"
        "build_student(spec('test_byobnet'), pretrained='test_byobnet.r160_in1k')\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("edgekit.errors.LoadError: the pretrained weights of 'test_byobnet.r160_in1k'"), done.stderr
    assert "--student-weights FILE" in last

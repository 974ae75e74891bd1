"""Checkpoints: a student comes back bit for bit, and a file that is none is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit.compress.training.ema import Ema
from edgekit.errors import LoadError
from edgekit.models.checkpoint import STUDENT_FILE, load_student, save_student, student_file
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, student_preprocess
from edgekit.models.weights import read_safetensors

SPEC = StudentSpec("test_byobnet", 8, ("cat", "Tür", "dog"), student_preprocess("test_byobnet", 32))
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    student = Student(SPEC).train()
    student(torch.rand(8, 3, 32, 32))  # batch norm has seen something
    return student.eval()


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a checkpoint; its tensors stay."""
    header = json.loads(read_safetensors(path)[1]["edgekit"])
    change(header)
    save_file(load_file(path), path, metadata={"edgekit": json.dumps(header)})


def refusal(path: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load_student(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_student_comes_back_bit_for_bit(student: Student, tmp_path: Path) -> None:
    save_student(tmp_path / STUDENT_FILE, student)
    for source in (tmp_path, tmp_path / STUDENT_FILE):
        again = load_student(source)
        assert again.spec == SPEC
        assert not again.training
        with torch.no_grad():
            for one, other in zip(again(IMAGES), student(IMAGES), strict=True):
                assert torch.equal(one, other)


def test_the_averaged_weights_replace_the_students_own(student: Student, tmp_path: Path) -> None:
    ema = Ema(student, 0.5)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    save_student(tmp_path / STUDENT_FILE, student, ema.model)
    again = load_student(tmp_path)
    assert torch.equal(again.classifier.weight, ema.model.state_dict()["classifier.weight"])
    assert not torch.equal(again.classifier.weight, student.classifier.weight)


def test_a_layout_of_the_last_channel_first_is_stored_alike(student: Student, tmp_path: Path) -> None:
    save_student(tmp_path / "a.safetensors", student)
    save_student(tmp_path / "b.safetensors", student.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_of_a_newer_edgekit_says_so(student: Student, tmp_path: Path) -> None:
    save_student(tmp_path / STUDENT_FILE, student)
    rewrite(tmp_path / STUDENT_FILE, lambda header: header.update(schema_version=99))
    assert "newer edgekit (schema 99 > 1); update edgekit" in refusal(tmp_path / STUDENT_FILE)


def test_tensors_of_another_architecture_are_refused(student: Student, tmp_path: Path) -> None:
    path = tmp_path / STUDENT_FILE
    save_student(path, student)
    rewrite(path, lambda header: header["student"].update(arch="test_efficientnet"))
    assert "does not fit the architecture it names, test_efficientnet" in refusal(path)
    save_student(path, student)
    rewrite(path, lambda header: header["student"].update(arch="mobilevit_zzz"))
    assert "is not a timm model" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 10**12},
        {"embed_dim": 0},
        {"embed_dim": "eight"},
        {"frames": -1},
        {"classes": "cat"},
        {"classes": []},
        {"classes": [1, 2, 3]},
        {"arch": None},
        {"preprocess": {"image_size": 10**9}},
        {"preprocess": None},
        {"surprise": 1},
    ],
)
def test_an_impossible_spec_is_refused(student: Student, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / STUDENT_FILE
    save_student(path, student)
    rewrite(path, lambda header: header["student"].update(change))
    assert "cannot be built here: not the spec of a student" in refusal(path)


def test_damaged_files_are_refused(student: Student, tmp_path: Path) -> None:
    path = tmp_path / STUDENT_FILE
    save_student(path, student)
    whole = path.read_bytes()
    for content in (b"", b"x" * 100, whole[:1000], whole[:-1], b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        assert "not a readable safetensors file" in refusal(path)


@pytest.mark.parametrize("header", ["", "[]", "{", '{"schema_version": "x"}', '{"schema_version": 1}', "null"])
def test_headers_that_are_not_edgekits_are_refused(student: Student, tmp_path: Path, header: str) -> None:
    path = tmp_path / STUDENT_FILE
    save_student(path, student)
    save_file(load_file(path), path, metadata={"edgekit": header})
    refusal(path)
    save_file(load_file(path), path)
    refusal(path)


def test_a_folder_without_student_is_refused(tmp_path: Path) -> None:
    assert STUDENT_FILE in refusal(tmp_path)
    with pytest.raises(LoadError):
        student_file(tmp_path / "nowhere")


def test_a_spec_survives_json() -> None:
    assert StudentSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    assert (SPEC.num_classes, SPEC.image_size) == (3, 32)

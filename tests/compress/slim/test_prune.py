"""Pruning: what goes is what was chosen, the smaller net is a student like any other, bad shares are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.compress.slim.folding import folded, write_back
from edgekit.compress.slim.prune import CHUNK, choose, importance_of, measure_costs, prunable, pruned
from edgekit.errors import LoadError, UsageError
from edgekit.export.deploy import DeployModel, TorchSession
from edgekit.export.onnx.convert import export_onnx
from edgekit.export.runtimes import open_session
from edgekit.models.checkpoint import load_student, save_student
from edgekit.models.complexity import measure_complexity
from edgekit.models.spec import StudentSpec
from edgekit.models.widths import Kind, cut
from tests.compress.slim.students_for_tests import SIZE, some, student
from tests.tolerances import FP32_EXACT, FP32_EXPORT

KEPT = {
    "stages.1.0": tuple(range(8, 32)),
    "stages.2.1.transformer.0.mlp": (1, 2, 3, 5, 8, 13, 21, 34),
    "stages.3.1.transformer.1.attn": (0, 2, 3),
}


def test_cutting_is_the_same_as_silencing() -> None:
    """The layer that reads a cut place gets zeros for the columns that go; the net must then say the same."""
    plain = student()
    silent = student()
    readers = {"stages.1.0": "conv3_1x1.conv", "stages.2.1.transformer.0.mlp": "fc2"}
    readers["stages.3.1.transformer.1.attn"] = "proj"
    for path, kept in KEPT.items():
        layer = silent.backbone.get_submodule(f"{path}.{readers[path]}")
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        width = {place.path: place.width for place in prunable(silent)}[path]
        size = layer.weight.shape[1] // width
        gone = [n * size + i for n in range(width) if n not in kept for i in range(size)]
        with torch.no_grad():
            layer.weight[:, gone] = 0
    smaller = pruned(plain, KEPT)
    images = torch.from_numpy(some(2))
    with torch.no_grad():
        torch.testing.assert_close(smaller(images).logits, silent(images).logits, rtol=FP32_EXACT, atol=FP32_EXACT)
        assert not torch.allclose(smaller(images).logits, plain(images).logits, atol=1e-3)
    before, after = measure_complexity(plain, SIZE), measure_complexity(smaller, SIZE)
    assert after.parameters < before.parameters and after.macs < before.macs


def test_a_pruned_student_is_saved_loaded_folded_and_exported(tmp_path: Path) -> None:
    smaller = pruned(pruned(student(), KEPT), {"stages.1.0": tuple(range(16))})
    path = tmp_path / "student.safetensors"
    save_student(path, smaller)
    loaded = load_student(path)
    assert dict(loaded.spec.widths) == {path: len(kept) for path, kept in KEPT.items()} | {"stages.1.0": 16}
    images = some(2)
    with torch.no_grad():
        want = smaller(torch.from_numpy(images)).logits
        assert torch.equal(loaded(torch.from_numpy(images)).logits, want)
        form = folded(loaded)
        torch.testing.assert_close(form(torch.from_numpy(images)).logits, want, rtol=0, atol=FP32_EXPORT)
        back = write_back(form, loaded)
        torch.testing.assert_close(back(torch.from_numpy(images)).logits, want, rtol=0, atol=FP32_EXPORT)
    file = tmp_path / "model.onnx"
    export_onnx(DeployModel(loaded), SIZE, file)
    found = open_session(file)(images[:1])["logits"]
    expected = TorchSession(DeployModel(loaded))(images[:1])["logits"]
    assert abs(found - expected).max() < FP32_EXPORT


@pytest.mark.parametrize(
    "widths", [[["stages.9", 4]], [["stages.1.0", 4000]], [["stages.1.0", 0]], [["stages.1.0", True]], "x", [4]]
)
def test_widths_out_of_a_strange_file_are_refused(widths: object, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_student(path, student())
    spec = student().spec.to_dict() | {"widths": widths}
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"edgekit": json.dumps({"schema_version": 1, "student": spec})})
    with pytest.raises(LoadError, match="cannot be built here"):
        load_student(path)


def test_a_whole_student_says_nothing_of_widths() -> None:
    """Checkpoints of students that were not pruned stay readable for an edgekit from before."""
    values = student().spec.to_dict()
    assert "widths" not in values
    assert StudentSpec.from_dict(json.loads(json.dumps(values))) == student().spec


@pytest.mark.parametrize("kind", ["taylor", "magnitude"])
def test_what_is_silent_matters_least(kind: str) -> None:
    plain = student()
    mlp, block = plain.backbone.get_submodule("stages.2.1.transformer.0.mlp.fc2"), "stages.1.0"
    depthwise = plain.backbone.get_submodule(f"{block}.conv3_1x1.conv")
    heads = plain.backbone.get_submodule("stages.3.1.transformer.1.attn.proj")
    assert isinstance(mlp, nn.Linear) and isinstance(depthwise, nn.Conv2d) and isinstance(heads, nn.Linear)
    with torch.no_grad():
        mlp.weight[:, 7] = 0
        depthwise.weight[:, 3] = 0
        heads.weight[:, 20:40] = 0  # the second of four heads of 20
    found = prunable(plain)
    pictures = [(torch.from_numpy(some(4)), torch.tensor([0, 1, 2, -1]))]
    importance = importance_of(plain, found, pictures, kind)  # type: ignore[arg-type]
    assert {place.path: place.width for place in found} == {path: len(v) for path, v in importance.items()}
    for path, number in (("stages.2.1.transformer.0.mlp", 7), (block, 3), ("stages.3.1.transformer.1.attn", 1)):
        assert float(importance[path][number]) == 0
        assert int((importance[path] == 0).sum()) == 1


def test_costs_are_multiply_accumulates() -> None:
    plain = student()
    costs = measure_costs(plain, prunable(plain))
    smaller = pruned(plain, KEPT)
    widths = {place.path: place.width for place in prunable(plain)}
    saved = sum(costs[path] * (widths[path] - len(kept)) for path, kept in KEPT.items())
    assert saved == measure_complexity(plain, SIZE).macs - measure_complexity(smaller, SIZE).macs


def test_the_cheapest_loss_goes_first() -> None:
    importance = {"a": torch.arange(32.0), "b": torch.full((32,), 100.0), "h": torch.tensor([0.0, 1e9, 1e9, 1e9])}
    kinds: dict[str, Kind] = {"a": "channels", "b": "units", "h": "heads"}
    costs = {"a": 1.0, "b": 1.0, "h": 4.0}
    chosen = choose(costs, importance, kinds, 0.2)
    assert chosen.kept["h"] == (1, 2, 3)
    assert len(chosen.kept["a"]) % CHUNK == 0 and chosen.kept["a"][0] == 32 - len(chosen.kept["a"])
    assert "b" not in chosen.kept
    assert 0.2 <= chosen.macs < 0.2 + CHUNK / 80
    with pytest.raises(UsageError, match=r"--prune 0\.9 is more than this student can lose: 0\.7\d of its prunable"):
        choose(costs, importance, kinds, 0.9)


def test_nets_without_such_places_are_refused() -> None:
    with pytest.raises(UsageError, match="test_resnet has nothing that --prune knows"):
        prunable(student("test_resnet"))
    with pytest.raises(LoadError, match=r"cannot keep 9 at 'stages\.2\.1\.transformer\.0\.attn': it has 4 heads"):
        cut(student().backbone, {"stages.2.1.transformer.0.attn": range(9)})

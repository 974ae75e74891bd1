"""`--precision auto` over real conversions, and palettes for Core ML."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.export.attempt import Workshop
from edgekit.export.audit.audit import audit, check_precision
from edgekit.export.choice.auto import choose_precision
from edgekit.export.choice.candidates import ChoiceConfig
from edgekit.export.choice.table import COLUMNS, table_rows, title
from edgekit.export.coreml.convert import export_coreml, palettize_weights
from edgekit.export.deploy import DeployedPictures, DeployModel, TorchSession
from edgekit.export.exporters import Conversion, write_file
from edgekit.export.parity import Precision
from edgekit.export.precisions import CANDIDATES
from edgekit.export.runtimes import open_session
from edgekit.export.session import run_batched
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, student_preprocess
from tests.export.nets_for_tests import pictures

SIZE = 32
CLASSES = ("cat", "dog", "fish")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    torch.manual_seed(0)
    spec = StudentSpec("test_byobnet", 16, CLASSES, student_preprocess("test_byobnet", SIZE))
    model = DeployModel(Student(spec)).eval()
    images = pictures(40, SIZE, seed=2).numpy()
    expected = run_batched(TorchSession(model), images)
    return Workshop(Conversion(model, pictures(16, SIZE, seed=1).numpy(), tmp_path), (images, expected))


def test_every_candidate_is_made_measured_and_judged(workshop: Workshop) -> None:
    labels = workshop.comparison[1]["logits"].argmax(1)
    choice = choose_precision(workshop, "onnx", labels, ChoiceConfig(max_drop=10.0, rounds=15))
    assert {candidate.name for candidate in choice.candidates} == set(CANDIDATES["onnx"])
    assert sum(candidate.chosen for candidate in choice.candidates) <= 1
    for candidate in choice.candidates:
        measured = candidate.drop is not None and candidate.speedup is not None
        assert measured or candidate.reasons, f"{candidate.name} was dropped in silence"
    best = next((candidate for candidate in choice.candidates if candidate.chosen), None)
    if best is None:  # a machine under load can make all of them look slower; then all must say so
        assert all(candidate.reasons for candidate in choice.candidates) and choice.attempt.problems
    else:
        assert not best.reasons and choice.attempt.precision == best.name
        assert workshop.path(choice.attempt).is_file()
        record = json.loads(json.dumps(choice.attempt.choice))
        assert record["kept"] == choice.attempt.name and len(record["candidates"]) == len(choice.candidates)
    assert "40 validation pictures, at most 10 points" in title(choice)
    rows = table_rows(choice)
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert best is None or rows[0][-1] == "kept"


def test_nothing_good_enough_is_said_and_leaves_the_float_file(workshop: Workshop) -> None:
    """Labels that the float file gets right and a limit below zero drop: whatever there is, it loses too much."""
    labels = workshop.comparison[1]["logits"].argmax(1)
    choice = choose_precision(workshop, "onnx", labels, ChoiceConfig(max_drop=-1.0, rounds=6))
    assert choice.attempt.problems and "no candidate may be kept" in choice.attempt.problems[0]
    for candidate in choice.candidates:
        assert candidate.reasons and candidate.name in choice.attempt.problems[0]
    assert not workshop.make("onnx", "fp32").problems


class Wide(nn.Module):
    """Enough weights in one layer for a palette."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 48, 3, stride=2), nn.Conv2d(48, 64, 3)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map images (B, 3, H, W) to (B, 64)."""
        return (self.body(torch.relu(self.stem(images))).mean((2, 3)),)


class Narrow(DeployedPictures):
    """Several layers, and none with enough weights for a palette by itself."""

    rows, image_size, outputs = 1, SIZE, ("logits",)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [layer for width in (3, 44, 44) for layer in (nn.Conv2d(width, 44, 1), nn.ReLU())]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(44, 44))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to (B, 44)."""
        return (self.body(images),)


@pytest.mark.parametrize(("precision", "share"), [("palette8", 0.9), ("palette6", 0.6), ("palette4", 0.4)])
def test_a_narrow_net_gets_palettes_too(precision: Precision, share: float, tmp_path: Path) -> None:
    conversion = Conversion(Narrow().eval(), pictures(8, SIZE, seed=0).numpy(), tmp_path / "work")
    conversion.work.mkdir()
    size = {}
    for made in ("fp16", precision):
        package = tmp_path / f"{made}.mlpackage"
        write_file(conversion, "coreml", made, package)
        size[made] = (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert check_precision(audit(package), precision) == ()
    assert size[precision] < share * size["fp16"]


@pytest.mark.parametrize(("bits", "least_db"), [(6, 25.0), (4, 15.0)])
def test_palettes_are_smaller_and_compute_nearly_the_same(bits: int, least_db: float, tmp_path: Path) -> None:
    export_coreml(Wide().eval(), SIZE, tmp_path / "half.mlpackage", output_names=("logits",))
    palettize_weights(tmp_path / "half.mlpackage", tmp_path / "palette.mlpackage", bits)
    assert check_precision(audit(tmp_path / "palette.mlpackage"), "palette6" if bits == 6 else "palette4") == ()
    assert check_precision(audit(tmp_path / "palette.mlpackage"), "w8") != ()
    stored = {weights.dtype: weights for weights in audit(tmp_path / "palette.mlpackage").weights}
    assert stored[f"uint{bits}"].elements == 48 * 64 * 9
    images = pictures(4, SIZE, seed=3).numpy()
    want, have = (
        run_batched(open_session(tmp_path / f"{name}.mlpackage"), images)["logits"] for name in ("half", "palette")
    )
    assert 10 * np.log10(np.square(want).sum() / np.square(want - have).sum()) > least_db

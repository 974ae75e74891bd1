"""Data given to export and verify are cut as the run cut its own: nothing is judged on what it was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from edgekit.captions import load_captions, split_captions
from edgekit.cli.main import run as edgekit
from edgekit.data import load_dataset
from edgekit.errors import UsageError
from edgekit.export.clip.pairs import run_captions
from edgekit.export.config import ExportConfig
from edgekit.export.export_data import run_dataset
from edgekit.models.checkpoint import save_student
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, student_preprocess
from edgekit.terminal import Terminal

SEED, FRACTION = 7, 0.4
CLASSES = ("cat", "dog")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose settings say how its data were split."""
    folder = tmp_path / "run"
    folder.mkdir()
    spec = StudentSpec("test_byobnet", 16, CLASSES, student_preprocess("test_byobnet", 32))
    save_student(folder / "student.safetensors", Student(spec).eval())
    write_settings(folder, FRACTION)
    return folder


def write_settings(run: Path, fraction: float | None) -> None:
    settings = {"data": "/gone", "val_fraction": fraction, "recipe": {"fit": {"seed": SEED}}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for number in range(60):
        path = tmp_path / "flat" / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (4 * number, number, 255 - number)).save(path)
    return tmp_path / "flat"


def config(run: Path, data: Path, fraction: float | None = None) -> ExportConfig:
    return ExportConfig(run, run.parent / "out", ("onnx",), ("fp32",), data=data, val_fraction=fraction)


def test_an_unsplit_folder_is_cut_as_the_run_was(run: Path, flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = load_dataset(flat, val_fraction=FRACTION, seed=SEED)
    assert wanted.val != load_dataset(flat, val_fraction=FRACTION, seed=0).val
    for source in (run, run / "student.safetensors"):
        assert run_dataset(config(source, flat), Terminal(0)) == wanted
    other = run_dataset(config(run, flat, 0.2), Terminal(0))
    assert other == load_dataset(flat, val_fraction=0.2, seed=SEED)
    assert "warning" not in capsys.readouterr().err


def test_a_folder_that_comes_split_is_taken_as_it_is(run: Path, flat: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(flat, tmp_path / "split" / split)
    found = run_dataset(config(run, tmp_path / "split"), Terminal(0))
    assert len(found.train) == len(found.val) == 60


def test_a_bare_checkpoint_is_warned_about(run: Path, flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").unlink()
    assert run_dataset(config(run, flat, 0.3), Terminal(0)) == load_dataset(flat, val_fraction=0.3, seed=0)
    assert "does not say how its data were split" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match=r"is not split, and .* does not say which share"):
        run_dataset(config(run, flat), Terminal(0))


def test_a_run_whose_data_came_split_cannot_tell_a_share(run: Path, flat: Path) -> None:
    write_settings(run, None)
    with pytest.raises(UsageError, match="give pictures in train/ and val/ folders"):
        run_dataset(config(run, flat), Terminal(0))


def test_verify_takes_the_share_of_the_run(run: Path, flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = run.parent / "bundle"
    few = ("--calibration-images", "8", "--comparison-images", "8", "--format", "onnx", "--precision", "fp32", "-q")
    assert edgekit(["export", str(run), "--data", str(flat), "-o", str(bundle), *few]) == 0, capsys.readouterr().err
    assert edgekit(["verify", str(bundle), "--reference", str(run), "--data", str(flat)]) == 0
    held_out = len(load_dataset(flat, val_fraction=FRACTION, seed=SEED).val)
    assert f"over {held_out} pictures" in " ".join(capsys.readouterr().err.split())


def test_captions_are_cut_as_the_run_cut_them(run: Path, flat: Path) -> None:
    rows = [f"{path.relative_to(flat).as_posix()},a {path.parent.name}" for path in sorted(flat.rglob("*.png"))]
    captions = flat / "captions.csv"
    captions.write_text("\n".join(["image,caption", *rows]))
    found = run_captions(config(run, captions), Terminal(0))
    wanted = split_captions(load_captions(captions), FRACTION, SEED)
    assert found.fingerprint() == wanted.fingerprint()
    assert found.fingerprint() != split_captions(load_captions(captions), FRACTION, 0).fingerprint()
    captions.write_text(
        "\n".join(["image,caption,split", *(f"{row},{'val' if 'cat' in row else 'train'}" for row in rows)])
    )
    assert len(run_captions(config(run, captions), Terminal(0)).val.samples) == 30

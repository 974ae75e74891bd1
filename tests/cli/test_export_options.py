"""Options of export and verify: what is asked for is made, and what would change nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.cli.export import Kind, _config
from edgekit.cli.main import run as edgekit
from edgekit.errors import UsageError


def asked(kind: Kind = "student", **changes: object) -> tuple[str, ...]:
    """Return the precisions that options ask for, with auto."""
    options: dict[str, Any] = dict.fromkeys(("precisions", "outputs", "data", "val_fraction"))
    options |= {"run": "run", "output": "out", "formats": "all", "int8": False, "max_drop": 1.0, "seed": 0}
    options |= {"calibration_images": 8, "comparison_images": 8, "dynamic_batch": False, **changes}
    found = _config(options, kind)
    return (*found.precisions, *(("auto",) if found.auto else ()))


def test_int8_comes_beside_what_is_named() -> None:
    assert asked(int8=True, precisions="fp32,fp16") == ("fp32", "fp16", "auto")
    assert asked(int8=True) == ("auto",)
    assert asked("text", int8=True, precisions="fp32") == ("fp32", "int8")
    assert asked("clip", int8=True) == ("int8",)
    assert asked(int8=True, precisions="all") == ("fp32", "fp16", "int8", "auto")


def test_what_is_not_named_is_what_the_formats_can_have() -> None:
    assert asked() == ("fp32", "int8")
    assert asked(formats="saved_model") == ("fp32",)
    assert asked(formats="onnx,saved_model") == ("fp32",)


@pytest.mark.parametrize("precision", ["all", "int8", "fp32,all"])
def test_what_a_format_cannot_have_is_refused_at_once(precision: str) -> None:
    with pytest.raises(UsageError, match="saved_model files cannot be"):
        asked(formats="onnx,saved_model", precisions=precision)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "--val-fraction", "0.2"), "--val-fraction is for --data"),
        (("verify", "--data", "."), "--data is for --reference"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    command, *options = arguments
    output = ["-o", str(tmp_path / "out")] if command == "export" else []
    assert edgekit([command, str(tmp_path), *options, *output]) == 2
    assert said in capsys.readouterr().err


def test_texts_are_not_held_out_by_export() -> None:
    with pytest.raises(UsageError, match="is for pictures"):
        asked("text", val_fraction=0.1, data=Path("texts.tsv"))

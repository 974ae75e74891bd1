"""Which files of a bundle a search runs."""

from __future__ import annotations

from pathlib import Path

from edgekit.export.runtimes import KNOWN, SUFFIX_OF
from edgekit.export.search.model import towers_of
from tests.export.manifests_for_tests import PICTURES, RECORD, TEXTS, write_manifest


def test_a_student_that_is_a_saved_model_too_is_searched_by_its_other_files(tmp_path: Path) -> None:
    records = [{**RECORD, "path": f"model.fp32{SUFFIX_OF[form]}", "format": form} for form in reversed(KNOWN)]
    write_manifest(tmp_path / "student", PICTURES, files=records)
    write_manifest(tmp_path / "text", TEXTS)
    image, text = towers_of((tmp_path / "text", tmp_path / "student"))
    assert (image.record.path, text.record.path) == ("model.fp32.onnx", "model.fp32.onnx")
    write_manifest(tmp_path / "student", PICTURES, files=records[:1])
    assert towers_of((tmp_path / "student", tmp_path / "text"))[0].record.path == "model.fp32.savedmodel"

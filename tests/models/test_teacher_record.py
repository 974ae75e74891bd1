"""What the teacher said, kept in the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import LoadError
from edgekit.models.teacher_record import TEACHER_FILE, TeacherRecord, read_record


def record() -> TeacherRecord:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    weight, bias = rng.normal(size=(3, 6)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    return TeacherRecord(("a.png", "dir/b.png", "ü.png", "d.png"), rows, weight, bias)


def test_a_record_comes_back_with_its_rows_in_half_precision(tmp_path: Path) -> None:
    kept = record()
    kept.save(tmp_path)
    read = read_record(tmp_path)
    assert read is not None
    assert read.keys == kept.keys
    assert np.abs(read.embeddings - kept.embeddings).max() < 5e-4
    assert (read.weight == kept.weight).all()
    assert (read.bias == kept.bias).all()


def test_pictures_are_selected_by_name_or_not_at_all() -> None:
    kept = record()
    selected = kept.select(["d.png", "a.png"])
    assert selected is not None
    assert (selected[0] == kept.embeddings[[3, 0]]).all()
    assert np.allclose(selected[1][1], kept.weight @ kept.embeddings[0] + kept.bias, atol=1e-6)
    assert kept.select(["a.png", "new.png"]) is None


def test_no_record_is_none_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    record().save(tmp_path)
    whole = (tmp_path / TEACHER_FILE).read_bytes()
    for content in (b"", b"x", whole[:100], whole[: len(whole) // 2], whole[:300] + bytes(80) + whole[380:]):
        (tmp_path / TEACHER_FILE).write_bytes(content)
        with pytest.raises(LoadError, match=r"teacher\.npz cannot be read"):
            read_record(tmp_path)
    np.savez(tmp_path / TEACHER_FILE, keys=np.array([object()]))
    with pytest.raises(LoadError):
        read_record(tmp_path)

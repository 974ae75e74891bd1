"""Teacher stores that are damaged, foreign or lying, and pictures that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekit.compress.store.reader import TeacherStore
from edgekit.compress.store.teach import teach
from edgekit.data import Sample
from edgekit.errors import LoadError
from tests.teacher_stores_for_tests import (
    CountingTeacher,
    contents,
    draw_samples,
    planned,
    rows_of,
    taught,
)

DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"x" * 500,
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return draw_samples(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_and_only_its_pictures_are_taught_again(
    samples: list[Sample], tmp_path: Path, damage: str
) -> None:
    taught(samples, tmp_path / "store")
    before = contents(tmp_path / "store")
    shard = tmp_path / "store" / "train-00001.safetensors"
    shard.write_bytes(DAMAGE[damage](before[shard.name]))
    with pytest.raises(LoadError, match="Delete this file") as caught:
        rows_of(TeacherStore(tmp_path / "store"), samples[:96], 0)
    assert str(shard) in str(caught.value) and "\n" not in str(caught.value)
    shard.unlink()
    with pytest.raises(LoadError, match="No such file"):
        TeacherStore(tmp_path / "store")
    assert taught(samples, tmp_path / "store").pictures == 32
    assert {name: content for name, content in contents(tmp_path / "store").items() if "json" not in name} == {
        name: content for name, content in before.items() if "json" not in name
    }


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "something else"},
        {"schema_version": 99},
        {"shards": [{"file": "../../etc/passwd", "split": "train", "count": 1, "size_bytes": 1, "sha256": ""}]},
        {"shards": "no list"},
        {"key": {}},
        {"embed_dim": None},
    ],
)
def test_a_manifest_that_cannot_be_ours_is_refused(
    samples: list[Sample], tmp_path: Path, change: dict[str, object]
) -> None:
    taught(samples[:4], tmp_path / "store")
    path = tmp_path / "store" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(LoadError, match="not the manifest of a teacher store") as caught:
        TeacherStore(tmp_path / "store")
    assert "\n" not in str(caught.value)


def test_a_shard_whose_header_lies_reads_nothing_outside(samples: list[Sample], tmp_path: Path) -> None:
    """The manifest vouches for it, so only the checks of the header itself are left."""
    import hashlib

    taught(samples[:4], tmp_path / "store")
    manifest_path = tmp_path / "store" / "manifest.json"
    for entry in ({"data_offsets": [0, 1 << 40]}, {"shape": [-4, 3, 12]}, {"dtype": "F64"}, {"shape": [1 << 40]}):
        header = {"embeddings": {"dtype": "F16", "shape": [4, 3, 12], "data_offsets": [0, 288], **entry}}
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(288)
        values = json.loads(manifest_path.read_text())
        shard = values["shards"][0] | {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (tmp_path / "store" / shard["file"]).write_bytes(content)
        manifest_path.write_text(json.dumps({**values, "shards": [shard]}))
        with pytest.raises(LoadError, match="Delete this file"):
            TeacherStore(tmp_path / "store").places("train", np.zeros(1, np.uint64))


def test_a_folder_of_other_things_is_left_alone(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(Exception, match="exists already"):
        taught(samples, tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"x"}


def test_broken_pictures_are_named_and_the_others_taught(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    bad = [
        Sample("broken.png", tmp_path / "broken.png", 0),
        Sample("missing.png", tmp_path / "missing.png", 0),
    ]
    train = [*samples[:10], *bad, *samples[10:50]]
    done = teach(CountingTeacher(), planned(train, samples[96:]), tmp_path / "store")
    assert set(done.broken) == {"broken.png", "missing.png"}
    assert done.pictures == 54
    again = teach(CountingTeacher(), planned(train, samples[96:]), tmp_path / "store")
    assert (again.pictures, set(again.broken)) == (0, {"broken.png", "missing.png"})

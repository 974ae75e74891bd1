"""`edgekit eval retrieval`: embeddings of any origin against a naive double loop, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.cli.main import run

Capture = pytest.CaptureFixture[str]


def judged(capsys: Capture, *args: object) -> dict[str, Any]:
    assert run(["eval", "retrieval", *map(str, args), "-q", "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def refused(capsys: Capture, code: int, *args: object) -> str:
    assert run(["eval", "retrieval", *map(str, args)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def naive_recall(queries: NDArray[np.float32], gallery: NDArray[np.float32], right: list[set[int]], k: int) -> float:
    """Return R@k by two plain loops: a hit where fewer than k wrong items score at least as the best right one."""
    hits = 0
    for query, own in zip(queries, right, strict=True):
        scores = [float(np.dot(query.astype(np.float64), item.astype(np.float64))) for item in gallery]
        best = max(scores[at] for at in own)
        hits += sum(score >= best for at, score in enumerate(scores) if at not in own) < k
    return hits / len(queries)


@pytest.mark.realdata
def test_real_clip_embeddings_give_what_a_naive_double_loop_gives(real_data: Path, capsys: Capture) -> None:
    folder = real_data / "flickr8k_1k" / "clip_vitb32_100x5"
    images, texts = np.load(folder / "image_embeddings.npy"), np.load(folder / "text_embeddings.npy")
    files = json.loads((folder / "files.json").read_text(encoding="utf-8"))
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    owner = [files.index(caption["file"]) for caption in captions]
    own_texts = [{at for at, image in enumerate(owner) if image == row} for row in range(len(files))]
    found = judged(capsys, folder)
    for k, to_text, to_image in ((1, 0.93, 0.832), (5, 1.0, 0.99), (10, 1.0, 0.998)):
        assert found["image_to_text"]["recall"][str(k)]["value"] == pytest.approx(to_text)
        assert found["text_to_image"]["recall"][str(k)]["value"] == pytest.approx(to_image)
        assert naive_recall(images, texts, own_texts, k) == pytest.approx(to_text)
        assert naive_recall(texts, images, [{image} for image in owner], k) == pytest.approx(to_image)
    assert found["protocol"].startswith("100 images, 500 captions (5 per image)")
    assert found["image_to_text"]["median_rank"] == 1


def write(folder: Path, images: NDArray[np.float32], texts: NDArray[np.float32], **more: object) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "image_embeddings.npy", images)
    np.save(folder / "text_embeddings.npy", texts)
    for name, content in more.items():
        if isinstance(content, np.ndarray):
            np.save(folder / f"{name}.npy", content)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


EYE = np.eye(3, dtype=np.float32)


def test_pairs_by_order_by_rows_and_by_names(tmp_path: Path, capsys: Capture) -> None:
    twice = np.repeat(EYE, 2, axis=0)
    assert judged(capsys, write(tmp_path / "order", EYE, twice))["text_to_image"]["recall"]["1"]["value"] == 1
    rows = write(tmp_path / "rows", EYE, EYE[[2, 0, 1]], image_of_text=np.array([2, 0, 1]))
    assert judged(capsys, rows)["image_to_text"]["recall"]["1"]["value"] == 1
    captions = [{"file": name, "caption": "x"} for name in ("c", "a", "b")]
    names = write(tmp_path / "names", EYE, EYE[[2, 0, 1]], files=["a", "b", "c"], captions=captions)
    assert judged(capsys, names)["image_to_text"]["recall"]["1"]["value"] == 1


def test_one_point_for_everything_finds_nothing(tmp_path: Path, capsys: Capture) -> None:
    ones = np.ones((20, 4), np.float32)
    found = judged(capsys, write(tmp_path / "ones", ones, ones))
    assert [found["image_to_text"]["recall"][k]["value"] for k in ("1", "5", "10")] == [0, 0, 0]
    assert found["image_to_text"]["median_rank"] == 20


def test_what_does_not_fit_is_refused_in_a_line(tmp_path: Path, capsys: Capture) -> None:
    assert "image_embeddings.npy is not there. Expected" in refused(capsys, 3, tmp_path)
    assert "no folder of embeddings; for a CLIP, say with --data" in refused(capsys, 2, tmp_path / "none")
    odd = write(tmp_path / "odd", EYE, np.ones((4, 3), np.float32))
    assert "does not say which of 4 texts belong to which of 3 images" in refused(capsys, 2, odd)
    flat = write(tmp_path / "flat", EYE[0], EYE)
    assert "holds float32 (3,)" in refused(capsys, 2, flat)
    unknown = write(tmp_path / "unknown", EYE, EYE, files=["a", "b", "c"], captions=[{"file": "z"}] * 3)
    assert "1 files are not in files.json, the first is 'z'" in refused(capsys, 2, unknown)
    wide = write(tmp_path / "wide", EYE, np.ones((3, 5), np.float32))
    assert "differ in dimension: 3 and 5" in refused(capsys, 1, wide)
    (tmp_path / "flat" / "image_embeddings.npy").write_bytes(b"\x93NUMPY")
    assert "is not an array that can be read" in refused(capsys, 3, flat)
    nan = write(tmp_path / "nan", EYE * np.nan, EYE)
    assert "NaN" in refused(capsys, 1, nan)

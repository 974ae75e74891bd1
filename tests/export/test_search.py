"""Search by a sentence: what PyTorch would find, kept up to date, fast at 10,000 pictures, clear where it cannot."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned_for_tests import train_small_clip
from PIL import Image

from edgekit.atomic import WriteError
from edgekit.cli.main import run as edgekit
from edgekit.errors import DataError, LoadError, UsageError
from edgekit.export.clip.export import export_clip_run
from edgekit.export.config import ExportConfig
from edgekit.export.manifest import MANIFEST_FILE
from edgekit.export.search.index import PictureIndex, list_pictures, read_index, write_index
from edgekit.export.search.search import INDEX_FILE, SearchConfig, SearchResult, search
from edgekit.models.clip import load_clip
from edgekit.preprocess import load_batch
from edgekit.terminal import Terminal

QUIET = Terminal(-1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    export_clip_run(ExportConfig(run, out, ("onnx",), ("fp32", "int8"), outputs=("embedding",)), QUIET)
    return out


@pytest.fixture
def pictures(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.parent / "drawings" / "val", tmp_path / "pictures"))


def find(pictures: Path, bundle: Path, query: str = "a red star", **changes: object) -> SearchResult:
    return search(SearchConfig(pictures, query, (bundle,), **changes), QUIET)  # type: ignore[arg-type]


def test_it_finds_what_a_plain_loop_over_pytorch_finds(run: Path, bundle: Path, pictures: Path) -> None:
    clip, tokenizer = load_clip(run)
    keys = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.jpg"))
    with torch.no_grad():
        rows = clip.encode_image(torch.from_numpy(load_batch([pictures / key for key in keys], clip.spec.preprocess)))
        for query in ("a red star", "two triangles on blue paper"):
            (row,) = clip.encode_text(torch.from_numpy(tokenizer([query])))
            scores = {
                key: float(sum(a * b for a, b in zip(r, row, strict=True))) for key, r in zip(keys, rows, strict=True)
            }
            result = find(pictures, bundle, query, count=5)
            wanted = sorted(keys, key=lambda key: -scores[key])[:5]
            assert [key for key, _ in result.hits] == wanted
            np.testing.assert_allclose([cosine for _, cosine in result.hits], [scores[k] for k in wanted], atol=1e-5)
    assert result.pictures == len(keys) and result.embedded == 0  # the second query found all of them indexed


def test_only_what_is_new_or_changed_is_embedded(bundle: Path, pictures: Path) -> None:
    keys = list(list_pictures(pictures))
    assert find(pictures, bundle).embedded == len(keys) == 24
    stamp = (pictures / INDEX_FILE).stat().st_mtime_ns
    assert find(pictures, bundle).embedded == 0
    assert (pictures / INDEX_FILE).stat().st_mtime_ns == stamp  # nothing changed, nothing written
    Image.new("RGB", (50, 40), "red").save(pictures / "new.png")
    Image.new("RGB", (50, 40), "blue").save(pictures / keys[0])
    (pictures / keys[1]).unlink()
    result = find(pictures, bundle, count=100)
    assert (result.embedded, result.pictures) == (2, 24)
    whole = find(pictures, bundle, count=100, rebuild=True)
    assert whole.embedded == 24 and [key for key, _ in whole.hits] == [key for key, _ in result.hits]
    shutil.rmtree(pictures / Path(keys[2]).parent)
    assert find(pictures, bundle).pictures < 24


def test_ten_thousand_pictures_take_a_moment(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(10_000, 512)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    keys = tuple(f"{n % 100}/{n}.jpg" for n in range(10_000))
    write_index(tmp_path / "index.npz", PictureIndex("m", keys, tuple((n, n) for n in range(10_000)), rows))
    query = rows[1234] + 0.1 * rows[77]
    start = time.process_time()
    index = read_index(tmp_path / "index.npz", "m", 512)
    assert index.kept(dict(zip(keys, index.stamps, strict=True))) is index
    best = index.best(query / np.linalg.norm(query), 10)
    seconds = time.process_time() - start
    assert best[0][0] == keys[1234] and len(best) == 10
    assert [key for key, _ in best] == [keys[row] for row in np.argsort(-(rows @ query))[:10]]
    assert seconds < 1.0


def test_equal_pictures_come_in_the_order_of_their_names() -> None:
    rows = np.tile(np.array([[1.0, 0.0]], np.float32), (6, 1))
    index = PictureIndex("m", tuple("fbdace"), ((0, 0),) * 6, rows)
    assert [key for key, _ in index.best(rows[0], 3)] == ["a", "b", "c"]
    assert PictureIndex.empty("m", 2).best(rows[0], 3) == []


def test_broken_pictures_are_skipped_with_their_reasons(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "cut.jpg").write_bytes(next(pictures.rglob("*.jpg")).read_bytes()[:200])
    (pictures / "empty.png").touch()
    (pictures / "note.jpg").write_text("not a picture")
    (pictures / "\x1b[31mred.png").write_bytes((pictures / "note.jpg").read_bytes())
    (pictures / ".hidden.jpg").touch()
    (pictures / "gone.jpg").symlink_to(pictures / "nowhere.jpg")
    Image.new("RGB", (50, 40), "red").save(os.fsencode(pictures) + b"/latin-\xe9.png", "png")
    assert edgekit(["search", str(pictures), "red", "--model", str(bundle), "-k", "100", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found["broken"]) == {"cut.jpg", "empty.png", "note.jpg", "\x1b[31mred.png"}
    assert found["pictures"] == found["embedded"] == 25 and "4 of 29 pictures were skipped" in captured.err
    assert "\x1b[31mred" not in captured.err
    assert any(hit["key"] == "latin-\udce9.png" for hit in found["hits"])


def test_a_distilled_student_searches_with_its_teachers_text_tower(
    bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    student = Path(shutil.copytree(bundle / "image", tmp_path / "student"))
    manifest = json.loads((student / MANIFEST_FILE).read_text())
    text = json.loads((bundle / "text" / MANIFEST_FILE).read_text())
    manifest["training"]["checkpoint_sha256"] = "0" * 64
    manifest["teacher"] = {"fingerprint": text["training"]["fingerprint"]}
    (student / MANIFEST_FILE).write_text(json.dumps(manifest))
    pair = (student / "model.int8.onnx", bundle / "text" / "model.int8.onnx")
    assert search(SearchConfig(pictures, "a star", pair), QUIET).embedded == 24
    manifest["teacher"]["fingerprint"] = "another"
    (student / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(LoadError, match="not of one CLIP, nor was the image one distilled"):
        search(SearchConfig(pictures, "a star", pair), QUIET)
    for paths, said in (
        ((bundle / "text", bundle / "text"), "0 files that take pictures and 2 that take texts"),
        ((bundle / "image",), "needs the bundle of a CLIP, or twice"),
        ((bundle, bundle / "text"), "holds both towers"),
    ):
        with pytest.raises(UsageError, match=said):
            search(SearchConfig(pictures, "a star", paths), QUIET)


def test_an_index_of_another_model_is_refused(bundle: Path, pictures: Path) -> None:
    find(pictures, bundle)
    small = (bundle / "image" / "model.int8.onnx", bundle / "text" / "model.fp32.onnx")
    with pytest.raises(LoadError, match=r"was made by another model \(.*--rebuild"):
        search(SearchConfig(pictures, "a star", small), QUIET)
    assert search(SearchConfig(pictures, "a star", small, rebuild=True), QUIET).embedded == 24


REFUSED: dict[str, tuple[Callable[[Path, Path], object], type[Exception], str]] = {
    "no pictures": (
        lambda p, b: find((p.parent / "empty", (p.parent / "empty").mkdir())[0], b),
        DataError,
        "no pictures",
    ),
    "no folder": (lambda p, b: find(p / "x", b), DataError, "is not a folder"),
    "empty query": (lambda p, b: find(p, b, "  "), UsageError, "the query is empty"),
    "damaged index": (
        lambda p, b: ((p / INDEX_FILE).write_bytes(b"PK"), find(p, b)),
        LoadError,
        "no index of pictures",
    ),
    "no model": (lambda p, b: search(SearchConfig(p, "a", (b / "x", b / "text")), QUIET), LoadError, "is not there"),
    "index on a folder": (lambda p, b: find(p, b, index=p.parent), LoadError, "no index of pictures"),
    "unwritable index": (lambda p, b: find(p, b, index=Path("/proc/index.npz")), WriteError, "cannot write"),
}


@pytest.mark.parametrize(("act", "error", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_done_is_said(
    bundle: Path, pictures: Path, act: Callable[[Path, Path], object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        act(pictures, bundle)


def test_only_broken_pictures_are_nothing_to_search(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no")
    with pytest.raises(DataError, match="none of the 1 pictures"):
        find(tmp_path, bundle)


def test_a_swapped_file_is_not_run(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    shutil.copy(copy / "image" / "model.int8.onnx", copy / "image" / "model.fp32.onnx")
    with pytest.raises(LoadError, match="its sha256 differs"):
        find(pictures, copy)


def test_what_was_embedded_before_a_stop_is_kept(bundle: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgekit.export.search.search as module

    real, calls = module._read, iter(range(100))
    monkeypatch.setattr(module, "_CHUNK", 8)

    def stopped(*given: object) -> object:
        if next(calls) == 20:
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_read", stopped)
    with pytest.raises(KeyboardInterrupt):
        find(pictures, bundle)
    monkeypatch.setattr(module, "_read", real)
    assert find(pictures, bundle).embedded == 8  # 16 of 24 were kept


def test_a_folder_that_cannot_be_written_is_searched_all_the_same(
    bundle: Path, open_tmp: Path, pictures: Path, without_root: Callable[[], object]
) -> None:
    folder = Path(shutil.copytree(pictures, open_tmp / "pictures"))
    models = Path(shutil.copytree(bundle, open_tmp / "bundle"))
    folder.chmod(0o555)
    with without_root():  # type: ignore[attr-defined]
        result = find(folder, models)
    assert result.index is None and len(result.hits) == 10

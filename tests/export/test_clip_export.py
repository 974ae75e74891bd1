"""A CLIP in all formats: two towers with their tokenizer, proven, verified without torch; what is swapped is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioned_for_tests import train_small_clip

from edgekit.captions import load_captions, split_captions
from edgekit.cli.main import run as edgekit
from edgekit.errors import EdgekitError, LoadError, UsageError, VerificationError
from edgekit.export.calibration.statistics import Histograms
from edgekit.export.clip.bundle import CLIP_RECORD, read_clip_record
from edgekit.export.clip.deploy import CaptionTower, ImageTower
from edgekit.export.clip.export import export_clip_run
from edgekit.export.config import ExportConfig
from edgekit.export.manifest import MANIFEST_FILE, read_any_manifest, sha256_of
from edgekit.export.runtimes import open_session
from edgekit.export.session import run_batched
from edgekit.export.text.golden import bundled_tokenizer
from edgekit.export.text.session import open_text_session, run_texts
from edgekit.export.verify.clip import verify_clip
from edgekit.models.caption_tokenizer import CaptionTokenizer
from edgekit.models.clip import Clip, create_clip, load_clip, save_clip
from edgekit.models.clip_spec import ClipSpec
from edgekit.models.text_tokenizer import text_tokenizer_from_dict
from edgekit.models.tokenizer import CharacterTokenizer
from edgekit.preprocess import Preprocess, load_batch
from edgekit.terminal import Terminal
from tests.bare_environment_for_tests import BareEnvironment
from tests.tolerances import FP32_EXPORT

QUIET = Terminal(-1)
FORMATS = ("onnx", "coreml", "tflite")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small_clip(tmp_path_factory.mktemp("clip"))


def export(run: Path, out: Path, **changes: object) -> list[Any]:
    settings = {"formats": FORMATS, "precisions": ("fp32", "int8"), "outputs": ("embedding",), **changes}
    return export_clip_run(ExportConfig(run, out, **settings), QUIET)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    attempts = export(run, folder)
    assert [attempt.problems for attempt in attempts] == [()] * 12
    assert {attempt.name.partition("/")[0] for attempt in attempts} == {"image", "text"}
    return folder


def test_every_file_embeds_what_pytorch_embeds(run: Path, bundle: Path) -> None:
    clip, tokenizer = load_clip(run)
    source = load_captions(run.parent / "drawings" / "captions.csv")
    side = split_captions(source, 0.25, 0).val
    images = load_batch([sample.path for sample in side.samples], clip.spec.preprocess)
    texts = [texts[0] for texts in side.captions] + ["", "ein Bär 🐻", "a red star " * 40]
    ids = tokenizer(texts)
    with torch.no_grad():
        expected = {
            "image": clip.encode_image(torch.from_numpy(images)).numpy(),
            "text": clip.encode_text(torch.from_numpy(ids)).numpy(),
        }
    for tower, rows in expected.items():
        for record in read_any_manifest(bundle / tower).files:
            path = bundle / tower / record.path
            found = (
                run_batched(open_session(path), images)
                if tower == "image"
                else run_texts(open_text_session(path), ids.astype(np.int32))
            )
            assert set(found) == {"embedding"}
            limit = FP32_EXPORT if record.precision == "fp32" else 0.15
            assert np.abs(found["embedding"] - rows).max() < limit, record.path
            np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=5e-3)
    record = read_clip_record(bundle)
    assert record.scale == pytest.approx(float(clip.scale().detach())) and record.bias is None
    hits = (expected["image"] @ expected["text"][: len(images)].T).argmax(axis=1) == np.arange(len(images))
    assert record.retrieval["pytorch"]["image_to_text_r1"] == pytest.approx(hits.mean())
    assert record.retrieval["model.fp32.onnx"] == record.retrieval["pytorch"] and len(record.retrieval) == 7


def test_the_image_tower_keeps_the_statistics_of_its_ranges(bundle: Path) -> None:
    manifest = read_any_manifest(bundle / "image")
    assert set(manifest.statistics) == {"calibration.onnx.npz", "calibration.tflite.npz"}
    for name, digest in manifest.statistics.items():
        assert sha256_of(bundle / "image" / name) == digest
        assert Histograms.load(bundle / "image" / name).images == len(manifest.calibration)


def test_each_tower_carries_its_own_weights_alone(bundle: Path, run: Path) -> None:
    clip, _ = load_clip(run)
    total = sum(p.numel() for p in clip.parameters()) - 1  # the temperature is in neither
    sizes = [read_any_manifest(bundle / name).model["parameters"] - 1 for name in ("image", "text")]
    assert sum(sizes) == total
    for name, size in zip(("image", "text"), sizes, strict=True):
        stored = (bundle / name / "model.fp32.onnx").stat().st_size
        assert stored < 4 * size + 150_000


def test_a_bundle_verifies_and_searches_without_torch(bundle: Path, run: Path, tmp_path: Path) -> None:
    environment = BareEnvironment(tmp_path / "venv", ["onnx", "onnxruntime", "ai-edge-litert"])
    copy = copied(bundle, tmp_path / "copy")
    done = environment.edgekit("verify", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    index = tmp_path / "index.npz"
    drawings = run.parent / "drawings"
    done = environment.edgekit("search", drawings, "a star", "--model", copy, "--index", index, "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["embedded"] == 88


def test_the_command_recognises_a_clip(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    args = ["export", str(run), "-o", str(out), "--format", "onnx", "--precision", "fp32", "--json", "-q"]
    assert edgekit([*args, "--dynamic-batch"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["name"] for file in files] == ["image/model.fp32.onnx", "text/model.fp32.onnx"]
    assert [file["inputs"][0]["shape"] for file in files] == [["batch", 3, 32, 32], ["batch", "length"]]
    assert edgekit(["verify", str(out), "-q"]) == 0
    assert edgekit(["verify", str(out / "text" / "model.fp32.onnx"), "-q"]) == 0
    card = (out / "MODEL_CARD.md").read_text()
    assert "48 training pictures with 48 captions, 16 held out" in card and "| text/model.fp32.onnx |" in card
    for wrong, said in ((("--precision", "auto"), "needs logits"), (("--outputs", "logits"), "leave --outputs out")):
        assert edgekit(["export", str(run), "-o", str(tmp_path / "no"), "-q", *wrong]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UsageError, match="a CLIP is exported as fp32, fp16, int8"):
        export(run, tmp_path / "no", precisions=("mixed",))


def copied(bundle: Path, target: Path) -> Path:
    """Copy a bundle with its ONNX files in fp32 alone, which open the fastest."""
    shutil.copytree(bundle, target)
    for name in ("image", "text"):
        path = target / name / MANIFEST_FILE
        manifest = json.loads(path.read_text())
        manifest["files"] = [record for record in manifest["files"] if record["path"] == "model.fp32.onnx"]
        path.write_text(json.dumps(manifest))
    vouch(target)
    return target


def vouch(bundle: Path) -> None:
    """Make the record agree with the manifests that are there."""
    record = json.loads((bundle / CLIP_RECORD).read_text())
    record["towers"] = {
        name: {"manifest_sha256": sha256_of(bundle / name / MANIFEST_FILE)} for name in record["towers"]
    }
    (bundle / CLIP_RECORD).write_text(json.dumps(record))


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _swap(folder: Path) -> None:
    (folder / "image").rename(folder / "kept")
    (folder / "text").rename(folder / "image")
    (folder / "kept").rename(folder / "text")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another manifest": (lambda f: _edit(f / "text" / MANIFEST_FILE, created="today"), "is not the one that was"),
    "no text tower": (lambda f: shutil.rmtree(f / "text"), "is no bundle"),
    "towers swapped": (_swap, "its files take something else"),
    "another dimension": (lambda f: _edit(f / CLIP_RECORD, embed_dim=64), "32 dimensions"),
    "another file": (lambda f: (f / "image" / "model.fp32.onnx").write_bytes(b"no"), "differs"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_seen(bundle: Path, tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    folder = copied(bundle, tmp_path / "copy")
    damage(folder)
    failed = [check for check in verify_clip(folder) if not check.passed]
    assert failed and any(said in check.detail for check in failed), failed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not a record"),
        (b"\xff", "is not a record"),
        (b"{}", "Field required"),
        (b"x" * 2**21, "more than any"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / CLIP_RECORD).write_bytes(content)
    with pytest.raises(LoadError, match=said):
        verify_clip(tmp_path)


def test_a_file_that_does_not_compute_the_same_does_not_pass(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgekit.export.attempt as module

    real = module.run_batched
    monkeypatch.setattr(module, "run_batched", lambda *given: {k: v[::-1] for k, v in real(*given).items()})
    with pytest.raises(VerificationError, match="no file of the image tower passed"):
        export(run, tmp_path / "wrong", formats=("onnx",), precisions=("fp32",))
    assert not (tmp_path / "wrong").exists()


def test_a_run_whose_pictures_are_gone_asks_for_others(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "clip.safetensors"
    shutil.copy(run / bare.name, bare)
    one = {"formats": ("onnx",), "precisions": ("fp32",)}
    with pytest.raises(UsageError, match="does not say what it was trained on; pass --data"):
        export(bare, tmp_path / "b", **one)
    attempts = export(bare, tmp_path / "b", **one, data=run.parent / "drawings", val_fraction=0.25)
    assert [attempt.problems for attempt in attempts] == [(), ()]
    assert "bare checkpoint" in (tmp_path / "b" / "MODEL_CARD.md").read_text()


def test_a_caption_tokenizer_comes_back_and_refuses_the_impossible(bundle: Path, run: Path) -> None:
    manifest = read_any_manifest(bundle / "text")
    read: Any = bundled_tokenizer(bundle / "text", manifest)  # type: ignore[arg-type]
    _, tokenizer = load_clip(run)
    texts = ("", "A red STAR", "été ﬁsh ’", "x " * 99)
    encoded = read(texts)
    assert np.array_equal(encoded.ids, tokenizer(texts)) and encoded.ids.dtype == np.int32
    assert (encoded.truncated, encoded.empty) == (1, 1) and read.vocab_size == tokenizer.vocab_size
    characters = CaptionTokenizer(CharacterTokenizer(9))
    assert np.array_equal(text_tokenizer_from_dict(characters.to_dict())(["ab"]).ids, characters(["ab"]).ids)
    inner = characters.to_dict()["tokenizer"]
    for wrong in ({"context_length": 2}, {"context_length": 10**9}, {"context_length": "9"}, {"merges": "ab"}):
        with pytest.raises(LoadError):
            text_tokenizer_from_dict({"kind": "clip", "tokenizer": {**inner, **wrong}})
    with pytest.raises(LoadError, match="holds no mapping"):
        text_tokenizer_from_dict({"kind": "clip"})


FAMILIES = {
    "memory": ("patches", {"family": "memory", "memory_slots": 4, "patch_size": 8}),
    "open_clip": ("RN50", {"family": "open_clip"}),
    "sigmoid": ("test_resnet", {"loss": "sigmoid"}),
}


def family(name: str) -> Clip:
    """Return an untrained CLIP of a family, as small as it comes."""
    vision, changes = FAMILIES[name]
    tokenizer = CharacterTokenizer(16)
    size = 64 if name == "open_clip" else 32
    spec = ClipSpec(vision, 32, 32, 1, 4, 16, tokenizer.vocab_size, Preprocess(size, size))
    torch.manual_seed(0)
    return create_clip(replace(spec, **changes)).eval()


@pytest.mark.parametrize("name", ["memory", "sigmoid"])
def test_one_tower_computes_what_the_whole_did(name: str) -> None:
    clip = family(name)
    images, ids = (
        torch.rand(2, 3, 32, 32),
        torch.from_numpy(CharacterTokenizer(16)(["a dog", "the end of it all, now"])),
    )
    with torch.no_grad():
        assert torch.equal(ImageTower(clip)(images)[0], clip.encode_image(images))
        assert torch.equal(CaptionTower(clip)(ids.int())[0], clip.encode_text(ids))
    assert sum(p.numel() for p in clip.only("image").parameters()) < sum(p.numel() for p in clip.parameters())


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_go_to_all_formats(run: Path, tmp_path: Path, name: str) -> None:
    save_clip(tmp_path / "clip.safetensors", family(name), CharacterTokenizer(16))
    data = run.parent / "drawings"
    attempts = export(tmp_path / "clip.safetensors", tmp_path / "b", data=data, precisions=("fp32",), val_fraction=0.25)
    assert [(attempt.name, attempt.problems) for attempt in attempts if attempt.problems] == []
    assert all(check.passed for check in verify_clip(tmp_path / "b"))
    if name == "sigmoid":
        assert read_clip_record(tmp_path / "b").bias == pytest.approx(-10)


def test_a_folder_without_a_record_is_no_bundle_of_a_clip(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"clip\.json cannot be read"):
        read_clip_record(tmp_path)

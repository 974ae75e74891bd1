"""Text classifiers in all formats: proven, verified without torch, of any length in ONNX; damage and swaps are seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_for_tests import write_encoder
from texts_for_tests import reviews, write_reviews

from edgekit.compress.text.recipe import load_text_recipe
from edgekit.compress.text.train import TextConfig, train_text
from edgekit.errors import DataError, EdgekitError, LoadError, UsageError, VerificationError
from edgekit.export.config import ExportConfig
from edgekit.export.golden import INPUTS
from edgekit.export.manifest import MANIFEST_FILE, TextManifest, read_any_manifest, read_manifest, sha256_of
from edgekit.export.session import FloatArray
from edgekit.export.text.deploy import DeployText, TorchTextSession
from edgekit.export.text.export import export_text_run
from edgekit.export.text.golden import (
    TOKENIZER_FILE,
    TextGolden,
    bundled_tokenizer,
    keep_proof,
    read_text_golden,
    write_text_golden,
)
from edgekit.export.text.session import open_text_session, run_texts
from edgekit.export.verify.bundle import verify_bundle
from edgekit.export.verify.reference import verify_against
from edgekit.models.text_classifier import load_text_classifier, save_text_classifier
from edgekit.models.text_tokenizer import START, train_bpe
from edgekit.terminal import Terminal
from edgekit.text_files import TextFiles
from tests.bare_environment_for_tests import BareEnvironment
from tests.tolerances import FP32_EXPORT

QUIET = Terminal(-1)
FORMATS = ("onnx", "coreml", "tflite")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    train, val, test = (write_reviews(folder / f"{n}.tsv", count, n) for n, count in enumerate((160, 40, 80)))
    fit = {"epochs": 2, "batch_size": 16, "device": "cpu", "lr": 1e-2, "weight_decay": 0.01}
    changes = {
        "vocab_size": 600,
        "width": 32,
        "buckets": 256,
        "max_length": 16,
        "kernels": (1, 3),
        "layers": 1,
        "fit": fit,
    }
    train_text(TextConfig(TextFiles(train, val, test), folder / "run", load_text_recipe("text-small", changes)), QUIET)
    return folder / "run"


def export(run: Path, out: Path, **changes: object) -> list[Any]:
    settings: dict[str, object] = {"formats": FORMATS, "precisions": ("fp32", "int8"), **changes}
    return export_text_run(ExportConfig(run, out, **settings), QUIET)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    attempts = export(run, folder)
    assert [attempt.problems for attempt in attempts] == [()] * 6
    return folder


def test_every_file_says_what_pytorch_says(run: Path, bundle: Path) -> None:
    manifest = read_any_manifest(bundle)
    assert isinstance(manifest, TextManifest) and manifest.classes == ("bad", "good")
    model, tokenizer = load_text_classifier(run)
    ids = tokenizer([text for text, _ in reviews(50, 7)] + ["", "👩‍👩‍👧", "a " * 100]).ids
    expected = run_texts(TorchTextSession(DeployText(model)), ids)
    for record in manifest.files:
        found = run_texts(open_text_session(bundle / record.path), ids)
        limit = FP32_EXPORT if record.precision == "fp32" else 0.3
        assert np.abs(found["logits"] - expected["logits"]).max() < limit, record.path
        np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=5e-3)
        if record.precision == "fp32":
            assert record.parity["agreement"]["value"] == 1.0
    sizes = {(record.format, record.precision): record.size_bytes for record in manifest.files}
    for form in ("onnx", "coreml"):
        assert sizes[form, "int8"] < 0.5 * sizes[form, "fp32"]


def test_a_bundle_verifies(bundle: Path) -> None:
    checks = verify_bundle(bundle)
    assert all(check.passed for check in checks), [check for check in checks if not check.passed]
    named = {(check.subject, check.check) for check in checks}
    assert ("bundle", "tokenizer") in named and ("model.int8.tflite", "golden vectors") in named


def test_a_bundle_verifies_without_torch(bundle: Path, tmp_path: Path) -> None:
    environment = BareEnvironment(tmp_path / "venv", ["onnx", "onnxruntime", "ai-edge-litert"])
    for form in ("onnx", "tflite"):
        done = environment.edgekit("verify", bundle / f"model.fp32.{form}")
        assert done.returncode == 0, done.stderr


def test_files_are_compared_with_a_run(run: Path, bundle: Path, tmp_path: Path) -> None:
    checks = verify_against(bundle / "model.fp32.onnx", run, None, 1)
    assert [check.passed for check in checks] == [True] and "over 80 texts" in checks[0].detail
    data = write_reviews(tmp_path / "data.tsv", 60, 4)
    assert "over 60 texts" in verify_against(bundle / "model.int8.onnx", run, data, 1)[0].detail
    model, tokenizer = load_text_classifier(run)
    model.classifier.weight.data.neg_()
    save_text_classifier(tmp_path / "other.safetensors", model, tokenizer)
    (check,) = verify_against(bundle / "model.fp32.onnx", tmp_path / "other.safetensors", data, 1)
    assert not check.passed and "agreement" in check.detail


def copied(bundle: Path, target: Path) -> Path:
    """Copy a bundle with its ONNX file alone, which opens the fastest."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / MANIFEST_FILE).read_text())
    manifest["files"] = [record for record in manifest["files"] if record["path"] == "model.fp32.onnx"]
    (target / MANIFEST_FILE).write_text(json.dumps(manifest))
    return target


def vouch(folder: Path) -> None:
    """Make the manifest agree with the tokenizer that is there."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["input"]["tokenizer_sha256"] = sha256_of(folder / TOKENIZER_FILE)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def other_tokenizer(length: int) -> str:
    return json.dumps(train_bpe([text for text, _ in reviews(30, 99)], 300, length).to_dict())


SWAPS: dict[str, tuple[Callable[[Path], object], bool, str]] = {
    "not vouched for": (lambda path: path.write_text(other_tokenizer(16)), False, "its sha256 differs"),
    "of another model": (lambda path: path.write_text(other_tokenizer(16)), True, "its ids are not those"),
    "of another length": (
        lambda path: path.write_text(other_tokenizer(12)),
        True,
        "gives 12 ids per text, the files take 16",
    ),
    "damaged": (lambda path: path.write_text("{"), True, "not a text tokenizer"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe"), True, "is not UTF-8"),
    "missing": (lambda path: path.unlink(), False, "is missing"),
}


@pytest.mark.parametrize(("swap", "vouched", "said"), SWAPS.values(), ids=SWAPS.keys())
def test_another_tokenizer_is_seen(
    bundle: Path, tmp_path: Path, swap: Callable[[Path], object], vouched: bool, said: str
) -> None:
    folder = copied(bundle, tmp_path / "copy")
    swap(folder / TOKENIZER_FILE)
    if vouched:
        vouch(folder)
    failed = [check for check in verify_bundle(folder) if not check.passed]
    assert [check.check for check in failed] == ["tokenizer"] and said in failed[0].detail


def test_a_tokenizer_outside_of_the_bundle_is_not_read(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "copy")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["input"]["tokenizer"] = "../outside.json"
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    (tmp_path / "outside.json").write_text(other_tokenizer(16))
    with pytest.raises(VerificationError, match="lies outside"):
        read = read_any_manifest(folder)
        assert isinstance(read, TextManifest)
        bundled_tokenizer(folder, read)
    assert any("lies outside" in check.detail for check in verify_bundle(folder) if not check.passed)


def test_other_weights_are_seen_by_the_golden_texts(run: Path, bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "copy")
    model, tokenizer = load_text_classifier(run)
    model.classifier.weight.data.neg_()
    save_text_classifier(tmp_path / "other.safetensors", model, tokenizer)
    data = write_reviews(tmp_path / "data.tsv", 60, 4)
    export(tmp_path / "other.safetensors", tmp_path / "other", formats=("onnx",), precisions=("fp32",), data=data)
    shutil.copy(tmp_path / "other" / "model.fp32.onnx", folder)
    failed = {check.check for check in verify_bundle(folder) if not check.passed}
    assert {"sha256", "golden vectors"} <= failed


def test_onnx_takes_any_length_and_batch_on_request(run: Path, tmp_path: Path) -> None:
    (attempt,) = export(run, tmp_path / "free", formats=("onnx",), precisions=("fp32",), dynamic_batch=True)
    assert attempt.inputs[0].shape == ("batch", "length")
    session = open_text_session(tmp_path / "free" / "model.fp32.onnx")
    assert session.input_shape == (None, None)
    model, tokenizer = load_text_classifier(run)
    ids = tokenizer(["a lovely film", "dull"]).ids
    whole: FloatArray = run_texts(TorchTextSession(DeployText(model)), ids)["logits"]
    for length in (8, 12, 16):
        for row in range(2):
            found = session(np.ascontiguousarray(ids[row : row + 1, :length]))["logits"]
            np.testing.assert_allclose(found[0], whole[row], atol=FP32_EXPORT)
    assert all(check.passed for check in verify_bundle(tmp_path / "free"))


def test_fixed_files_refuse_other_shapes(bundle: Path) -> None:
    for name in ("model.fp32.onnx", "model.fp32.tflite"):
        with pytest.raises(DataError, match=r"ids have the shape \(1, 5\); this model takes \(1, 16\)"):
            open_text_session(bundle / name)(np.ones((1, 5), np.int32))


def test_a_file_that_loses_accuracy_does_not_pass(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgekit.export.text.attempt as module

    def biased(*given: object) -> dict[str, FloatArray]:
        found = run_texts(*given)  # type: ignore[arg-type]
        if isinstance(given[0], TorchTextSession):
            return found
        return {**found, "logits": found["logits"] + np.array([0.7, 0], np.float32)}

    monkeypatch.setattr(module, "run_texts", biased)
    with pytest.raises(VerificationError, match="no file passed"):
        export(run, tmp_path / "biased", formats=("onnx",), precisions=("int8",))
    assert not (tmp_path / "biased").exists()


def test_no_file_is_called_proven_that_verify_would_refuse(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgekit.export.text.attempt as module

    def wrong_on_few(session: Any, ids: Any) -> dict[str, FloatArray]:
        found = run_texts(session, ids)
        return {name: -values for name, values in found.items()} if len(ids) == INPUTS else found

    monkeypatch.setattr(module, "run_texts", wrong_on_few)
    with pytest.raises(VerificationError, match="no file passed"):
        export(run, tmp_path / "bundle", formats=("onnx",), precisions=("fp32",))


def test_a_tokenizer_that_does_not_come_back_is_not_bundled(tmp_path: Path) -> None:
    class Forgetful:
        """Says of itself that it cuts shorter than it does."""

        def to_dict(self) -> dict[str, Any]:
            return {**tokenizer.to_dict(), "max_length": 4}

    tokenizer = train_bpe(["a fine film", "a dull film"], 300, 8)
    golden = TextGolden(tokenizer(["a fine film"]).ids, {"logits": np.zeros((1, 2), np.float32)}, ("a fine film",))
    assert keep_proof(tmp_path, golden, tokenizer).texts == golden.texts
    with pytest.raises(VerificationError, match="other ids of the same texts"):
        keep_proof(tmp_path, golden, Forgetful())  # type: ignore[arg-type]


def test_what_cannot_be_is_left_out_or_refused_with_its_reason(run: Path, tmp_path: Path) -> None:
    attempts = export(run, tmp_path / "b", formats=("onnx", "tflite"), precisions=("fp16",))
    assert [(attempt.name, attempt.problems) for attempt in attempts] == [("model.fp16.onnx", ())]
    with pytest.raises(VerificationError, match="no file passed"):
        export(run, tmp_path / "c", formats=("tflite",), precisions=("fp16",))
    for changes in ({"precisions": ("mixed",)}, {"precisions": (), "auto": True}):
        with pytest.raises(UsageError, match="is for pictures; texts have fp32, fp16, int8"):
            export(run, tmp_path / "d", **changes)


def test_pictures_are_not_texts(bundle: Path) -> None:
    with pytest.raises(LoadError, match="holds a text classifier, whose files take ids"):
        read_manifest(bundle)


def test_a_run_whose_texts_are_gone_asks_for_others(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    (moved / "config.yaml").write_text((moved / "config.yaml").read_text().replace(str(run.parent), "/nowhere"))
    with pytest.raises(UsageError, match=r"are not at .* any more; pass --data FILE"):
        export(moved, tmp_path / "b")
    (moved / "config.yaml").unlink()
    with pytest.raises(UsageError, match="does not say what it was trained on"):
        export(moved, tmp_path / "b")


def test_golden_texts_come_back_whatever_they_hold(tmp_path: Path) -> None:
    texts = ("", "👩‍👩‍👧", "a\u0000b", "\u202e")
    golden = TextGolden(np.full((4, 3), START, np.int32), {"logits": np.zeros((4, 2), np.float32)}, texts)
    write_text_golden(tmp_path / "golden.npz", golden)
    assert read_text_golden(tmp_path / "golden.npz").texts == texts
    (tmp_path / "cut.npz").write_bytes((tmp_path / "golden.npz").read_bytes()[:100])
    with pytest.raises(EdgekitError, match="holds no golden vectors"):
        read_text_golden(tmp_path / "cut.npz")


@pytest.mark.long
def test_a_hugging_face_encoder_goes_to_all_formats(tmp_path: Path) -> None:
    data = write_reviews(tmp_path / "a.tsv", 60, 0)
    fit = {"epochs": 1, "batch_size": 16, "device": "cpu"}
    config = TextConfig(
        TextFiles(data, data), tmp_path / "run", load_text_recipe("finetune", {"fit": fit}),
        encoder=str(write_encoder(tmp_path / "encoder")),
    )  # fmt: skip
    train_text(config, QUIET)
    assert [attempt.problems for attempt in export(tmp_path / "run", tmp_path / "bundle")] == [()] * 6
    assert all(check.passed for check in verify_bundle(tmp_path / "bundle"))

"""The text classifier: what deployment folds, padding that changes nothing, checkpoints, Hugging Face encoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from texts_for_tests import reviews
from torch import nn

from edgekit.errors import LoadError, UsageError
from edgekit.models.text_classifier import (
    SCRATCH,
    TextClassifier,
    TextSpec,
    build_text_classifier,
    load_text_classifier,
    predict,
    save_text_classifier,
)
from edgekit.models.text_encoder import EncoderConfig, ScratchEncoder
from edgekit.models.text_run import TEXT_FILE, is_text_run
from edgekit.models.text_tokenizer import TrainedBpe, train_bpe
from tests.tolerances import FP32_EXACT

TEXTS = [text for text, _ in reviews(40, 1)]


def small(layers: int = 1, length: int = 24, **config: object) -> tuple[TextClassifier, TrainedBpe]:
    torch.manual_seed(0)
    tokenizer = train_bpe(TEXTS, 400, length)
    encoder = EncoderConfig(**{"width": 16, "heads": 2, "buckets": 64, "layers": layers, **config})  # type: ignore[arg-type]
    spec = TextSpec(SCRATCH, ("bad", "good"), tokenizer.vocab_size, length, encoder.to_dict())
    return build_text_classifier(spec, tokenizer).eval(), tokenizer


@pytest.mark.parametrize("buckets", [0, 64])
def test_folding_changes_nothing(buckets: int) -> None:
    model, tokenizer = small(buckets=buckets)
    ids = torch.from_numpy(tokenizer(TEXTS).ids)
    deployed = model.deployed()
    for expected, found in zip(model(ids), deployed(ids), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=FP32_EXACT)
    assert isinstance(deployed.encoder, ScratchEncoder) and isinstance(deployed.encoder.embedding, nn.Embedding)
    count = sum(p.numel() for p in deployed.parameters())
    assert count + (buckets + 1) * 16 * bool(buckets) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("layers", [0, 2])
def test_padding_changes_nothing(layers: int) -> None:
    model, tokenizer = small(layers)
    ids = tokenizer(TEXTS).ids
    whole = model(torch.from_numpy(ids))
    cut = predict(model, ids, batch=1)
    for expected, found in zip(whole, cut, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=FP32_EXACT)


def test_an_empty_text_gives_finite_numbers() -> None:
    model, tokenizer = small()
    assert torch.isfinite(model(torch.from_numpy(tokenizer(["", "a"]).ids)).logits).all()


def test_an_unseen_word_is_moved_by_the_words_that_share_its_letters() -> None:
    model, tokenizer = small(layers=0)
    ids = torch.from_numpy(tokenizer(["brilliantly"]).ids)
    before = model(ids).embedding.detach().clone()
    parts = model.encoder.embedding.parts  # type: ignore[union-attr]
    assert isinstance(parts, nn.Embedding)
    with torch.no_grad():
        parts.weight[1:] += 1
    assert (model(ids).embedding - before).abs().max() > 0.1


def test_a_checkpoint_brings_model_and_tokenizer_back(tmp_path: Path) -> None:
    model, tokenizer = small()
    save_text_classifier(tmp_path / TEXT_FILE, model, tokenizer)
    again, cutter = load_text_classifier(tmp_path)
    ids = tokenizer(TEXTS).ids
    assert np.array_equal(cutter(TEXTS).ids, ids)
    assert torch.equal(again(torch.from_numpy(ids)).logits, model(torch.from_numpy(ids)).logits)
    assert is_text_run(tmp_path) and is_text_run(tmp_path / TEXT_FILE)
    assert not is_text_run(tmp_path / "absent") and not is_text_run(Path(__file__))


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    model, _ = small()
    other = train_bpe(TEXTS, 300, 24)
    save_text_classifier(tmp_path / TEXT_FILE, model, other)
    with pytest.raises(
        LoadError, match=r"a tokenizer of another model: 300 ids × 24 per text, the model takes \d+ × 24"
    ):
        load_text_classifier(tmp_path)


def header_of(change: dict[str, object]) -> dict[str, str]:
    model, tokenizer = small()
    header = {"schema_version": 1, "text": model.spec.to_dict(), "tokenizer": tokenizer.to_dict()} | change
    return {"edgekit": json.dumps(header)}


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({}, "not an edgekit text classifier"),
        ({"edgekit": "{"}, "not an edgekit text classifier"),
        (header_of({"schema_version": 99}), "newer edgekit"),
        (header_of({"text": {"arch": SCRATCH}}), "cannot be built here"),
        (header_of({"tokenizer": {"kind": "pickle"}}), "cannot be built here"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path: Path, metadata: dict[str, str], named: str) -> None:
    model, tokenizer = small()
    save_text_classifier(tmp_path / "good.safetensors", model, tokenizer)
    save_file(load_file(tmp_path / "good.safetensors"), tmp_path / TEXT_FILE, metadata=metadata or None)
    with pytest.raises(LoadError, match=named):
        load_text_classifier(tmp_path)


@pytest.mark.parametrize(
    "change", [{"width": 0}, {"heads": 3}, {"kernels": (2,)}, {"grams": (5, 3)}, {"buckets": 1 << 30}, {"layers": -1}]
)
def test_impossible_encoders_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        EncoderConfig(**{"width": 16, **change})  # type: ignore[arg-type]

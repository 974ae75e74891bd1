"""Hugging Face encoders from a local folder: the numbers of transformers itself, and checkpoints that need no hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_for_tests import write_encoder
from texts_for_tests import reviews

from edgekit.errors import LoadError, UsageError
from edgekit.models.text_classifier import load_text_classifier, save_text_classifier
from edgekit.models.text_huggingface import HuggingFaceEncoder, pretrained_classifier
from tests.tolerances import FP32_EXACT

TEXTS = [text for text, _ in reviews(12, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def test_features_are_the_mean_of_the_encoders_own_hidden_states(folder: Path, tmp_path: Path) -> None:
    import transformers

    model, tokenizer = pretrained_classifier(str(folder), ("bad", "good"), 32)
    save_text_classifier(tmp_path / "text.safetensors", model, tokenizer)
    again, cutter = load_text_classifier(tmp_path)
    assert again.spec.arch == "bert" and isinstance(again.encoder, HuggingFaceEncoder)
    ids = torch.from_numpy(cutter(TEXTS).ids)
    mask = (ids != cutter.padding).long()  # type: ignore[attr-defined]
    plain = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    own = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    theirs = own(TEXTS, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
    assert torch.equal(theirs["input_ids"], ids.long())
    with torch.no_grad():
        hidden = plain(input_ids=ids.long(), attention_mask=mask).last_hidden_state
        expected = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        torch.testing.assert_close(again(ids).embedding, expected, rtol=0, atol=FP32_EXACT)


def test_texts_are_cut_to_the_encoders_positions_and_counted(folder: Path) -> None:
    _, tokenizer = pretrained_classifier(str(folder), ("bad", "good"), 10_000)
    assert tokenizer.max_length == 48  # the encoder's positions
    encoded = tokenizer(["film " * 100, "", "a film"])
    assert (encoded.truncated, encoded.empty) == (1, 1)
    assert encoded.ids[0, -1] == encoded.ids[1, 1]  # the end mark stays


def test_a_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no encoder and tokenizer are in that folder"):
        pretrained_classifier(str(tmp_path), ("bad", "good"), 32)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, model_vocabulary=50)
    with pytest.raises(UsageError, match=r"the tokenizer of another model: \d+ ids, the encoder knows 50"):
        pretrained_classifier(str(folder), ("bad", "good"), 32)

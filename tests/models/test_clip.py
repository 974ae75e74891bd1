"""The CLIP to train: shapes and limits, causal text, its checkpoint, and that it learns."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit.compress.clip.contrastive import CONTRASTIVE_LOSSES
from edgekit.errors import LoadError, UsageError
from edgekit.models.clip import CLIP_FILE, Clip, ClipSpec, load_clip, save_clip
from edgekit.models.tokenizer import CharacterTokenizer, clip_tokenizer
from edgekit.preprocess import Preprocess
from tests.tolerances import FP32_EXACT

TOKENIZER = clip_tokenizer().trimmed(["a red star", "a blue circle"], context_length=12)
SPEC = ClipSpec(
    *("test_resnet", 24, 32, 2, 4, 12, TOKENIZER.vocab_size),
    preprocess=Preprocess(32, 32, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
)


def small_clip(spec: ClipSpec = SPEC, seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    return Clip(spec).eval()


def test_both_towers_give_unit_rows() -> None:
    clip = small_clip()
    output = clip(torch.rand(3, 3, 32, 32), torch.from_numpy(TOKENIZER(["a red star", "", "x " * 50])))
    for rows in (output.image, output.text):
        assert rows.shape == (3, 24)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3), atol=FP32_EXACT, rtol=0)
    assert float(output.scale.detach()) == pytest.approx(1 / 0.07)
    assert output.bias is None


def test_the_scale_is_clamped_in_use_and_in_the_file(tmp_path: Path) -> None:
    clip = small_clip()
    with torch.no_grad():
        clip.logit_scale.fill_(7.0)
    assert float(clip.scale().detach()) == pytest.approx(100.0)
    save_clip(tmp_path / CLIP_FILE, clip, TOKENIZER)
    assert float(load_clip(tmp_path)[0].logit_scale.detach().exp()) == pytest.approx(100.0)


def test_the_sigmoid_loss_brings_its_own_start() -> None:
    clip = small_clip(dataclasses.replace(SPEC, loss="sigmoid"))
    output = clip(torch.rand(2, 3, 32, 32), torch.from_numpy(TOKENIZER(["a", "b"])))
    assert float(output.scale.detach()) == pytest.approx(10.0)
    assert output.bias is not None
    assert float(output.bias.detach()) == -10.0


def test_the_picture_is_normalised_inside() -> None:
    clip, images = small_clip(), torch.rand(2, 3, 32, 32)
    plain = small_clip(dataclasses.replace(SPEC, preprocess=Preprocess(32, 32)))
    plain.load_state_dict(clip.state_dict())
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(clip.encode_image(images), plain.encode_image((images - mean) / std))


def test_nothing_after_the_end_mark_counts_and_everything_before_does() -> None:
    clip = small_clip()
    tokens = torch.from_numpy(TOKENIZER(["a red star"]))
    end = int(tokens.argmax(1))
    rows = clip.encode_text(tokens)
    torch.testing.assert_close(clip.encode_text(tokens[:, : end + 1]), rows, atol=FP32_EXACT, rtol=0)
    after = tokens.clone()
    after[0, end + 1 :] = 5
    torch.testing.assert_close(clip.encode_text(after), rows, atol=FP32_EXACT, rtol=0)
    for at in range(end):
        changed = tokens.clone()
        changed[0, at] = 5
        assert float((clip.encode_text(changed) * rows).sum().detach()) < 1 - 1e-4


def test_it_learns_to_pair() -> None:
    torch.manual_seed(0)
    clip = small_clip().train()
    words = ["red", "green", "blue", "black"]
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.9], [0.0, 0.0, 0.0]])
    images = colours[:, :, None, None].expand(-1, -1, 32, 32).repeat(2, 1, 1, 1) + 0.02 * torch.randn(8, 3, 32, 32)
    tokens = torch.from_numpy(TOKENIZER([f"a {word} star" for word in words]))
    optimizer = torch.optim.AdamW(clip.parameters(), lr=3e-3)
    for step in range(40):
        rows = slice(4 * (step % 2), 4 * (step % 2) + 4)
        loss = CONTRASTIVE_LOSSES["infonce"](clip(images[rows], tokens))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 < math.log(4)


def test_the_file_brings_back_the_same_function(tmp_path: Path) -> None:
    clip = small_clip()
    save_clip(tmp_path / CLIP_FILE, clip, TOKENIZER)
    again, tokenizer = load_clip(tmp_path)
    images, texts = torch.rand(2, 3, 32, 32), ["a red star", "zebra"]
    assert again.spec == SPEC
    assert not again.training
    torch.testing.assert_close(again.encode_image(images), clip.encode_image(images), atol=0, rtol=0)
    rows = clip.encode_text(torch.from_numpy(TOKENIZER(texts)))
    torch.testing.assert_close(again.encode_text(torch.from_numpy(tokenizer(texts))), rows, atol=0, rtol=0)


def test_other_weights_can_be_stored_in_place_of_its_own(tmp_path: Path) -> None:
    clip, average = small_clip(), small_clip(seed=1)
    save_clip(tmp_path / CLIP_FILE, clip, TOKENIZER, weights=average)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load_clip(tmp_path)[0].encode_image(images), average.encode_image(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "newer edgekit"),
        ({"clip": {"vision": "test_resnet"}}, "no valid spec"),
        ({"tokenizer": CharacterTokenizer(12).to_dict()}, "another model's tokenizer"),
        ({"clip": {**SPEC.to_dict(), "text_width": 64}}, "does not fit the architecture"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    header = {"schema_version": 1, "clip": SPEC.to_dict(), "tokenizer": TOKENIZER.to_dict()}
    save_clip(tmp_path / "good.safetensors", small_clip(), TOKENIZER)
    tensors = load_file(tmp_path / "good.safetensors")
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"edgekit": json.dumps(header | change)})
    with pytest.raises(LoadError, match=message):
        load_clip(tmp_path / "bad.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="holds no CLIP"):
        load_clip(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(LoadError, match="not an edgekit CLIP"):
        load_clip(tmp_path / "x.safetensors")


def test_a_spec_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of text_heads"):
        Clip(dataclasses.replace(SPEC, text_heads=5))
    with pytest.raises(UsageError, match="not a timm model"):
        Clip(dataclasses.replace(SPEC, vision="resnet999"))
    with pytest.raises(UsageError, match="does not take 7 px"):
        Clip(dataclasses.replace(SPEC, vision="test_vit", preprocess=Preprocess(7, 7)))

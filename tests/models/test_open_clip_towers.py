"""open_clip's towers to train: its own numbers, edgekit's checkpoint, and which architectures cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from edgekit.errors import UsageError
from edgekit.models.clip import CLIP_FILE, ClipSpec, create_clip, load_clip, save_clip
from edgekit.models.open_clip_towers import OpenClip, open_clip_config
from edgekit.models.tokenizer import clip_tokenizer
from edgekit.preprocess import Preprocess
from tests.tolerances import FP32_EXACT

TOKENIZER = clip_tokenizer().trimmed(["a dog on the grass"])
SPEC = ClipSpec(*("RN50", 64, 512, 12, 8, 77, TOKENIZER.vocab_size), preprocess=Preprocess(64, 64), family="open_clip")


@pytest.fixture(scope="module")
def clip() -> OpenClip:
    torch.manual_seed(0)
    made = create_clip(SPEC).eval()
    assert isinstance(made, OpenClip)
    return made


def test_a_text_that_the_batch_was_cut_to_is_padded_again(clip: OpenClip) -> None:
    tokens = torch.from_numpy(TOKENIZER(["a dog", "a dog on the grass"]))
    with torch.no_grad():
        own = F.normalize(clip.towers.encode_text(tokens), dim=1)
        torch.testing.assert_close(clip.encode_text(tokens[:, :8]), own, atol=FP32_EXACT, rtol=0)


def test_the_temperature_is_the_only_one_and_the_file_brings_it_back(clip: OpenClip, tmp_path: Path) -> None:
    assert [name for name, _ in clip.named_parameters() if "logit" in name] == ["logit_scale"]
    save_clip(tmp_path / CLIP_FILE, clip, TOKENIZER)
    again, _ = load_clip(tmp_path)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(images), clip.encode_image(images))


def test_architectures_that_cannot_be_trained_here_are_named() -> None:
    assert open_clip_config("ViT-B-32")["embed_dim"] == 512
    with pytest.raises(UsageError, match="tokenizer of its own"):
        open_clip_config("ViT-B-16-SigLIP")
    with pytest.raises(UsageError, match="did you mean 'ViT-B-32'"):
        open_clip_config("ViT-B-23")

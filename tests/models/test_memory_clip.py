"""Towers with a shared memory: both read it, padding changes nothing, and they come back from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgekit.errors import LoadError, UsageError
from edgekit.models.clip import CLIP_FILE, ClipSpec, create_clip, load_clip, save_clip
from edgekit.models.memory_clip import MemoryClip
from edgekit.models.tokenizer import CharacterTokenizer
from edgekit.preprocess import Preprocess
from tests.tolerances import FP32_EXACT

TOKENIZER = CharacterTokenizer(12)
SPEC = ClipSpec(
    *("patches", 24, 32, 2, 4, 12, TOKENIZER.vocab_size),
    preprocess=Preprocess(32, 32),
    family="memory",
    memory_slots=6,
    patch_size=8,
)


def small() -> MemoryClip:
    torch.manual_seed(0)
    clip = create_clip(SPEC)
    assert isinstance(clip, MemoryClip)
    return clip.eval()


def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return torch.from_numpy(TOKENIZER(["a dog", "two cats", "x"]))


def test_both_towers_give_unit_rows_and_read_the_memory() -> None:
    clip = small()
    for encode, inputs in ((clip.encode_image, images()), (clip.encode_text, tokens())):
        rows = encode(inputs)
        assert rows.shape == (3, 24)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3), atol=FP32_EXACT, rtol=0)
        (grad,) = torch.autograd.grad(rows[:, 0].sum(), clip.memory)
        assert bool((grad.norm(dim=2) > 0).all()), "a slot that is not read"


def test_it_is_one_memory() -> None:
    clip = small()
    with torch.no_grad():
        before = clip.encode_image(images()), clip.encode_text(tokens())
        clip.memory.copy_(torch.randn(clip.memory.shape, generator=torch.Generator().manual_seed(2)))
        after = clip.encode_image(images()), clip.encode_text(tokens())
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(before, after, strict=True))
    assert sum(name == "memory" for name, _ in clip.named_parameters()) == 1


def test_padding_changes_nothing() -> None:
    clip = small()
    with torch.no_grad():
        whole, cut = clip.encode_text(tokens()), clip.encode_text(tokens()[:, :10])
    torch.testing.assert_close(cut, whole, atol=FP32_EXACT, rtol=0)


def test_checkpointed_layers_give_the_same_gradients() -> None:
    clip = small().train()
    grads = []
    for again in (False, True):
        if again:
            clip.checkpoint_blocks()
        clip.zero_grad()
        output = clip(images(), tokens())
        (output.image @ output.text.T).diagonal().sum().backward()
        assert clip.memory.grad is not None
        grads.append(clip.memory.grad.clone())
    torch.testing.assert_close(grads[1], grads[0], atol=FP32_EXACT, rtol=1e-4)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    clip = small()
    save_clip(tmp_path / CLIP_FILE, clip, TOKENIZER)
    again, tokenizer = load_clip(tmp_path)
    assert isinstance(again, MemoryClip) and again.spec == SPEC
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(images()), clip.encode_image(images()))
    assert tokenizer.vocab_size == TOKENIZER.vocab_size


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path / CLIP_FILE, small(), CharacterTokenizer(20))
    with pytest.raises(LoadError, match="another model's tokenizer: 36 ids × 20, the model takes 36 × 12"):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 7}, "image size 32 is not a multiple of the patch size 7"),
        ({"patch_size": 0}, "not a multiple of the patch size 0"),
        ({"memory_slots": 0}, "at least 1 slot"),
        ({"text_heads": 5}, "text_width 32 is not a multiple of text_heads 5"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_clip(replace(SPEC, **change))  # type: ignore[arg-type]

"""Contrastive batches in chunks: the plain gradients, in the memory of a chunk."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from edgekit.compress.clip.contrastive import CONTRASTIVE_LOSSES
from edgekit.compress.clip.gradcache import in_chunks, refuse_batch_norm
from edgekit.errors import UsageError
from edgekit.models.clip import Clip, ClipSpec, ContrastiveLoss, Through, create_clip
from edgekit.preprocess import Preprocess
from tests.tolerances import FP32_EXACT


def small(loss: ContrastiveLoss = "infonce", vision: str = "test_vit") -> Clip:
    torch.manual_seed(0)
    size = 160 if vision == "test_vit" else 32
    return create_clip(ClipSpec(vision, 24, 32, 2, 4, 12, 40, Preprocess(size, size), loss)).train()


def pairs(clip: Clip, count: int = 7) -> tuple[Tensor, Tensor]:
    size = clip.spec.preprocess.image_size
    tokens = torch.randint(1, 38, (count, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, 9] = 39
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)), tokens


def gradients(clip: Clip, batch: tuple[Tensor, Tensor], through: Through | None) -> dict[str, Tensor]:
    clip.zero_grad()
    CONTRASTIVE_LOSSES[clip.spec.loss](clip(*batch, through)).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in clip.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_the_gradients_are_those_of_the_whole_batch(loss: ContrastiveLoss, size: int) -> None:
    clip = small(loss)
    batch = pairs(clip)
    plain, chunked = gradients(clip, batch, None), gradients(clip, batch, partial(in_chunks, size=size))
    assert plain.keys() == chunked.keys() and "logit_scale" in plain
    for name, grad in plain.items():
        assert float(grad.abs().max()) > 0, name
        torch.testing.assert_close(chunked[name], grad, atol=FP32_EXACT, rtol=1e-3, msg=name)


def test_a_loss_of_each_chunk_alone_would_be_another() -> None:
    """What plain accumulation of a contrastive loss does: fewer negatives, other gradients."""
    clip = small()
    images, tokens = pairs(clip, 6)
    whole = gradients(clip, (images, tokens), None)["vision_projection.weight"]
    halves = [gradients(clip, (images[at : at + 3], tokens[at : at + 3]), None) for at in (0, 3)]
    apart = sum(half["vision_projection.weight"] for half in halves) / 2
    assert isinstance(apart, Tensor)
    assert float((apart - whole).norm() / whole.norm()) > 0.1


def kept_bytes(clip: Clip, batch: tuple[Tensor, Tensor], through: Through | None) -> int:
    """Return how much the forward pass keeps for the way back."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        clip(*batch, through)
    return kept


def test_only_the_inputs_are_kept() -> None:
    clip = small()
    batch = pairs(clip)
    inputs = sum(part.numel() * part.element_size() for part in batch)
    assert kept_bytes(clip, batch, None) > 5 * inputs
    assert kept_bytes(clip, batch, partial(in_chunks, size=2)) < 1.01 * inputs


def test_without_gradients_it_is_the_encoder() -> None:
    clip = small().eval()
    images, _ = pairs(clip)
    with torch.no_grad():
        torch.testing.assert_close(in_chunks(clip.encode_image, images, 3), clip.encode_image(images))


def test_batch_norm_is_refused_while_it_trains() -> None:
    clip = small(vision="test_resnet")
    with pytest.raises(UsageError, match="--chunk-size with test_resnet: it has batch norm"):
        refuse_batch_norm(clip, "test_resnet")
    clip.freeze_vision()
    refuse_batch_norm(clip, "test_resnet")  # frozen statistics are the same for chunk and batch
    refuse_batch_norm(small(), "test_vit")

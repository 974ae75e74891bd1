"""What a CLIP is worth on held-out pictures: zero-shot accuracy of class prompts, or retrieval of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.clip.contrastive import CONTRASTIVE_LOSSES
from edgekit.compress.pictures.pixels import image_batches
from edgekit.models.clip import Clip, ClipOutput
from edgekit.models.prompts import class_embeddings
from edgekit.models.tokenizer import Tokenizer, Tokens
from edgekit.ranking import best_ranks

EVAL_BATCH = 128


@torch.no_grad()
def embed_pixels(clip: Clip, pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Map pictures (N, S, S, 3) uint8, through the contract already, to unit rows (N, embed_dim) on the CPU."""
    batches = image_batches(pixels, EVAL_BATCH, device)
    return torch.cat([clip.encode_image(images).float().cpu() for images in batches])


@torch.no_grad()
def embed_texts(clip: Clip, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device) -> Tensor:
    """Map N texts to unit rows (N, embed_dim) on the CPU."""
    tokens = tokenizer(texts)
    parts = [unpadded(tokens[at : at + EVAL_BATCH]) for at in range(0, len(tokens), EVAL_BATCH)]
    return torch.cat([clip.encode_text(torch.from_numpy(part).to(device)).float().cpu() for part in parts])


def unpadded(tokens: Tokens) -> Tokens:
    """Return ids (B, L) without the columns in which all texts are padded: they cost time and change nothing."""
    return tokens[:, : int(tokens.argmax(axis=1).max()) + 1]


def zeroshot_accuracy(images: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Return the share of unit rows (N, D) whose nearest class row of (C, D) is their label's."""
    return float(((images @ weights.T).argmax(1) == labels).float().mean())


def prompt_weights(
    clip: Clip, tokenizer: Tokenizer, classes: Sequence[str], templates: Sequence[str], device: torch.device
) -> Tensor:
    """Return the class rows (C, embed_dim) that the prompts make, on the CPU."""
    return class_embeddings(lambda tokens: clip.encode_text(tokens.to(device)), tokenizer, classes, templates).cpu()


def retrieval_values(images: Tensor, texts: Tensor, owner: NDArray[np.int64]) -> Mapping[str, float]:
    """Return R@1 of both directions and their mean, ties counted against the model.

    Args:
        images: (N, D) unit rows.
        texts: (M, D) unit rows.
        owner: (M,) the row of `images` that each text describes.
    """
    pictures, captions = images.double().numpy(), texts.double().numpy()
    number = np.arange(len(pictures))
    to_text = float((best_ranks(pictures, captions, number, owner) == 1).mean())
    to_image = float((best_ranks(captions, pictures, owner, number) == 1).mean())
    return {"text_r1": to_text, "image_r1": to_image, "mean_r1": (to_text + to_image) / 2}


def validation_loss(clip: Clip, images: Tensor, texts: Tensor, batch_size: int) -> float:
    """Return the mean contrastive loss over pairs (N, D), in batches of the training's size, the smaller rest left out.

    The loss depends on the number of pairs in a batch, so a smaller one would not count alike.
    """
    size = min(batch_size, len(images))
    bias = None if clip.logit_bias is None else clip.logit_bias.detach().cpu()
    scale = clip.scale().detach().cpu()
    image, text = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    losses = [
        CONTRASTIVE_LOSSES[clip.spec.loss](ClipOutput(image[at : at + size], text[at : at + size], scale, bias))
        for at in range(0, len(images) - size + 1, size)
    ]
    return float(torch.stack(losses).mean())

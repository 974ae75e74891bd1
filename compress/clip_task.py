"""The task of training a CLIP on pictures and captions; the one loop (`fit`) does the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from edgekit.compress.contrastive import CONTRASTIVE_LOSSES
from edgekit.compress.pixels import PixelStore
from edgekit.compress.randomness import permutation, sample_ids, uniforms
from edgekit.compress.recipe import AugmentConfig, FitConfig
from edgekit.compress.schedule import ScheduleConfig
from edgekit.compress.views import draw_views, render
from edgekit.models.clip import CLIP_FILE, Clip, ClipOutput, ClipSpec, ContrastiveLoss, save_clip
from edgekit.models.prompts import TEMPLATES, class_embeddings
from edgekit.models.tokenizer import BpeTokenizer, CharacterTokenizer, Tokenizer, clip_tokenizer
from edgekit.preprocess import Preprocess

EVAL_BATCH = 128


class ClipRecipe(BaseModel):
    """Towers, tokenizer, loss and optimisation of a CLIP trained here.

    Attributes:
        vision: timm name of the image tower.
        tokenizer: CLIP's byte pairs, or single characters.
        trim_vocabulary: keep only the byte pairs that the training captions use; a small embedding table trains faster.
        augment: views of the pictures. No flip by default: captions say left and right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    vision: str
    image_size: int = Field(default=64, ge=16)
    embed_dim: int = Field(default=128, ge=1)
    text_width: int = Field(default=128, ge=1)
    text_layers: int = Field(default=2, ge=1)
    text_heads: int = Field(default=4, ge=1)
    context_length: int = Field(default=32, ge=3)
    tokenizer: Literal["bpe", "characters"] = "bpe"
    trim_vocabulary: bool = True
    loss: ContrastiveLoss = "infonce"
    augment: AugmentConfig = AugmentConfig()
    fit: FitConfig = FitConfig()


CLIP_DEMO = ClipRecipe(
    name="clip-demo",
    vision="test_resnet",
    augment=AugmentConfig(crop_scale=(0.9, 1.0), crop_ratio=(0.9, 1.11)),
    fit=FitConfig(
        epochs=6,
        batch_size=32,  # more steps per second beat more negatives per step at this size
        lr=2e-3,
        weight_decay=0.05,
        decay_matrices_only=True,
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5, min_factor=0.01),
        betas=(0.9, 0.98),  # CLIP's β₂ for its ViTs (table 18)
        ema_decay=0.99,
        clip_norm=1.0,
        channels_last=True,
    ),
)


def build_clip(recipe: ClipRecipe, texts: Sequence[str]) -> tuple[Clip, Tokenizer]:
    """Return an untrained CLIP and its tokenizer, whose vocabulary may be trimmed to `texts`.

    Weights depend on `recipe.fit.seed` alone.

    Raises:
        UsageError: unknown image tower, or one that cannot take this image size.
        MissingExtraError: the byte pairs come with open_clip, which is absent.
    """
    tokenizer: Tokenizer
    if recipe.tokenizer == "characters":
        tokenizer = CharacterTokenizer(recipe.context_length)
    else:
        full = clip_tokenizer(recipe.context_length)
        tokenizer = full.trimmed(texts) if recipe.trim_vocabulary else BpeTokenizer(full.merges, recipe.context_length)
    size = recipe.image_size
    spec = ClipSpec(
        **{name: getattr(recipe, name) for name in ("vision", "embed_dim", "text_width", "text_layers", "text_heads")},
        context_length=tokenizer.context_length,
        vocab_size=tokenizer.vocab_size,
        preprocess=Preprocess(size, size, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        loss=recipe.loss,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.fit.seed)
        return Clip(spec), tokenizer


@dataclass(frozen=True)
class ClipData:
    """Everything that the task reads, decoded and ready.

    Attributes:
        train: squeezed training pictures.
        captions: those of each training picture, in its order.
        val: labelled evaluation pictures through the image tower's contract.
        classes: their class names.
        templates: prompts of the zero-shot classifier.
    """

    train: PixelStore
    captions: tuple[tuple[str, ...], ...]
    val: PixelStore
    classes: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES


@dataclass(frozen=True)
class ClipBatch:
    """Images (B, 3, H, W) in [0, 1] and the ids (B, L) of one caption each."""

    images: Tensor
    tokens: Tensor


class ClipTask:
    """Train a CLIP; the best checkpoint is that of the best zero-shot accuracy."""

    metric = "zeroshot_acc"
    checkpoint_name = CLIP_FILE

    def __init__(self, clip: Clip, tokenizer: Tokenizer, recipe: ClipRecipe, data: ClipData) -> None:
        self.model: nn.Module = clip
        self.clip, self.tokenizer, self.recipe, self.data = clip, tokenizer, recipe, data
        self._ids = sample_ids([sample.key for sample in data.train.samples])
        self._counts = np.array([len(captions) for captions in data.captions])
        self._first = np.concatenate([[0], np.cumsum(self._counts)])
        self._tokens = tokenizer([caption for captions in data.captions for caption in captions])
        self._val_labels = torch.tensor([sample.label for sample in data.val.samples])

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch; their sizes differ by one at most."""
        return max(1, round(len(self._ids) / self.recipe.fit.batch_size))

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[ClipBatch]:
        """Yield the batches of a 1-based epoch from `start` on, a function of (seed, epoch); a caption per picture."""
        fit = self.recipe.fit
        chosen = uniforms(fit.seed, "caption", epoch, self._ids, 1)[:, 0]
        caption = self._first[:-1] + (chosen * self._counts).astype(np.int64)
        for rows in np.array_split(permutation(fit.seed, epoch, self._ids), self.steps_per_epoch)[start:]:
            yield ClipBatch(self._images(rows, epoch, device), self._texts(caption[rows], device))

    def _images(self, rows: NDArray[np.int64], epoch: int, device: torch.device) -> Tensor:
        train, contract = self.data.train, self.clip.spec.preprocess
        at = (self.recipe.fit.seed, "augment", epoch)
        views = draw_views(self.recipe.augment, contract, train.aspects[rows], self._ids[rows], at)
        pixels = torch.from_numpy(train.pixels[rows]).to(device).permute(0, 3, 1, 2)
        images = render(pixels, views, contract.image_size)
        return images.contiguous(memory_format=torch.channels_last) if self.recipe.fit.channels_last else images

    def _texts(self, rows: NDArray[np.int64], device: torch.device) -> Tensor:
        tokens = self._tokens[rows]
        longest = int(tokens.argmax(axis=1).max()) + 1  # columns of padding cost time and change nothing
        return torch.from_numpy(tokens[:, :longest]).to(device)

    def batch_length(self, batch: ClipBatch) -> int:
        """Return the number of pairs in a batch."""
        return len(batch.tokens)

    def loss(self, model: nn.Module, batch: ClipBatch) -> Mapping[str, Tensor]:
        """Return the contrastive loss."""
        output: ClipOutput = model(batch.images, batch.tokens)
        return {"loss": CONTRASTIVE_LOSSES[self.recipe.loss](output)}

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return the accuracy of the class prompts on the labelled pictures, and the learned scale."""
        if not isinstance(model, Clip):
            raise TypeError(f"expected a Clip, got {type(model).__name__}")
        clip = model

        def encode(tokens: Tensor) -> Tensor:
            return clip.encode_text(tokens.to(device))

        weights = class_embeddings(encode, self.tokenizer, self.data.classes, self.data.templates)
        pixels = torch.from_numpy(self.data.val.pixels)
        parts = [part.to(device).permute(0, 3, 1, 2).float().div(255) for part in torch.split(pixels, EVAL_BATCH)]
        predicted = torch.cat([(clip.encode_image(part) @ weights.T).argmax(1).cpu() for part in parts])
        accuracy = float((predicted == self._val_labels).float().mean())
        return {"zeroshot_acc": accuracy, "scale": float(clip.scale())}

    def save(self, path: Path, model: nn.Module) -> None:
        """Write the CLIP and its tokenizer."""
        save_clip(path, self.clip, self.tokenizer, model)

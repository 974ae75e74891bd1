"""The task of training a CLIP on pictures and captions; the one loop (`fit`) does the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.compress.clip.batches import ClipBatch, Pairs, StoredPairs
from edgekit.compress.clip.contrastive import CONTRASTIVE_LOSSES
from edgekit.compress.clip.evaluation import (
    embed_pixels,
    embed_texts,
    prompt_weights,
    retrieval_values,
    validation_loss,
    zeroshot_accuracy,
)
from edgekit.compress.clip.gradcache import in_chunks, refuse_batch_norm
from edgekit.compress.clip.recipe import CLIP_DEMO, CLIP_RECIPES, ClipRecipe, build_clip
from edgekit.compress.pictures.pixels import PixelStore
from edgekit.models.clip import CLIP_FILE, Clip, ClipOutput, save_clip
from edgekit.models.prompts import TEMPLATES
from edgekit.models.tokenizer import Tokenizer

__all__ = ["CLIP_DEMO", "CLIP_RECIPES", "ClipBatch", "ClipData", "ClipRecipe", "ClipTask", "build_clip"]


@dataclass(frozen=True)
class ClipData:
    """Everything that the task reads, decoded and ready.

    Attributes:
        train: squeezed training pictures, or batches that come from elsewhere.
        captions: those of each training picture, in its order; none with batches.
        val: evaluation pictures through the image tower's contract: with captions, or labelled.
        classes: class names of labelled evaluation pictures.
        templates: prompts of the zero-shot classifier.
        val_captions: captions of each evaluation picture; then retrieval is what is evaluated.
    """

    train: PixelStore | Pairs
    captions: tuple[tuple[str, ...], ...]
    val: PixelStore
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = TEMPLATES
    val_captions: tuple[tuple[str, ...], ...] = ()


class ClipTask:
    """Train a CLIP; the best checkpoint is that of the best zero-shot accuracy, mean R@1, or loss on held-out pairs."""

    checkpoint_name = CLIP_FILE

    def __init__(self, clip: Clip, tokenizer: Tokenizer, recipe: ClipRecipe, data: ClipData) -> None:
        self.model: nn.Module = clip
        self.clip, self.tokenizer, self.recipe, self.data = clip, tokenizer, recipe, data
        self.metric = _metric(recipe, data)
        if 0 < recipe.chunk_size < recipe.fit.batch_size:
            refuse_batch_norm(clip, recipe.vision)
        train = data.train
        if isinstance(train, PixelStore):
            train = StoredPairs(train, data.captions, tokenizer, recipe, clip.spec.preprocess)
        self._pairs: Pairs = train
        self._val_texts = [caption for captions in data.val_captions for caption in captions]
        self._val_owner = np.repeat(np.arange(len(data.val_captions)), [len(c) for c in data.val_captions])

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return self._pairs.steps_per_epoch

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[ClipBatch]:
        """Yield the batches of a 1-based epoch from `start` on, a function of (seed, epoch); a caption per picture."""
        return self._pairs.batches(epoch, device, start)

    def batch_length(self, batch: ClipBatch) -> int:
        """Return the number of pairs in a batch."""
        return len(batch.tokens)

    def loss(self, model: nn.Module, batch: ClipBatch) -> Mapping[str, Tensor]:
        """Return the contrastive loss over the whole batch, whatever the chunks in which the towers see it."""
        size = self.recipe.chunk_size
        output: ClipOutput = model(batch.images, batch.tokens, partial(in_chunks, size=size) if size else None)
        return {"loss": CONTRASTIVE_LOSSES[self.recipe.loss](output)}

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return the accuracy of the class prompts, or retrieval and loss of held-out pairs; and the learned scale."""
        if not isinstance(model, Clip):
            raise TypeError(f"expected a Clip, got {type(model).__name__}")
        images = embed_pixels(model, self.data.val.pixels, device)
        values = {"scale": float(model.scale())}
        if self.data.classes:
            labels = torch.tensor([sample.label for sample in self.data.val.samples])
            weights = prompt_weights(model, self.tokenizer, self.data.classes, self.data.templates, device)
            values["zeroshot_acc"] = zeroshot_accuracy(images, labels, weights)
        if self._val_texts:
            texts = embed_texts(model, self.tokenizer, self._val_texts, device)
            values |= retrieval_values(images, texts, self._val_owner)
            first = np.unique(self._val_owner, return_index=True)[1]
            loss = validation_loss(model, images, texts[first], self.recipe.fit.batch_size)
            values |= {"val_loss": loss, "neg_val_loss": -loss}
        return values

    def save(self, path: Path, model: nn.Module) -> None:
        """Write the CLIP and its tokenizer."""
        save_clip(path, self.clip, self.tokenizer, model)


def _metric(recipe: ClipRecipe, data: ClipData) -> str:
    """Return the value that the loop maximises."""
    if not data.val_captions:
        return "zeroshot_acc"
    return "neg_val_loss" if recipe.select == "val_loss" else "mean_r1"

"""Large contrastive batches in little memory: the loss sees all pairs, the towers see a chunk at a time.

Gao et al. 2021 (arXiv 2101.06983), §3: embed every chunk without keeping activations; take the loss over all the
embeddings; then embed each chunk again, and send the loss's gradient of its embeddings back through it. That second
pass is what a checkpointed segment does by itself, so each chunk is one, and the loop's ordinary backward is enough.
The gradients are those of the whole batch, where no layer looks across the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from edgekit.errors import UsageError
from edgekit.models.clip import Encode


def in_chunks(encode: Encode, inputs: Tensor, size: int) -> Tensor:
    """Return `encode(inputs)` computed `size` rows at a time, keeping the activations of one chunk at most.

    Args:
        encode: rows in, rows out, each from its own row alone.
        inputs: (B, …).
        size: rows per chunk, at least 1.

    Returns:
        (B, D), with the gradients of the whole batch.
    """
    if len(inputs) <= size:
        return encode(inputs)
    if not torch.is_grad_enabled():
        return torch.cat([encode(part) for part in torch.split(inputs, size)])
    # the random state is kept, so that dropout and stochastic depth are the same in both passes
    parts = [checkpoint(encode, part, use_reentrant=False) for part in torch.split(inputs, size)]
    return torch.cat(parts)


def refuse_batch_norm(model: nn.Module, name: str) -> None:
    """Raise if a trained layer looks across the batch: of a chunk it would see other statistics, and count them twice.

    Raises:
        UsageError: there is such a layer.
    """
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        raise UsageError(
            f"--chunk-size with {name}: it has batch norm, which would see chunks and not the batch. Take an image "
            f"tower without (vit_small_patch32_224, convnext_atto), or leave --chunk-size out"
        )

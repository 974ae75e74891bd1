"""Nets whose every weight matters.

timm starts the last BatchNorm of each residual block at γ = 0, so that half of an untrained net is dead: a wrong
rewrite of a dead block would go unnoticed, and converters delete it.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn


def randomised(arch: str, classes: int = 10, seed: int = 0) -> nn.Module:
    """Return a timm net in eval mode with random norm statistics, norm affines and biases."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(arch, num_classes=classes)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval().requires_grad_(False)


class TwoHeads(nn.Module):
    """A timm backbone somewhere inside, and two outputs: logits (B, classes) and unit embeddings (B, features)."""

    def __init__(self, arch: str, classes: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"backbone": randomised(arch, 0, seed)})
        self.head = nn.Linear(self.student["backbone"].head_hidden_size, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to (logits, embedding)."""
        features = self.student["backbone"](images - 0.45)
        return self.head(features), nn.functional.normalize(features, dim=1)


def pictures(batch: int, size: int, seed: int = 0) -> Tensor:
    """Return smooth random pictures (batch, 3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)

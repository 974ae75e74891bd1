"""Small real teachers: an open_clip architecture of a few thousand weights, and an embedding model in ONNX."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TINY_ARCH = "edgekit-test-tiny"


@cache
def register_tiny_clip(folder: Path) -> str:
    """Tell open_clip of a tiny architecture (32 px, 16-d) and return its name."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{TINY_ARCH}.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(folder)
    return TINY_ARCH


def tiny_clip_weights(file: Path, seed: int) -> Path:
    """Write random weights of the tiny architecture."""
    import open_clip

    torch.manual_seed(seed)
    torch.save(open_clip.create_model(TINY_ARCH, pretrained=None).state_dict(), file)
    return file


class ColourNet(nn.Module):
    """Embed a picture (B, 3, 32, 32) by its colours on a coarse grid: a teacher that knows something."""

    def __init__(self, dim: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(48, dim)

    def forward(self, images: Tensor) -> Tensor:
        grid = F.avg_pool2d(images, 8).flatten(1)
        return F.normalize(self.project(grid - 0.5), dim=1)


def onnx_teacher(file: Path, *, batch: int | None = None, net: nn.Module | None = None) -> Path:
    """Export ColourNet, or `net`, with a free or a fixed batch."""
    example = torch.zeros(batch or 2, 3, 32, 32)
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1, max=1024)},)
    program = torch.onnx.export(
        (net or ColourNet()).eval(), (example,), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(str(file), external_data=False)
    return file

"""A CLIP whose two towers read one learned memory: what pictures and texts share has a place of its own.

Both towers are the same four-step layer over a latent of one width: attention among the tower's own pieces, reading
the memory by attention, and a feed-forward net. The memory (S, width) is learned, shared by the towers, and the same
for every input (the key-value memories of Sukhbaatar et al. 2019, arXiv 1907.01470, §3, here shared by two towers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from edgekit.errors import UsageError
from edgekit.models.clip import Clip, ClipSpec, Tower, check_heads
from edgekit.models.text_tower import at_end_mark


class _Attention(nn.Module):
    """Multi-head attention of queries (B, N, W) over a source (B or 1, M, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor, causal: bool = False) -> Tensor:
        batch, length, width = x.shape
        query = self.query(x).view(batch, length, self.heads, -1).transpose(1, 2)
        pairs = self.key_value(source).view(len(source), source.shape[1], 2, self.heads, width // self.heads)
        key, value = pairs.expand(batch, -1, -1, -1, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, M, W / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        read: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return read


class _Layer(nn.Module):
    """x + attend(x), then x + read(memory), then x + mlp(x); norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_attend, self.attend = nn.LayerNorm(width), _Attention(width, heads)
        self.norm_read, self.read = nn.LayerNorm(width), _Attention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, memory: Tensor, causal: bool) -> Tensor:
        normed = self.norm_attend(x)
        x = x + self.attend(normed, normed, causal)
        x = x + self.read(self.norm_read(x), memory)
        fed: Tensor = x + self.mlp(self.norm_mlp(x))
        return fed


class _Tower(nn.Module):
    """Pieces (B, N, width) → layers that read the memory → normed pieces of the same shape."""

    def __init__(self, spec: ClipSpec, pieces: int, *, causal: bool) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(pieces, spec.text_width))
        self.layers = nn.ModuleList(_Layer(spec.text_width, spec.text_heads) for _ in range(spec.text_layers))
        self.norm = nn.LayerNorm(spec.text_width)
        self.projection = nn.Linear(spec.text_width, spec.embed_dim, bias=False)
        self.causal, self.checkpointing = causal, False

    def forward(self, pieces: Tensor, memory: Tensor) -> Tensor:
        x = pieces + self.position[: pieces.shape[1]]
        for layer in self.layers:
            if self.checkpointing and self.training:
                x = checkpoint(layer, x, memory, self.causal, use_reentrant=False)
            else:
                x = layer(x, memory, self.causal)
        normed: Tensor = self.norm(x)
        return normed


class MemoryClip(Clip):
    """Patches and tokens, each through `text_layers` layers of `text_width`, both reading `memory_slots` slots."""

    _OWN: ClassVar[Mapping[Tower, tuple[str, ...]]] = {
        "image": ("patches", "picture_tower"),
        "text": ("token", "caption_tower"),
    }

    def _build(self, spec: ClipSpec) -> None:
        check_heads(spec)
        side, patch = spec.preprocess.image_size, spec.patch_size
        if patch < 1 or side % patch:
            raise UsageError(f"image size {side} is not a multiple of the patch size {patch}; give one that is")
        if spec.memory_slots < 1:
            raise UsageError(f"memory_slots {spec.memory_slots}: a memory needs at least 1 slot")
        width = spec.text_width
        self.memory = nn.Parameter(torch.empty(1, spec.memory_slots, width))
        self.memory_norm = nn.LayerNorm(width)
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.picture_tower = _Tower(spec, (side // patch) ** 2, causal=False)
        self.token = nn.Embedding(spec.vocab_size, width)
        self.caption_tower = _Tower(spec, spec.context_length, causal=True)
        for learned in (self.memory, self.token.weight, self.picture_tower.position, self.caption_tower.position):
            nn.init.normal_(learned, std=0.02)

    @property
    def image_tower(self) -> nn.Module:
        """The layers over the patches."""
        return self.picture_tower

    def _embed_image(self, normalised: Tensor) -> Tensor:
        pieces = self.patches(normalised).flatten(2).transpose(1, 2)
        seen = self.picture_tower(pieces, self.memory_norm(self.memory)).mean(dim=1)
        embedding: Tensor = self.picture_tower.projection(seen)
        return embedding

    def _embed_text(self, tokens: Tensor) -> Tensor:
        read = self.caption_tower(self.token(tokens), self.memory_norm(self.memory))
        embedding: Tensor = self.caption_tower.projection(at_end_mark(read, tokens))  # it has not seen the padding
        return embedding

    def checkpoint_blocks(self) -> None:
        """Keep no activations inside the layers; they are computed again on the way back."""
        self.picture_tower.checkpointing = self.caption_tower.checkpointing = True

"""A small text encoder that learns from a few thousand texts: pieces with the letters in them, convolutions, attention.

A piece is its own vector plus the sum of vectors of its letter n-grams (fastText, arXiv 1607.04606, §3.2), so that
rare and unseen words share what their parts have learned. The n-grams of a piece never change: at deployment both are
added up once, and what is left is a plain table (`PieceEmbedding.folded`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import LoadError, UsageError

_MOST_GRAMS = 24
"""n-grams per piece; longer pieces keep their first ones."""
_HIDDEN = -1e4
"""Score of a position that does not count; it fits into float16."""
MAX_WIDTH = 8192
MAX_LAYERS = 100
MAX_BUCKETS = 1 << 22


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder's size.

    Attributes:
        width: of a piece's vector.
        layers: transformer blocks.
        heads: of their attention.
        kernels: odd lengths of the convolutions over pieces whose maxima are features.
        buckets: vectors that letter n-grams are hashed to; 0 is without n-grams.
        grams: smallest and largest n, in bytes.
        dropout: of pieces' vectors, blocks and features.
    """

    width: int = 128
    layers: int = 0
    heads: int = 4
    kernels: tuple[int, ...] = (1, 3, 5)
    buckets: int = 1 << 15
    grams: tuple[int, int] = (3, 5)
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be built: a config also comes out of files that others wrote."""
        if not (0 < self.width <= MAX_WIDTH and 0 <= self.layers <= MAX_LAYERS and 0 <= self.buckets <= MAX_BUCKETS):
            raise UsageError(f"a text encoder of width {self.width}, {self.layers} layers, {self.buckets} buckets")
        if self.heads < 1 or self.width % self.heads:
            raise UsageError(f"width {self.width} is not a multiple of {self.heads} heads")
        if any(kernel < 1 or kernel % 2 == 0 or kernel > 99 for kernel in self.kernels) or len(self.kernels) > 16:
            raise UsageError(f"kernels {self.kernels}: odd lengths are needed, so that each has a middle")
        if not 1 <= self.grams[0] <= self.grams[1] <= 16 or not 0 <= self.dropout < 1:
            raise UsageError(f"n-grams of {self.grams} bytes and dropout {self.dropout}")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """Build from the mapping that `to_dict` made.

        Raises:
            LoadError: a value is missing, unknown or impossible.
        """
        try:
            fields = dict(values)
            fields["kernels"] = tuple(int(kernel) for kernel in fields["kernels"])
            fields["grams"] = (int(fields["grams"][0]), int(fields["grams"][1]))
            return cls(**fields)
        except (KeyError, IndexError, TypeError, ValueError, UsageError) as e:
            raise LoadError(f"not a text encoder of edgekit: {e!r:.200}") from e


class PieceEmbedding(nn.Module):
    """Ids (B, L) to vectors (B, L, width).

    Args:
        pieces: the bytes of each id.
        config: width, n-grams.
    """

    grams: Tensor
    scale: Tensor

    def __init__(self, pieces: Sequence[bytes], config: EncoderConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(len(pieces), config.width)
        nn.init.normal_(self.table.weight, std=0.05)
        rows = [_gram_buckets(piece, config) for piece in pieces] if config.buckets else []
        self.parts = nn.Embedding(config.buckets + 1, config.width, padding_idx=0) if rows else None
        if self.parts is not None:
            nn.init.normal_(self.parts.weight, std=0.05)
            with torch.no_grad():
                self.parts.weight[0] = 0
        padded = [row + [0] * (_MOST_GRAMS - len(row)) for row in rows]
        # (V, n) bucket numbers, and one factor per piece: the root keeps the sum's variance that of one vector
        self.register_buffer("grams", torch.tensor(padded, dtype=torch.int64), persistent=False)
        roots = torch.tensor([max(1, len(row)) for row in rows]).float().rsqrt()
        self.register_buffer("scale", roots[:, None], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, L) int32 or int64 to vectors (B, L, width)."""
        if self.parts is None:
            vectors: Tensor = self.table(ids)
            return vectors
        found, places = torch.unique(ids, return_inverse=True)
        return self._rows(found)[places]

    def _rows(self, ids: Tensor) -> Tensor:
        assert self.parts is not None
        rows: Tensor = self.table(ids) + self.parts(self.grams[ids]).sum(dim=1) * self.scale[ids]
        return rows

    @torch.no_grad()
    def folded(self) -> nn.Embedding:
        """Return the plain table that gives the same vectors."""
        rows = self.table.weight if self.parts is None else self._rows(torch.arange(self.table.num_embeddings))
        return nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows.detach().clone())


def _gram_buckets(piece: bytes, config: EncoderConfig) -> list[int]:
    """Return the buckets, from 1 on, of a piece's n-grams: a function of its bytes alone."""
    smallest, largest = config.grams
    grams = {piece[at : at + n] for n in range(smallest, largest + 1) for at in range(len(piece) - n + 1)}
    return [zlib.crc32(gram) % config.buckets + 1 for gram in sorted(grams)][:_MOST_GRAMS]


class _Block(nn.Module):
    """A transformer block, norms first (Xiong et al. 2020): attention over the positions that count, then MLP."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_width = config.heads, width // config.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Map x (B, L, width) and the scores (B, L) of positions, 0 or very low, to (B, L, width)."""
        normed = self.norm1(x)
        queries, keys, values = (self._split(layer(normed)) for layer in (self.queries, self.keys, self.values))
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(self.head_width) + hidden[:, None, None, :]
        mixed = (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)
        x = x + self.drop(self.out(mixed))
        changed: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return changed

    def _split(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return x.reshape(batch, length, self.heads, self.head_width).transpose(1, 2)


class ScratchEncoder(nn.Module):
    """Ids to features: the sum of the pieces' vectors over √n, maxima of convolutions, and an attentive mean of blocks.

    Positions that are padding change nothing, so that any length that holds the text gives the same features.

    Args:
        pieces: the bytes of each id.
        max_length: positions that there are.
        config: the size.
        padding: id that does not count.
    """

    def __init__(self, pieces: Sequence[bytes], max_length: int, config: EncoderConfig, padding: int = 0) -> None:
        super().__init__()
        self.padding, width = padding, config.width
        self.embedding: nn.Module = PieceEmbedding(pieces, config)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2) for kernel in config.kernels
        )
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        if config.layers:
            self.positions = nn.Parameter(torch.randn(max_length, width) * 0.02)
            self.norm, self.attention = nn.LayerNorm(width), nn.Linear(width, 1)
        self.drop = nn.Dropout(config.dropout)
        self.features = width * (1 + len(config.kernels) + bool(config.layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, L) to features (B, features)."""
        counts = (ids != self.padding).float()
        x = self.drop(self.embedding(ids)) * counts[:, :, None]
        # every text has its start mark, so no count is 0
        found = [x.sum(dim=1) * counts.sum(dim=1, keepdim=True).rsqrt()]
        channels = x.transpose(1, 2)
        # after ReLU nothing is below 0, so that hidden positions, set to 0, never win
        found += [(torch.relu(layer(channels)) * counts[:, None, :]).amax(dim=2) for layer in self.convolutions]
        if self.blocks:
            found.append(self._attended(x, (1 - counts) * _HIDDEN))
        return torch.cat(found, dim=1)

    def _attended(self, x: Tensor, hidden: Tensor) -> Tensor:
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x, hidden)
        normed = self.norm(x)
        weights = (self.attention(normed)[:, :, 0] + hidden).softmax(dim=1)
        mean: Tensor = (weights[:, :, None] * normed).sum(dim=1)
        return mean

"""From frames to a clip: a learned query attends to the frames' embeddings, and a small head reads the result.

For 512-d embeddings and 15 classes, the weights beside those of the backbone (mobilevit_xxs without its classifier,
951,024):

| part | shape | weights |
|---|---|---|
| projection of each frame | 320 → 512 | 164,352 |
| query, key, value and output of the attention, with biases | 4 × (512 → 512) | 1,050,624 |
| learned query | 512 | 512 |
| LayerNorm before keys and values, LayerNorm after the attention | 2 × 2 × 512 | 2,048 |
| head | 512 → 256 → 15 | 131,328 + 3,855 |
| with the backbone | | 2,303,743 |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 256
_MOST_HEADS = 8
_HEAD_DIM = 64


class TemporalAttentionPool(nn.Module):
    """Frame embeddings (B, F, D) → clip embedding (B, D), by multi-head attention from one learned query.

    With q the query and x_f the frames: k_f = W_k LN(x_f) + b_k, v_f alike, a_h = softmax_f(⟨W_q q + b_q, k_f⟩_h /
    √d_h) for each head h (Vaswani et al. 2017, §3.2; one learned query as the class token of arXiv 2103.17239, §2),
    pooled = LN(q + W_o concat_h(Σ_f a_h,f v_f) + b_o).

    A sum over frames knows no order: without `positions` the result is the same for every order of the frames. With
    them, a learned vector per frame position is added to its normalised embedding.

    Args:
        embed_dim: D.
        frames: F, of which only the position vectors depend.
        positions: learn a vector (F, D) of positions; it starts at zero.
    """

    def __init__(self, embed_dim: int, frames: int, *, positions: bool = False) -> None:
        super().__init__()
        self.heads = attention_heads(embed_dim)
        self.norm_frames = nn.LayerNorm(embed_dim)
        self.query = nn.Parameter(torch.empty(embed_dim))
        self.to_query = nn.Linear(embed_dim, embed_dim)
        self.to_key = nn.Linear(embed_dim, embed_dim)
        self.to_value = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)
        self.norm_clip = nn.LayerNorm(embed_dim)
        self.positions = nn.Parameter(torch.zeros(frames, embed_dim)) if positions else None
        nn.init.normal_(self.query, std=0.02)
        for layer in (self.to_query, self.to_key, self.to_value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def start_as_mean(self) -> None:
        """Make the pooling the mean of the normalised frames, LN(1/F Σ_f LN(x_f)), with the weights that there are.

        A query of zero attends to all frames alike, and values and output pass them on. With random weights instead, a
        small set of clips has to teach a million of them what a mean does from the first step on.
        """
        nn.init.zeros_(self.query)
        for layer in (self.to_value, self.out):
            nn.init.eye_(layer.weight)
        for layer in (self.to_query, self.to_key, self.to_value, self.out):
            nn.init.zeros_(layer.bias)
        for norm in (self.norm_frames, self.norm_clip):
            norm.reset_parameters()
        if self.positions is not None:
            nn.init.zeros_(self.positions)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frame embeddings (B, F, D) to clip embeddings (B, D)."""
        batch, count, width = frames.shape
        x = self.norm_frames(frames)
        if self.positions is not None:
            x = x + self.positions
        x = x.reshape(batch * count, width)  # two axes: a plain matrix product in every format
        split = (batch, count, self.heads, width // self.heads)
        keys = self.to_key(x).reshape(split).permute(0, 2, 3, 1)  # (B, heads, d, F)
        values = self.to_value(x).reshape(split).permute(0, 2, 1, 3)  # (B, heads, F, d)
        # a parameter as a module's input breaks torch's own flop counter (2.14) without gradients
        query = F.linear(self.query, self.to_query.weight, self.to_query.bias) * (width // self.heads) ** -0.5
        query = query.reshape(1, self.heads, 1, width // self.heads).expand(batch, -1, -1, -1)
        weights = F.softmax(query @ keys, dim=-1)  # (B, heads, 1, F)
        mixed = (weights @ values).reshape(batch, width)
        pooled: Tensor = self.norm_clip(self.query + self.out(mixed))
        return pooled


def attention_heads(embed_dim: int) -> int:
    """Return the number of heads: of 64 channels each, 8 at the most, and one where the width does not divide."""
    heads = min(_MOST_HEADS, max(1, embed_dim // _HEAD_DIM))
    while embed_dim % heads:
        heads -= 1
    return heads


class ClipHead(nn.Sequential):
    """Clip embedding (B, D) → hidden layer of 256 → logits (B, num_classes). SiLU, as in MobileViT."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__(nn.Linear(embed_dim, HEAD_WIDTH), nn.SiLU(), nn.Linear(HEAD_WIDTH, num_classes))

    @torch.no_grad()
    def start_as_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Make the head y → weight · y + bias, in spite of its hidden layer.

        silu(x) − silu(−x) = x, so two hidden units pass one direction on as it is. 128 pairs do for a weight of rank
        128; of one of a higher rank they pass on its largest singular directions. The scores of units that are left
        over start at zero.

        Args:
            weight: (num_classes, embed_dim).
            bias: (num_classes,).
        """
        hidden, scores = self[0], self[2]
        assert isinstance(hidden, nn.Linear) and isinstance(scores, nn.Linear)
        left, size, right = torch.linalg.svd(weight.double(), full_matrices=False)
        rank = min(len(size), HEAD_WIDTH // 2)
        root = size[:rank].sqrt()  # half of each singular value on either side, so that both layers learn alike
        into, out = root[:, None] * right[:rank], left[:, :rank] * root
        hidden.weight[: 2 * rank] = torch.cat([into, -into]).to(hidden.weight)
        hidden.bias[: 2 * rank] = 0.0
        nn.init.zeros_(scores.weight)
        scores.weight[:, : 2 * rank] = torch.cat([out, -out], dim=1).to(scores.weight)
        scores.bias.copy_(bias)

"""CLIP's causal text transformer (Radford et al. 2021, arXiv 2103.00020, §2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from edgekit.models.clip_spec import ClipSpec


def at_end_mark(x: Tensor, tokens: Tensor) -> Tensor:
    """Return the rows (B, W) of x (B, L, W) at each text's end mark, its highest id of tokens (B, L).

    A product with 0 and 1 in place of an index: exact, and every runtime has it.
    """
    ends = (tokens == tokens.amax(dim=1, keepdim=True)).to(x.dtype)
    return (x * ends[:, :, None]).sum(dim=1)


class _Block(nn.Module):
    """Pre-LayerNorm transformer block: x + attention(norm(x)), then x + mlp(norm(x)); causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, width / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        fed: Tensor = x + self.mlp(self.norm_mlp(x))
        return fed


class TextTower(nn.Module):
    """Token ids (B, L) int64 → causal transformer → the features at each text's end mark → (B, embed_dim)."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        width = spec.text_width
        self.token = nn.Embedding(spec.vocab_size, width)
        self.position = nn.Parameter(torch.empty(spec.context_length, width))
        self.blocks = nn.Sequential(*(_Block(width, spec.text_heads) for _ in range(spec.text_layers)))
        self.checkpointing = False
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, spec.embed_dim, bias=False)
        self._initialise(width, spec.text_layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ids (B, L) int64 to raw embeddings (B, embed_dim)."""
        # Causal attention never looks past the end mark, so columns that are padding in every text change nothing.
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing and self.training else block(x)
        embedding: Tensor = self.projection(self.norm(at_end_mark(x, tokens)))
        return embedding

    def _initialise(self, width: int, layers: int) -> None:
        """Initialise as CLIP does (§2.5; its code's `initialize_parameters`): residual writers shrink with depth."""
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writer = name.endswith(("out.weight", "mlp.2.weight"))
                narrow = (2 * width) ** -0.5 if "mlp.0" in name else width**-0.5
                nn.init.normal_(parameter, std=narrow * (2 * layers) ** -0.5 if writer else narrow)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

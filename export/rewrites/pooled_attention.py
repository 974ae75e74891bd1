"""The attention of the int8 students on tokens, so that its core can be written as each runtime likes it."""

from __future__ import annotations

from torch import Tensor, nn

from edgekit.export.rewrites.layers import SdpaCore
from edgekit.export.rewrites.tokens import to_rows
from edgekit.models.int8_student import PooledAttention


class TokenPooledAttention(nn.Module):
    """`PooledAttention` with a core of its own; the parts keep their names."""

    def __init__(self, attention: PooledAttention) -> None:
        super().__init__()
        self.reduce = attention.reduce
        self.q, self.k, self.v, self.proj = attention.q, attention.k, attention.v, attention.proj
        self.core = SdpaCore(attention.heads, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        batch, width, *size = x.shape
        pooled = self.reduce(x)
        q, k, v = (
            to_rows(part(source)).reshape(batch, -1, width)
            for part, source in ((self.q, x), (self.k, pooled), (self.v, pooled))
        )
        y: Tensor = self.proj(self.core(q, k, v).reshape(batch, *size, width).permute(0, 3, 1, 2))
        return y


def open_pooled_attention(model: nn.Module) -> int:
    """Take the core out of each `PooledAttention`; return how many. Same function, no algebra.

    A feature map and the tokens of its pixels are the same numbers; with the channels innermost, as int8 kernels
    hold a map, the change between the two is a change of name.
    """
    found = [(name, module) for name, module in model.named_modules() if type(module) is PooledAttention]
    found = [(name, module) for name, module in found if name]
    for name, module in found:
        model.set_submodule(name, TokenPooledAttention(module))
    return len(found)

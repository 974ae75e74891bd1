"""MobileViT v1 blocks on tokens (arXiv 2110.02178): from unfold to fold, everything is a matrix product on tokens."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, Mlp
from timm.models.mobilevit import MobileVitBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from edgekit.export.rewrites.folding import is_pointwise, pointwise_to_linear, rows_of
from edgekit.export.rewrites.layers import ConvAct, SdpaCore
from edgekit.export.rewrites.tokens import resize, round_up, to_map, to_patches, to_rows


class TokenAttention(nn.Module):
    """Multi-head attention with three projections in place of one, so that nothing has to be split or permuted."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        width = attention.attn_dim
        self.q, self.k, self.v = (rows_of(attention.qkv, slice(i * width, (i + 1) * width)) for i in range(3))
        self.core = SdpaCore(attention.num_heads, attention.scale)
        self.proj = attention.proj

    def forward(self, x: Tensor, group: int) -> Tensor:
        """Map tokens (G · group, d) to the same shape; attention is within each group of `group` tokens."""
        q, k, v = (linear(x).reshape(-1, group, linear.out_features) for linear in (self.q, self.k, self.v))
        mixed = self.core(q, k, v)
        y: Tensor = self.proj(mixed.reshape(-1, mixed.shape[-1]))
        return y


class TokenTransformer(nn.Module):
    """A pre-norm transformer block on 2-D tokens."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1: nn.Module = block.norm1
        self.attention = TokenAttention(block.attn)
        self.norm2: nn.Module = block.norm2
        self.fc1: nn.Linear = block.mlp.fc1
        self.act: nn.Module = block.mlp.act
        self.fc2: nn.Linear = block.mlp.fc2

    def forward(self, x: Tensor, group: int) -> Tensor:
        """Map tokens (G · group, d) to the same shape."""
        x = x + self.attention(self.norm1(x), group)
        y: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return y


class TokenMobileVitBlock(nn.Module):
    """timm's MobileVitBlock with its two pointwise convolutions on tokens."""

    def __init__(self, block: MobileVitBlock) -> None:
        super().__init__()
        self.patch: tuple[int, int] = tuple(block.patch_size)
        self.conv_kxk: ConvAct = block.conv_kxk
        self.project_in = pointwise_to_linear(block.conv_1x1)
        self.transformer = nn.ModuleList(TokenTransformer(layer) for layer in block.transformer)
        self.norm: nn.Module = block.norm
        self.project_out = pointwise_to_linear(block.conv_proj.conv)
        self.act: nn.Module = block.conv_proj.act
        self.conv_fusion: ConvAct | None = block.conv_fusion

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        local = self.conv_kxk(x)
        batch, _, height, width = local.shape
        even = round_up((height, width), self.patch)
        group = even[0] * even[1] // (self.patch[0] * self.patch[1])
        # Bilinear resizing mixes pixels with weights that sum to 1, so it commutes with a pointwise linear layer.
        rows = to_rows(resize(local, even, align_corners=False))
        # Projecting between the two permutations keeps ONNX Runtime from merging them into one slow one.
        tokens = to_patches(self.project_in(rows), batch, even, self.patch)
        for layer in self.transformer:
            tokens = layer(tokens, group)
        tokens = self.project_out(self.norm(tokens))
        if even == (height, width):  # an activation does not commute with resizing, but does with a permutation
            y = to_map(self.act(tokens), batch, even, self.patch)
        else:
            y = self.act(resize(to_map(tokens, batch, even, self.patch), (height, width), align_corners=False))
        return y if self.conv_fusion is None else self.conv_fusion(torch.cat((x, y), dim=1))


def move_to_tokens(model: nn.Module) -> int:
    """Replace each MobileVitBlock by its token form; return how many.

    unfold(conv1x1(x)) = conv1x1(unfold(x)) and conv1x1(fold(t)) = fold(conv1x1(t)): a pointwise convolution treats
    every pixel alike, so it may run on the unfolded tokens, where it is one matrix product in the layout that the
    transformer reads and writes. The fused qkv product becomes three: W = [Wq; Wk; Wv]. See `tokens.to_patches`
    for the unfold. Needs `fold_batch_norms` first.
    """
    found = [(name, block) for name, block in model.named_modules() if isinstance(block, MobileVitBlock)]
    found = [(name, block) for name, block in found if name and is_plain(block)]
    for name, block in found:
        model.set_submodule(name, TokenMobileVitBlock(block))
    return len(found)


def is_plain(block: MobileVitBlock) -> bool:
    """Return whether `block` is built as timm's MobileViT v1 nets build it, with BatchNorms folded."""
    convs = (block.conv_kxk, block.conv_proj) + ((block.conv_fusion,) if block.conv_fusion is not None else ())
    return (
        all(type(conv) is ConvAct for conv in convs)
        and is_pointwise(block.conv_1x1)
        and is_pointwise(block.conv_proj.conv)
        and isinstance(block.norm, nn.LayerNorm)
        and all(_is_plain_layer(layer) for layer in block.transformer)
    )


def _is_plain_layer(layer: Any) -> bool:
    if type(layer) is not Block or type(layer.attn) is not Attention or type(layer.mlp) is not Mlp:
        return False
    attention = layer.attn
    absent = (layer.ls1, layer.ls2, attention.q_norm, attention.k_norm, attention.norm, layer.mlp.norm)
    linear = (attention.qkv, attention.proj, layer.mlp.fc1, layer.mlp.fc2)
    return (
        all(isinstance(part, nn.Identity) for part in absent)
        and getattr(attention, "gate", None) is None
        and all(type(part) is nn.Linear for part in linear)
        and all(isinstance(norm, nn.LayerNorm) for norm in (layer.norm1, layer.norm2))
    )

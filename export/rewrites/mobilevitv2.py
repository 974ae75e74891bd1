"""MobileViT v2 blocks on tokens (arXiv 2206.02680): separable attention as matrix products, without expand_as."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import ConvMlp
from timm.layers.norm import GroupNorm1
from timm.models.mobilevit import LinearSelfAttention, LinearTransformerBlock, MobileVitV2Block
from torch import Tensor, nn

from edgekit.export.rewrites.folding import is_pointwise, pointwise_to_linear, rows_of
from edgekit.export.rewrites.layers import ConvAct, SampleNorm
from edgekit.export.rewrites.tokens import resize, round_up, to_map, to_patches, to_rows


class SumOfKeys(nn.Module):
    """The context vector as the paper writes it: Σ_n s_n · (Wk x_n + bk) (arXiv 2206.02680, eq. 3)."""

    def __init__(self, k: nn.Linear) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        """Map tokens (G, N, d) and scores (G, N, 1), which sum to 1 over N, to contexts (G, 1, d)."""
        context: Tensor = (self.k(x) * scores).sum(1, keepdim=True)
        return context


class KeyOfSum(SumOfKeys):
    """The same number by Wk (Σ_n s_n x_n) + bk: one key projection per group, not per token."""

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        """Map tokens (G, N, d) and scores (G, N, 1), which sum to 1 over N, to contexts (G, 1, d)."""
        pooled = torch.bmm(scores.transpose(1, 2), x).squeeze(1)  # 2-D: a linear layer like the others
        context: Tensor = self.k(pooled).unsqueeze(1)
        return context


class TokenLinearAttention(nn.Module):
    """Separable self-attention with its one projection to (1 + 2 d) outputs cut in three (arXiv 2206.02680, §3.2)."""

    def __init__(self, attention: LinearSelfAttention) -> None:
        super().__init__()
        d = attention.embed_dim
        self.q = rows_of(attention.qkv_proj, slice(0, 1))
        self.context: SumOfKeys = SumOfKeys(rows_of(attention.qkv_proj, slice(1, 1 + d)))
        self.v = rows_of(attention.qkv_proj, slice(1 + d, 1 + 2 * d))
        self.relu = nn.ReLU()
        self.proj = pointwise_to_linear(attention.out_proj)

    def forward(self, x: Tensor, group: int) -> Tensor:
        """Map tokens (G · group, d) to the same shape; attention is within each group of `group` tokens."""
        scores = torch.softmax(self.q(x).reshape(-1, group, 1), dim=1)
        context = self.context(x.reshape(-1, group, x.shape[-1]), scores)
        values = self.relu(self.v(x)).reshape(-1, group, context.shape[-1])
        y: Tensor = self.proj((values * context).reshape(-1, context.shape[-1]))
        return y


class TokenLinearTransformer(nn.Module):
    """timm's LinearTransformerBlock on 2-D tokens."""

    def __init__(self, block: LinearTransformerBlock) -> None:
        super().__init__()
        self.norm1 = SampleNorm(block.norm1)
        self.attention = TokenLinearAttention(block.attn)
        self.norm2 = SampleNorm(block.norm2)
        self.fc1 = pointwise_to_linear(block.mlp.fc1)
        self.act: nn.Module = block.mlp.act
        self.fc2 = pointwise_to_linear(block.mlp.fc2)

    def forward(self, x: Tensor, samples: int, group: int) -> Tensor:
        """Map the tokens (samples · P · group, d) of `samples` images to the same shape."""
        x = x + self.attention(self.norm1(x, samples), group)
        y: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x, samples))))
        return y


class TokenMobileVitV2Block(nn.Module):
    """timm's MobileVitV2Block with everything between the local convolution and the fold on tokens."""

    def __init__(self, block: MobileVitV2Block) -> None:
        super().__init__()
        self.patch: tuple[int, int] = tuple(block.patch_size)
        self.conv_kxk: ConvAct = block.conv_kxk
        self.project_in = pointwise_to_linear(block.conv_1x1)
        self.transformer = nn.ModuleList(TokenLinearTransformer(layer) for layer in block.transformer)
        self.norm = SampleNorm(block.norm)
        self.project_out = pointwise_to_linear(block.conv_proj.conv)
        self.act: nn.Module = block.conv_proj.act

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W'), H' and W' rounded up to multiples of the patch."""
        size = round_up((x.shape[2], x.shape[3]), self.patch)
        local = self.conv_kxk(resize(x, size, align_corners=True))
        group = size[0] * size[1] // (self.patch[0] * self.patch[1])
        samples = local.shape[0]
        tokens = to_patches(self.project_in(to_rows(local)), samples, size, self.patch)
        for layer in self.transformer:
            tokens = layer(tokens, samples, group)
        tokens = self.act(self.project_out(self.norm(tokens, samples)))
        return to_map(tokens, samples, size, self.patch)


def move_v2_to_tokens(model: nn.Module) -> int:
    """Replace each MobileVitV2Block by its token form; return how many.

    As `move_to_tokens` for v1. The 1x1 convolutions of attention and MLP act on each token alone, so they are matrix
    products on tokens too; the projection is cut in three, W = [wq; Wk; Wv], and the context vector is broadcast by
    the product itself, so that no `expand_as` is left for a converter to stumble on. Needs `fold_batch_norms` first.
    """
    found = [(name, block) for name, block in model.named_modules() if isinstance(block, MobileVitV2Block)]
    found = [(name, block) for name, block in found if name and is_plain(block)]
    for name, block in found:
        model.set_submodule(name, TokenMobileVitV2Block(block))
    return len(found)


def pool_before_keys(model: nn.Module) -> int:
    """Project keys after pooling in each separable attention; return how many.

    The scores are a softmax over the N tokens of a group, Σ_n s_n = 1, hence
    Σ_n s_n (Wk x_n + bk) = Wk (Σ_n s_n x_n) + bk: the (N, d) x (d, d) product shrinks to (1, d) x (d, d), a seventh of
    the block's multiplications.
    """
    found = [module for module in model.modules() if isinstance(module, TokenLinearAttention)]
    for attention in found:
        attention.context = KeyOfSum(attention.context.k)
    return len(found)


def is_plain(block: MobileVitV2Block) -> bool:
    """Return whether `block` is built as timm's MobileViT v2 nets build it, with BatchNorms folded."""
    return (
        type(block.conv_kxk) is ConvAct
        and type(block.conv_proj) is ConvAct
        and is_pointwise(block.conv_1x1)
        and is_pointwise(block.conv_proj.conv)
        and isinstance(block.norm, GroupNorm1)
        and all(_is_plain_layer(layer) for layer in block.transformer)
    )


def _is_plain_layer(layer: Any) -> bool:
    if type(layer) is not LinearTransformerBlock or type(layer.attn) is not LinearSelfAttention:
        return False
    if type(layer.mlp) is not ConvMlp:
        return False
    pointwise = (layer.attn.qkv_proj, layer.attn.out_proj, layer.mlp.fc1, layer.mlp.fc2)
    return (
        isinstance(layer.mlp.norm, nn.Identity)
        and all(is_pointwise(conv) for conv in pointwise)
        and all(isinstance(norm, GroupNorm1) for norm in (layer.norm1, layer.norm2))
    )

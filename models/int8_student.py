"""MobileViT made for 8 bits: the stages, widths and depths of timm's nets, from operators that int8 kernels run whole.

`mobilevit_xxs_int8`, `_xs_int8` and `_s_int8` are MobileViT (arXiv 2110.02178) with three changes, each of which takes
away work that 8 bits cannot speed up:

- ReLU for SiLU in the stem and the first three stages, where nine tenths of all activations are: it is the clamp that
  an int8 convolution ends with anyway. On the small maps after them a SiLU costs little, and trains better.
- BatchNorm at the end of each residual branch for LayerNorm at its start: folded into the weights, it is gone, and the
  residual stream stays in 8 bits. So tokens never leave the feature map, and there is nothing to unfold.
- Keys and values from a map of the last stage's resolution, pooled by a depthwise convolution (spatial reduction, Wang
  et al. 2021, arXiv 2102.12122, §3.3), for attention within every fourth pixel: at 256 px 1024 × 64 scores per head in
  place of 4 × 256 × 256. Heads have at least 32 channels, so that there are fewer of them. The softmax, which stays
  float, shrinks by as much, and each pixel sees the whole picture.

Linear attention without a softmax was tried: its result is cubic in the input, so that batch norms of few pictures let
it run away on others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from timm.layers import ConvNormAct
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg, LayerFn, register_block
from timm.models.mobilevit import model_cfgs
from torch import Tensor, cat, nn

BLOCK = "mobilevit_int8"
MOST_HEADS, HEAD_DIM = 4, 32
"""As many heads as the plain net has, but none of fewer channels."""

POOLED_STRIDE = 32
"""Keys and values have one token for so many pixels of the picture in each direction: the last stage's resolution."""

RELU_STAGES = 3
"""The first stages, whose activation is a ReLU."""

BRANCH_STD = 0.02
"""Deviation of the transformers' initial weights. A norm follows them, so that it is the pace they learn at."""


class PooledAttention(nn.Module):
    """Multi-head attention of every pixel to the pooled map: softmax(q kᵀ) v per head.

    The 1/sqrt(d) of attention is the initial weight of the queries' norm, and so costs nothing later.

    Args:
        dim: channels.
        heads: what `dim` is divided into.
        window: side of the windows that are pooled to one key and value each.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduce: nn.Module = nn.Identity()
        if window > 1:
            self.reduce = ConvNormAct(dim, dim, window, stride=window, padding=0, groups=dim, apply_act=False)
        self.q, self.k, self.v, self.proj = (ConvNormAct(dim, dim, 1, apply_act=False) for _ in range(4))

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Start with the mean of each window, and with queries of deviation 1/sqrt(d); timm calls this."""
        if isinstance(self.reduce, ConvNormAct):
            nn.init.constant_(self.reduce.conv.weight, 1 / self.reduce.conv.weight[0].numel())
        nn.init.constant_(self.q.bn.weight, (self.q.conv.out_channels / self.heads) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        pooled = self.reduce(x)
        q, k, v = (
            part(source).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
            for part, source in ((self.q, x), (self.k, pooled), (self.v, pooled))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)  # (B, heads, HW, d)
        y: Tensor = self.proj(mixed.transpose(2, 3).reshape(x.shape))
        return y


class Residual(nn.Module):
    """x + branch(x); a module of its own, so that the sum has a name."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Start with small weights and, if asked, with a branch that adds nothing; timm calls this."""
        units = [module for module in self.branch.modules() if isinstance(module, ConvNormAct)]
        for unit in units:
            if unit.conv.groups == 1:
                nn.init.normal_(unit.conv.weight, std=BRANCH_STD)
        if zero_init_last:
            nn.init.zeros_(units[-1].bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        y: Tensor = x + self.branch(x)
        return y


def _transformer(dim: int, depth: int, window: int, mlp_ratio: float) -> nn.Sequential:
    """Return `depth` times attention and MLP, on maps (B, dim, H, W); every norm follows a convolution."""
    hidden, heads = int(dim * mlp_ratio), min(MOST_HEADS, dim // HEAD_DIM)
    branches: list[nn.Module] = []
    for _ in range(depth):
        branches.append(PooledAttention(dim, heads, window))
        branches.append(nn.Sequential(ConvNormAct(dim, hidden, 1), ConvNormAct(hidden, dim, 1, apply_act=False)))
    return nn.Sequential(*map(Residual, branches))


class Int8MobileVitBlock(nn.Module):
    """The MobileViT block on the feature map: local convolution, transformer, fusion with the input (§3.1)."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        layers: LayerFn,
        transformer_dim: int,
        transformer_depth: int,
        window: int,
        mlp_ratio: float = 2.0,
        **_others: Any,  # what timm hands to every block
    ) -> None:
        super().__init__()
        self.conv_kxk = layers.conv_norm_act(in_chs, in_chs, kernel_size=3)
        self.conv_1x1 = layers.conv_norm_act(in_chs, transformer_dim, kernel_size=1, apply_act=False)
        self.transformer = _transformer(transformer_dim, transformer_depth, window, mlp_ratio)
        self.conv_proj = layers.conv_norm_act(transformer_dim, out_chs, kernel_size=1)
        self.conv_fusion = layers.conv_norm_act(in_chs + out_chs, out_chs, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        y = self.conv_proj(self.transformer(self.conv_1x1(self.conv_kxk(x))))
        fused: Tensor = self.conv_fusion(cat((x, y), dim=1))
        return fused


def _config(base: str) -> ByoModelCfg:
    """Return the config of timm's `base` with the blocks and the activation of this file."""
    config, stride, stages = model_cfgs[base], 2, []
    for stage in config.blocks:
        blocks = []
        for block in (stage,) if isinstance(stage, ByoBlockCfg) else stage:
            stride *= block.s
            if block.type == "mobilevit":
                given = {k: v for k, v in block.block_kwargs.items() if k != "patch_size"}
                block = replace(block, type=BLOCK, block_kwargs={**given, "window": max(1, POOLED_STRIDE // stride)})
            blocks.append(block)
        stages.append(tuple(blocks))
    return replace(config, blocks=tuple(stages), act_layer="relu")


def _create(variant: str, pretrained: bool, **options: Any) -> ByobNet:
    net: ByobNet = build_model_with_cfg(
        ByobNet,
        variant,
        pretrained,
        model_cfg=_config(variant.removesuffix("_int8")),
        feature_cfg={"flatten_sequential": True},
        **options,
    )
    late = (*(f"stages.{number}." for number in range(RELU_STAGES, len(net.stages))), "final_conv.")
    for name in [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]:
        if name.startswith(late):
            net.set_submodule(name, nn.SiLU(inplace=True))
    return net


# timm's own registry, so that everything that asks timm for a net by name finds these too
register_block(BLOCK, Int8MobileVitBlock)
_CONTRACT = {
    "num_classes": 1000,
    "input_size": (3, 256, 256),
    "pool_size": (8, 8),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "first_conv": "stem.conv",
    "classifier": "head.fc",
    "fixed_input_size": False,
}
default_cfgs = generate_default_cfgs(
    {name: dict(_CONTRACT) for name in ("mobilevit_xxs_int8", "mobilevit_xs_int8", "mobilevit_s_int8")}
)


def mobilevit_xxs_int8(pretrained: bool = False, **options: Any) -> ByobNet:
    """Build mobilevit_xxs for 8 bits. There are no pretrained weights."""
    return _create("mobilevit_xxs_int8", pretrained, **options)


def mobilevit_xs_int8(pretrained: bool = False, **options: Any) -> ByobNet:
    """Build mobilevit_xs for 8 bits. There are no pretrained weights."""
    return _create("mobilevit_xs_int8", pretrained, **options)


def mobilevit_s_int8(pretrained: bool = False, **options: Any) -> ByobNet:
    """Build mobilevit_s for 8 bits. There are no pretrained weights."""
    return _create("mobilevit_s_int8", pretrained, **options)


for _entry in (mobilevit_xxs_int8, mobilevit_xs_int8, mobilevit_s_int8):
    register_model(_entry)

"""Exact rewrites: the same function, written as each runtime likes it. `REWRITES` says which format gets which.

None changes what is computed beyond the rounding of float32; each is one function whose docstring holds the algebra.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from edgekit.export.rewrites.batchnorm import fold_batch_norms
from edgekit.export.rewrites.mobilevit import move_to_tokens
from edgekit.export.rewrites.mobilevitv2 import move_v2_to_tokens, pool_before_keys
from edgekit.export.rewrites.pooled_attention import open_pooled_attention
from edgekit.export.rewrites.transformer import (
    attention_as_bmm,
    attention_as_onnx_node,
    centre_residual_stream,
    fold_attention_biases,
    fold_attention_scale,
    fold_norm_affine,
    mean_as_linear,
    rms_norm_as_onnx_node,
    silu_as_one_node,
)

Target = Literal["onnx", "tflite", "coreml", "executorch"]


@dataclass(frozen=True)
class Rewrite:
    """One rewrite.

    Attributes:
        name: short name, as reports show it.
        apply: changes the net in place; returns at how many places.
        why: what it gains.
        needs: what a net must have for it to apply.
    """

    name: str
    apply: Callable[[nn.Module], int]
    why: str
    needs: str


BATCH_NORM = Rewrite("batch-norm", fold_batch_norms, "one op less per convolution", "a BatchNorm right after a Conv2d")
TOKENS = Rewrite("tokens", move_to_tokens, "no transposes around pointwise convolutions", "a timm MobileVitBlock")
TOKENS_V2 = Rewrite("tokens-v2", move_v2_to_tokens, "converts, and runs as matrix products", "a timm MobileVitV2Block")
POOLED = Rewrite(
    "pooled-attention", open_pooled_attention, "lets the attention below be one kernel", "a block of the int8 students"
)
POOL = Rewrite("pool-before-keys", pool_before_keys, "a seventh of the products less", "a timm MobileVitV2Block")
AFFINE = Rewrite("norm-affine", fold_norm_affine, "two ops less per norm", "a timm MobileViT block")
SCALE = Rewrite("attention-scale", fold_attention_scale, "one op less per attention", "a timm MobileVitBlock")
BIASES = Rewrite("attention-biases", fold_attention_biases, "two passes over the tokens less", "a timm MobileVitBlock")
RMS = Rewrite(
    "rms-norm",
    centre_residual_stream,
    "four ops less per norm",
    "a timm MobileVitBlock (v2's GroupNorm sees a token's mean)",
)
RMS_NODE = Rewrite("rms-norm-node", rms_norm_as_onnx_node, "0.6 of LayerNorm's time", "a timm MobileVitBlock")
MEAN = Rewrite("mean-as-linear", mean_as_linear, "one XNNPACK delegate, not 49", "a timm MobileVitBlock")
ATTENTION_NODE = Rewrite("attention-node", attention_as_onnx_node, "one kernel per attention", "a MobileViT block")
ATTENTION_BMM = Rewrite("attention-bmm", attention_as_bmm, "3-D products stay in XNNPACK", "a MobileViT block")
SILU = Rewrite("silu-node", silu_as_one_node, "stays one kernel between quantized ops", "an nn.SiLU")

REWRITES: Mapping[Target, tuple[Rewrite, ...]] = {
    "onnx": (BATCH_NORM, TOKENS, TOKENS_V2, POOLED, POOL, AFFINE, SCALE, BIASES, RMS, RMS_NODE, ATTENTION_NODE, SILU),
    "tflite": (BATCH_NORM, TOKENS, TOKENS_V2, POOLED, POOL, AFFINE, SCALE, BIASES, RMS, ATTENTION_BMM),
    "executorch": (BATCH_NORM, TOKENS, TOKENS_V2, POOLED, POOL, AFFINE, SCALE, BIASES, RMS, MEAN, ATTENTION_BMM),
    # Core ML's own passes like the plain net: on tokens it gets 78 transposes in place of 30.
    "coreml": (BATCH_NORM,),
}


@dataclass(frozen=True)
class RewriteReport:
    """What was done to a net.

    Attributes:
        applied: names of the rewrites that changed something, in order.
        skipped: (name, reason) of those that did not.
    """

    applied: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def rewrite(model: nn.Module, target: Target) -> tuple[nn.Module, RewriteReport]:
    """Return a rewritten copy of `model` in eval mode, and what was done; `model` itself is not changed.

    A timm backbone may stand anywhere inside `model`. Nets other than MobileViT get what applies to any net.
    """
    # The blocks are replaced in their parents: a holder makes a block that is itself the net replaceable too.
    holder = nn.Sequential(copy.deepcopy(model)).eval().requires_grad_(False)
    applied, skipped = [], []
    for step in REWRITES[target]:
        if step.apply(holder):
            applied.append(step.name)
        else:
            skipped.append((step.name, f"the net has not {step.needs} in the form this rewrite knows"))
    return holder[0], RewriteReport(tuple(applied), tuple(skipped))

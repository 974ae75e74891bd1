"""The few layers that rewritten nets are made of; each is the same function in eager mode and in the exported graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvAct(nn.Module):
    """A convolution with its BatchNorm already folded in, then an activation (or Identity)."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        y: Tensor = self.act(self.conv(x))
        return y


class SiLU(nn.Module):
    """x · sigmoid(x); one `com.microsoft::QuickGelu(alpha=1)` node in an ONNX graph.

    As the two nodes Sigmoid and Mul it is fused by ONNX Runtime in a float graph only: quantize/dequantize pairs
    around the two prevent the fusion.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        if torch.compiler.is_exporting():
            return torch.onnx.ops.symbolic(
                "com.microsoft::QuickGelu", (x,), {"alpha": 1.0}, dtype=x.dtype, shape=x.shape, version=1
            )
        return F.silu(x)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) over the last axis, without affine (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)


class OnnxRMSNorm(RMSNorm):
    """The same as one `RMSNormalization` node of ONNX opset 23."""

    one: Tensor

    def __init__(self, eps: float, width: int, like: Tensor) -> None:
        super().__init__(eps)
        self.register_buffer("one", torch.ones(width, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        if not torch.compiler.is_exporting():
            return super().forward(x)
        return torch.onnx.ops.symbolic(
            "RMSNormalization",
            (x, self.one),
            {"axis": -1, "epsilon": self.eps},
            dtype=x.dtype,
            shape=x.shape,
            version=23,
        )


class MeanByLinear(RMSNorm):
    """The same, its mean as a product with the constant row (1/d, …, 1/d)."""

    mean: Tensor

    def __init__(self, eps: float, width: int, like: Tensor) -> None:
        super().__init__(eps)
        self.register_buffer("mean", torch.full((1, width), 1 / width, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        return x * torch.rsqrt(F.linear(x * x, self.mean) + self.eps)


class SampleNorm(nn.Module):
    """GroupNorm with one group on tokens: subtract the mean and divide by the deviation of a whole sample, then affine.

    Attributes:
        weight, bias: (d,) each, or None once they are folded into the readers.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """Map the tokens (samples · T, d) of `samples` images to the same shape."""
        flat = x.reshape(samples, -1)
        centred = flat - flat.mean(1, keepdim=True)
        y = (centred * torch.rsqrt((centred * centred).mean(1, keepdim=True) + self.eps)).reshape(x.shape)
        return y if self.weight is None or self.bias is None else y * self.weight + self.bias


class SdpaCore(nn.Module):
    """softmax(q kᵀ · scale) v per head, through PyTorch's scaled_dot_product_attention."""

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map q (G, N, heads · d), k and v (G, M, heads · d) to (G, N, heads · d); attention is within each group."""
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)


class BmmCore(SdpaCore):
    """The same as two 3-D batched products, the form that LiteRT and ExecuTorch hand to XNNPACK whole.

    The keys are permuted straight to (G · heads, d, N): one transpose, not two.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map q (G, N, heads · d), k and v (G, M, heads · d) to (G, N, heads · d)."""
        (groups, tokens, width), keys = q.shape, k.shape[1]
        heads, d = self.heads, width // self.heads
        if self.scale != 1.0:
            q = q * self.scale
        q, v = (t.reshape(-1, n, heads, d).transpose(1, 2).reshape(-1, n, d) for t, n in ((q, tokens), (v, keys)))
        k = k.reshape(-1, keys, heads, d).permute(0, 2, 3, 1).reshape(-1, d, keys)
        mixed = torch.bmm(torch.softmax(torch.bmm(q, k), dim=-1), v)
        return mixed.reshape(groups, heads, tokens, d).transpose(1, 2).reshape(groups, tokens, width)


class OnnxAttentionCore(SdpaCore):
    """The same as one `Attention` node of ONNX opset 23, which takes (G, N, heads · d) and splits the heads itself."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map q (G, N, heads · d), k and v (G, M, heads · d) to (G, N, heads · d)."""
        if not torch.compiler.is_exporting():
            return super().forward(q, k, v)
        return torch.onnx.ops.symbolic(
            "Attention",
            (q, k, v),
            {"q_num_heads": self.heads, "kv_num_heads": self.heads, "scale": self.scale},
            dtype=q.dtype,
            shape=q.shape,
            version=23,
        )

"""Every tolerance the tests use, with its reason."""

FP32_EXACT = 1e-5
"""Same arithmetic in another order: float32 rounding over a few thousand additions."""

FP32_EXPORT = 1e-3
"""Logits (of order 10) after another runtime's kernels: fused multiply-add, other exp() approximations."""

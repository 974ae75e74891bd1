"""Every tolerance the tests use, with its reason."""

FP32_EXACT = 1e-5
"""Same arithmetic in another order: float32 rounding over a few thousand additions."""

FP32_EXPORT = 1e-3
"""Logits (of order 10) after another runtime's kernels: fused multiply-add, other exp() approximations."""

PROCESSES = 1e-5
"""Losses and weights after a few dozen steps in one and in several processes: the same sums in another order, which
training carries on; 1e-7 to 3e-7 were measured."""

COMPILED = 1e-5
"""Losses and weights after two dozen steps through torch.compile and without: fused kernels round in another order;
6e-8 was measured."""

SIMULATED_GAIN_DB = 3.0
"""How much closer the simulation of an int8 file is to the file than the float student is, three stages deep; measured
were 18 to 24 dB (ONNX) and 3.9 to 5.9 dB (TFLite). One sum rounded to the other side of a code moves all that follows,
so even two settings of one runtime end apart: ONNX Runtime with and without its optimizer by 41 dB through a net."""

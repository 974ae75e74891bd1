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

SIMULATED_GAIN_DB = {"onnx": 3.0, "tflite": 3.0, "coreml": 0.5}
"""How much closer the simulation of an 8-bit file is to the file than the float student is, three stages deep; measured
were 18 to 24 dB (ONNX), 3.9 to 5.9 dB (TFLite) and 1.4 to 1.7 dB (Core ML). One sum rounded to the other side of a code
moves all that follows, so even two settings of one runtime end apart: ONNX Runtime with and without its optimizer by
41 dB through a net. Core ML's float16 moves up to 3 weights in a hundred to the next code."""

SCALES_OF_A_FILE = {"onnx": 1e-3, "tflite": 1e-3, "coreml": 2e-3}
"""Relative; a Core ML program computes its calibration pictures and holds its scales in float16. Measured: 1.3e-3."""

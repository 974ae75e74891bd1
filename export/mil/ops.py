"""The table of MIL operations that the interpreter knows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from edgekit.export.mil import constexpr as mil_constexpr
from edgekit.export.mil import elementwise as el
from edgekit.export.mil import gather as mil_gather
from edgekit.export.mil import nn as mil_nn
from edgekit.export.mil import resize as mil_resize
from edgekit.export.mil import shape as mil_shape
from edgekit.export.mil.kernel import Call, Kernel, OpFunction, UnknownOpError
from edgekit.export.mil.program import Operation


def identity(call: Call) -> Kernel:
    """Give x. Also `cast`: the executor gives every result its declared type."""
    return Kernel(("x",), lambda x: x)


def classify(call: Call) -> Kernel:
    """Give the index of the best class, and the scores (B, classes); names are put to them outside the program."""
    return Kernel(("probabilities",), lambda scores: [scores.reshape(-1, scores.shape[-1]).argmax(-1), scores])


OPS: Mapping[str, OpFunction] = {
    # elementwise, one operand
    "abs": el.unary(torch.abs),
    "acos": el.unary(torch.acos),
    "asin": el.unary(torch.asin),
    "atan": el.unary(torch.atan),
    "atanh": el.unary(torch.atanh),
    "ceil": el.unary(torch.ceil),
    "cos": el.unary(torch.cos),
    "cosh": el.unary(torch.cosh),
    "erf": el.unary(torch.erf),
    "exp": el.unary(torch.exp),
    "exp2": el.unary(torch.exp2),
    "floor": el.unary(torch.floor),
    "inverse": el.shifted(torch.reciprocal, 1e-4),
    "log": el.shifted(torch.log),
    "logical_not": el.unary(torch.logical_not),
    "round": el.unary(torch.round),
    "rsqrt": el.shifted(torch.rsqrt, 1e-12),
    "sign": el.unary(torch.sign),
    "sin": el.unary(torch.sin),
    "sinh": el.unary(torch.sinh),
    "sqrt": el.unary(torch.sqrt),
    "square": el.unary(torch.square),
    "tan": el.unary(torch.tan),
    "tanh": el.unary(torch.tanh),
    # activations
    "clamped_relu": el.clamped_relu,
    "clip": el.clip,
    "elu": el.elu,
    "gelu": el.gelu,
    "leaky_relu": el.leaky_relu,
    "linear_activation": el.linear_activation,
    "prelu": el.prelu,
    "relu": el.unary(torch.relu),
    "relu6": el.unary(F.relu6),
    "scaled_tanh": el.scaled_tanh,
    "sigmoid": el.unary(torch.sigmoid),
    "sigmoid_hard": el.sigmoid_hard,
    "silu": el.unary(F.silu),
    "softmax": el.softmax,
    "softplus": el.unary(el.softplus),
    "softplus_parametric": el.softplus_parametric,
    "softsign": el.unary(F.softsign),
    "threshold": el.threshold,
    "thresholded_relu": el.thresholded_relu,
    # elementwise, two operands
    "add": el.binary(torch.add),
    "equal": el.binary(torch.eq),
    "floor_div": el.binary(torch.floor_divide),
    "greater": el.binary(torch.gt),
    "greater_equal": el.binary(torch.ge),
    "less": el.binary(torch.lt),
    "less_equal": el.binary(torch.le),
    "logical_and": el.binary(torch.logical_and),
    "logical_or": el.binary(torch.logical_or),
    "logical_xor": el.binary(torch.logical_xor),
    "maximum": el.binary(torch.maximum),
    "minimum": el.binary(torch.minimum),
    "mod": el.binary(torch.remainder),
    "mul": el.binary(torch.mul),
    "not_equal": el.binary(torch.ne),
    "pow": el.binary(torch.pow),
    "real_div": el.binary(torch.true_divide),
    "sub": el.binary(torch.sub),
    "select": el.select,
    # reductions
    "cumsum": el.cumsum,
    "reduce_argmax": el.reduce_arg(torch.argmax),
    "reduce_argmin": el.reduce_arg(torch.argmin),
    "reduce_l1_norm": el.reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_l2_norm": el.reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_log_sum": el.reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": el.reduce(el.log_sum_exp),
    "reduce_max": el.reduce(el.highest),
    "reduce_mean": el.reduce(el.mean),
    "reduce_min": el.reduce(el.lowest),
    "reduce_prod": el.reduce(el.product),
    "reduce_sum": el.reduce(el.total),
    "reduce_sum_square": el.reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    # layers
    "avg_pool": mil_nn.average_pool(1),
    "batch_norm": mil_nn.batch_norm,
    "conv": mil_nn.conv,
    "conv_transpose": mil_nn.conv_transpose,
    "einsum": mil_nn.einsum,
    "instance_norm": mil_nn.instance_norm,
    "l2_norm": mil_nn.l2_norm,
    "l2_pool": mil_nn.average_pool(2),
    "layer_norm": mil_nn.layer_norm,
    "linear": mil_nn.linear,
    "matmul": mil_nn.matmul,
    "max_pool": mil_nn.max_pool,
    "scaled_dot_product_attention": mil_nn.attention,
    # resolution
    "resize_bilinear": mil_resize.resize_bilinear,
    "resize_nearest_neighbor": mil_resize.resize_nearest,
    "upsample_bilinear": mil_resize.upsample_bilinear,
    "upsample_nearest_neighbor": mil_resize.upsample_nearest,
    # shapes
    "band_part": mil_shape.band_part,
    "cast": identity,
    "concat": mil_shape.concat,
    "depth_to_space": mil_shape.depth_to_space,
    "expand_dims": mil_shape.expand_dims,
    "fill": mil_shape.fill,
    "fill_like": mil_shape.fill_like,
    "flatten2d": mil_shape.flatten2d,
    "identity": identity,
    "one_hot": mil_shape.one_hot,
    "pad": mil_shape.pad,
    "pixel_shuffle": mil_shape.pixel_shuffle,
    "pixel_unshuffle": mil_shape.pixel_unshuffle,
    "range_1d": mil_shape.range_1d,
    "reshape": mil_shape.reshape,
    "reverse": mil_shape.reverse,
    "shape": mil_shape.shape,
    "slice_by_index": mil_shape.slice_by_index,
    "slice_by_size": mil_shape.slice_by_size,
    "space_to_depth": mil_shape.space_to_depth,
    "split": mil_shape.split,
    "squeeze": mil_shape.squeeze,
    "stack": mil_shape.stack,
    "tile": mil_shape.tile,
    "transpose": mil_shape.transpose,
    # picking
    "argsort": mil_gather.argsort,
    "gather": mil_gather.gather,
    "gather_along_axis": mil_gather.gather_along_axis,
    "gather_nd": mil_gather.gather_nd,
    "topk": mil_gather.topk,
    # compressed weights and quantized activations
    "constexpr_affine_dequantize": mil_constexpr.affine_dequantize,
    "constexpr_blockwise_shift_scale": mil_constexpr.blockwise_shift_scale,
    "constexpr_cast": mil_constexpr.constexpr_cast,
    "constexpr_lut_to_dense": mil_constexpr.lut_to_dense,
    "constexpr_lut_to_sparse": mil_constexpr.lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": mil_constexpr.sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": mil_constexpr.sparse_to_dense,
    "dequantize": mil_constexpr.dequantize,
    "quantize": mil_constexpr.quantize,
    # a classifier's outputs
    "classify": classify,
}
"""MIL operation -> implementation, for opsets iOS 15 to iOS 18."""


def implementation(operation: Operation) -> OpFunction:
    """Return the implementation of an operation.

    Raises:
        UnknownOpError: there is none; the operation is named with its place.
    """
    if operation.type not in OPS:
        raise UnknownOpError(f"{operation.place}: the interpreter does not know this operation")
    return OPS[operation.type]

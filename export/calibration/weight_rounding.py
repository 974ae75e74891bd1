"""Round weights to 8 bits so that what a layer computes changes least, in place of rounding each to the nearest value.

The method is GPTQ (Frantar et al. 2022, arXiv 2210.17323, §3; optimal brain quantization, 2208.11580), on the grid that
converters use anyway: they then find the rounded weights again, bit for bit, and nothing else need know of this.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from edgekit.errors import DataError
from edgekit.export.rewrites.batchnorm import fold_batch_norms
from edgekit.export.session import FloatArray

LEVELS = 127
"""Symmetric 8 bits: the largest weight of an output channel is 127 steps."""

LEAST_WEIGHTS = 2048
"""Smaller layers are not worth fewer bits (coremltools' default, too), unless they make up more than `SMALL_SHARE`."""

SMALL_SHARE = 0.25
"""Of the weights. A narrow net all of small layers would else stay float and be called int8."""

FLOAT_SHARE = 0.03
"""Of the weights, in layers that stay float: the smallest ones are the most sensitive for their size; 3 % of the file
buy 1 to 3 dB."""

MAX_PICTURES = 256
MAX_PLACES = 256
"""Places of a feature map, evenly spread, that are looked at in each picture: neighbours say the same again."""

DAMPING = 0.01
"""Added to the diagonal of the moments, as a share of its mean (the paper's §3.3): inputs that are always zero have no
inverse."""

_BLOCK = 128


def least_quantized(model: nn.Module) -> int:
    """Return the number of weights from which on layers are quantized, so that little is in the rest.

    That is `FLOAT_SHARE` at most where layers of `LEAST_WEIGHTS` hold more than that, else what smaller ones hold.
    """
    counts = _weights_of_layers(model)
    total = sum(size * count for size, count in counts.items())
    least, kept = 1 if _narrow(counts) else LEAST_WEIGHTS, 0
    for size, count in sorted(counts.items()):
        kept += size * count
        if kept > FLOAT_SHARE * total:
            break
        least = max(least, size + 1)
    return least


def least_palettized(model: nn.Module, bits: int) -> int:
    """Return the number of weights from which on layers get a palette of 2^bits float16 values.

    That is `LEAST_WEIGHTS`; in a narrow net all layers that a palette makes smaller, itself included.
    """
    pays = (16 << bits) // (16 - bits) + 1  # n weights: 16 n bits, or bits · n and 16 for each of the 2^bits values
    return pays if _narrow(_weights_of_layers(model)) else LEAST_WEIGHTS


def _weights_of_layers(model: nn.Module) -> Counter[int]:
    """Return how many layers have so many weights."""
    return Counter(layer.weight.numel() for layer in _layers(model).values())


def _narrow(counts: Counter[int]) -> bool:
    """Return whether more than `SMALL_SHARE` of the weights is in layers below `LEAST_WEIGHTS`."""
    small = sum(size * count for size, count in counts.items() if size < LEAST_WEIGHTS)
    return small > SMALL_SHARE * sum(size * count for size, count in counts.items())


def with_rounded_weights(model: nn.Module, pictures: Iterable[FloatArray], least: int = LEAST_WEIGHTS) -> nn.Module:
    """Return a copy of `model` with batch norms folded and the weights of its larger layers on their 8-bit grid.

    Args:
        model: takes images (B, 3, H, W) float32 in [0, 1]; in eval mode. It is not changed.
        pictures: batches of such images of the training split, of which the first `MAX_PICTURES` are used.
        least: layers of fewer weights stay as they are.
    """
    rounded = copy.deepcopy(model).eval()
    fold_batch_norms(rounded)
    layers = {name: layer for name, layer in _layers(rounded).items() if layer.weight.numel() >= least}
    moments = _input_moments(rounded, layers, pictures)
    with torch.no_grad():
        for name, layer in layers.items():
            if name in moments:  # a layer that was not called keeps its weights
                groups = layer.weight.detach().flatten(1).chunk(len(moments[name]))
                parts = [round_to_grid(*pair) for pair in zip(groups, moments[name], strict=True)]
                layer.weight.copy_(torch.cat(parts).reshape(layer.weight.shape))
    return rounded


def round_to_grid(weights: Tensor, moments: Tensor) -> Tensor:
    """Round weights to multiples of each row's step, max|w| / 127, with the least change of the outputs.

    The outputs change by the mean of |(Q - W) x|² = tr((Q - W) M (Q - W)ᵀ), where M is the mean of x xᵀ. Columns are
    rounded one after the other; the error that one leaves is made good by those not yet rounded, in the direction that
    the inverse of M gives. Each row's largest weight stays where it is, so that the step can be found again from Q.

    Args:
        weights: (O, I) float.
        moments: (I, I) float64, symmetric; a positive factor does not matter.

    Returns:
        (O, I) float32.
    """
    left = weights.double().clone()
    step = (left.abs().amax(dim=1) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    largest = left.abs().argmax(dim=1)
    top = LEVELS * torch.sign(left.gather(1, largest[:, None])[:, 0])
    # what varies most is rounded first, while there is most left to make it good
    order = torch.argsort(moments.diagonal(), descending=True)
    left, place = left[:, order], torch.argsort(order)[largest]
    factor = _inverse_factor(moments[order][:, order])
    rounded = torch.empty_like(left)
    for begin in range(0, left.shape[1], _BLOCK):
        end = min(begin + _BLOCK, left.shape[1])
        errors = torch.zeros_like(left[:, begin:end])
        for column in range(begin, end):
            levels = torch.round(left[:, column] / step).clamp(-LEVELS, LEVELS)
            levels = torch.where(place == column, top, levels)
            rounded[:, column] = levels * step
            error = (left[:, column] - rounded[:, column]) / factor[column, column]
            left[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - begin] = error
        left[:, end:] -= errors @ factor[begin:end, end:]
    return rounded[:, torch.argsort(order)].float()


def _layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def _inverse_factor(moments: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments.

    Raises:
        DataError: NaN or infinity in them.
    """
    if not bool(moments.isfinite().all()):
        raise DataError("activations are not finite on the calibration pictures: check the checkpoint and the pictures")
    diagonal = moments.diagonal()
    damped = moments + (DAMPING * diagonal.mean() + (diagonal.mean() == 0)) * torch.eye(len(moments)).double()
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return factor


def _input_moments(
    model: nn.Module, layers: dict[str, nn.Conv2d | nn.Linear], pictures: Iterable[FloatArray]
) -> dict[str, Tensor]:
    """Return the sums of x xᵀ over what each layer reads, (groups, I, I) float64, by the layer's name."""
    moments: dict[str, Tensor] = {}

    def observer(name: str, layer: nn.Conv2d | nn.Linear) -> Callable[..., None]:
        def observe(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = _inputs_of_products(layer, inputs[0].detach())
            moments[name] = moments.get(name, torch.zeros(())) + (x @ x.mT).double()

        return observe

    handles: list[RemovableHandle] = [
        layer.register_forward_pre_hook(observer(name, layer)) for name, layer in layers.items()
    ]
    seen = 0
    try:
        with torch.no_grad():
            for images in pictures:
                model(torch.from_numpy(images))
                seen += len(images)
                if seen >= MAX_PICTURES:
                    break
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _inputs_of_products(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Return what the rows of the weights are multiplied with, (groups, I, places)."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(1, -1, x.shape[-1]).mT
    else:
        padding = 0 if isinstance(layer.padding, str) else layer.padding  # the inner places are enough
        patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
        rows = patches.transpose(0, 1).reshape(layer.groups, -1, patches.shape[0] * patches.shape[2])
    stride = -(-rows.shape[2] // (MAX_PLACES * len(x)))
    return rows[:, :, ::stride]

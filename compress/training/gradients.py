"""Gradient norms per parameter at the price of the total norm, and which layer met NaN first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BRIEF = 3
"""Names shown of many."""


class GradientNorms:
    """Measures and clips the gradients of one model.

    Attributes:
        names: of the trained parameters, in the model's order.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = tuple(name for name, _ in trained)
        self._parameters = [p for _, p in trained]

    def clip(self, limit: float) -> tuple[float, NDArray[np.float64]]:
        """Scale the gradients down to a total norm of `limit` (0 leaves them) and return the norms before.

        As `torch.nn.utils.clip_grad_norm_`, which takes the same norms per tensor and throws them away.

        Returns:
            the total norm, and (P,) the norm of each parameter's gradient; 0 where it has none.
        """
        held = [(at, p.grad) for at, p in enumerate(self._parameters) if p.grad is not None]
        norms = np.zeros(len(self._parameters))
        if not held:
            return 0.0, norms
        gradients = [grad for _, grad in held]
        measured = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
        total = torch.linalg.vector_norm(measured)
        if limit > 0:
            scale = torch.clamp(limit / (total + 1e-6), max=1.0)
            # NaN in one gradient would become NaN in all, and nobody could say any more where it was
            torch._foreach_mul_(gradients, torch.where(scale.isfinite(), scale, 1.0))
        norms[[at for at, _ in held]] = measured.cpu().numpy()
        return float(total), norms

    def weigh(self) -> NDArray[np.float64]:
        """Return (P,) the norm of each parameter."""
        norms = torch._foreach_norm([p.detach() for p in self._parameters])
        return np.asarray(torch.stack([norm.float() for norm in norms]).cpu().numpy(), np.float64)

    def first_bad_weights(self) -> str | None:
        """Return the first parameter that is not finite; None where all are."""
        if np.isfinite(self.weigh()).all():
            return None
        # a norm may overflow where no weight has
        named = zip(self.names, self._parameters, strict=True)
        return next((name for name, p in named if not bool(p.isfinite().all())), None)

    def first_not_finite(self) -> str | None:
        """Return the parameter whose gradient went wrong first on the way back, the last one in forward order."""
        wrong = [
            name
            for name, p in zip(self.names, self._parameters, strict=True)
            if p.grad is not None and not bool(p.grad.isfinite().all())
        ]
        return wrong[-1] if wrong else None


def locate_not_finite(model: nn.Module, rerun: Callable[[], Mapping[str, Tensor]]) -> tuple[int, str]:
    """Return how many layers ran well before NaN or infinity appeared, and in words where, in the bad batch run again.

    Of several processes that share a batch, the one with the smallest number met it first.

    Args:
        model: in the state that met it; its buffers are put back afterwards.
        rerun: computes the losses of that batch with the same random numbers.
    """
    wrong = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    if wrong:
        return -1, f"first in the weights of {_brief(wrong)}"
    names = {module: name for name, module in model.named_modules() if not [*module.children()]}
    first: list[str] = []
    good = 0

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal good
        if not first and not _finite(output):
            given = "" if _finite(inputs) else ", whose input is so already"
            first.append(f"first in the output of layer {names[module]}{given}")
        good += not first

    buffers = copy.deepcopy(dict(model.named_buffers()))  # batch norm's running means take the bad batch in, too
    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad():
            rerun()
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return good, first[0] if first else "first in the loss itself: the output of every layer is finite"


def _finite(value: Any) -> bool:
    """Return whether all tensors in nested tuples are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return all(_finite(part) for part in value) if isinstance(value, (tuple, list)) else True


def _brief(names: Sequence[str]) -> str:
    more = f" and {len(names) - BRIEF} more" if len(names) > BRIEF else ""
    return ", ".join(names[:BRIEF]) + more

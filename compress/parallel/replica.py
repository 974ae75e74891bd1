"""One process's copy of a model that several train together: DDP as Accelerate sets it up, batch norms synchronised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch import distributed as dist

from edgekit.compress.parallel.processes import Processes
from edgekit.compress.parallel.synced_norm import synchronise_norms

Loss = Callable[[nn.Module, Any], Mapping[str, Tensor]]


class Replica:
    """Computes the losses of this process's share of a step; their gradients come out as the mean over all processes.

    Args:
        model: its batch norms are replaced, and its weights become the main process's.
        loss: of a model and a batch.
        accelerator: wraps it.
        processes: that train together.
    """

    def __init__(self, model: nn.Module, loss: Loss, accelerator: Accelerator, processes: Processes) -> None:
        synchronise_norms(model, processes.device)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        self._plain, self._accelerator, self._processes = model, accelerator, processes
        self._losses = _Losses(model, loss)
        self._wrapped: Any = None

    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the task's named losses of a batch."""
        if self._wrapped is None:
            self._wrap(batch)
        return self._wrapped(batch)  # type: ignore[no-any-return]

    def exchange_later(self) -> AbstractContextManager[None]:
        """Return the block in which gradients are summed in this process alone: a later backward exchanges them."""
        return self._accelerator.no_sync(self._wrapped or self._losses)  # type: ignore[no-any-return]

    def _wrap(self, batch: Any) -> None:
        # DDP must know whether parameters are left out of the loss, as a classifier is in pure feature distillation:
        # told so without need it walks the graph in every step, and not told so it stops at the second one
        unused = max(self._processes.gather(self._leaves_out(batch)))
        self._accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
        self._wrapped = self._accelerator.prepare_model(self._losses)
        self._wrapped.forward_sync_buffers = False  # they are alike in all processes, as synchronised norms keep them

    def _leaves_out(self, batch: Any) -> bool:
        """Return whether some trained parameter takes no part in the loss, by a trial that leaves nothing behind."""
        buffers = {name: buffer.clone() for name, buffer in self._plain.named_buffers()}
        parameters = [p for p in self._plain.parameters() if p.requires_grad]
        device = self._processes.device
        # the step itself must draw its dropout masks as every later one does, whichever step this is
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            loss = self._losses(batch)["loss"]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for name, buffer in self._plain.named_buffers():
                buffer.copy_(buffers[name])
        return any(gradient is None for gradient in found)


class _Losses(nn.Module):
    """The task's losses as a module's output: DDP sees from it which parameters take part in them."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the named losses of a batch."""
        return dict(self._loss(self.model, batch))

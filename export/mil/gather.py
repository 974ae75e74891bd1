"""MIL operations that pick elements by index or by order."""

from __future__ import annotations

import torch

from edgekit.export.mil.kernel import Call, Kernel, Tensor


def gather(call: Call) -> Kernel:
    """Pick slices of x along `axis` at `indices`: D[:axis] + N[batch_dims:] + D[axis+1:].

    A negative index counts from the end, as before iOS 17; since then it is undefined.
    """
    axis, batch_dims = call.integer("axis", 0), call.integer("batch_dims", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        at = axis % x.ndim
        index = _wrapped(indices, x.shape[at])
        if batch_dims == 0:
            picked = x.index_select(at, index.reshape(-1))
            return picked.reshape(*x.shape[:at], *indices.shape, *x.shape[at + 1 :])
        batch, before, after = x.shape[:batch_dims], x.shape[batch_dims:at], x.shape[at + 1 :]
        inner = indices.shape[batch_dims:]
        # bring the axis next to the batch, pick with a flat batch, and put the axes back in order
        rows = x.movedim(at, batch_dims).reshape(batch.numel(), x.shape[at], *before, *after)
        flat = index.reshape(batch.numel(), inner.numel())
        picked = rows[torch.arange(batch.numel()).unsqueeze(1), flat]
        count = len(before)
        order = [0, *range(2, 2 + count), 1, *range(2 + count, picked.ndim)]
        return picked.permute(order).reshape(*batch, *before, *inner, *after)

    return Kernel(("x", "indices"), run, moves=True)


def gather_along_axis(call: Call) -> Kernel:
    """Pick out[i][j][k] = x[i][indices[i][j][k]][k] along `axis`."""
    axis = call.integer("axis", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))

    return Kernel(("x", "indices"), run, moves=True)


def gather_nd(call: Call) -> Kernel:
    """Pick slices of x by index tuples, the last axis of `indices`, after `batch_dims` shared axes."""
    batch_dims = call.integer("batch_dims", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        batch = x.shape[:batch_dims]
        rows = x.reshape(batch.numel(), *x.shape[batch_dims:])
        inner = indices.shape[batch_dims:-1]
        flat = indices.reshape(batch.numel(), inner.numel(), indices.shape[-1])
        columns = [_wrapped(flat[..., i], rows.shape[i + 1]) for i in range(flat.shape[-1])]
        picked = rows[(torch.arange(batch.numel()).unsqueeze(1), *columns)]
        return picked.reshape(*batch, *inner, *picked.shape[2:])

    return Kernel(("x", "indices"), run, moves=True)


def argsort(call: Call) -> Kernel:
    """Give the order of x along `axis`, descending unless `ascending`."""
    axis, ascending = call.integer("axis", -1), call.flag("ascending", False)
    return Kernel(("x",), lambda x: torch.argsort(x, dim=axis, descending=not ascending, stable=True))


def topk(call: Call) -> Kernel:
    """Give the k largest (smallest if `ascending`) along `axis`, sorted, and where they stand; equals in order."""
    axis, ascending = call.integer("axis", -1), call.flag("ascending", False)
    with_indices = call.flag("return_indices", True)

    def run(x: Tensor, k: Tensor | None) -> list[Tensor]:
        order = torch.argsort(x, dim=axis, descending=not ascending, stable=True)
        index = order.narrow(axis, 0, 1 if k is None else int(k.item()))
        values = torch.gather(x, axis, index)
        return [values, index] if with_indices else [values]

    return Kernel(("x", "k"), run, moves=True)


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Count negative indices from the end.

    Raises:
        IndexError: an index is outside.
    """
    index = indices.long()
    if index.numel() and (int(index.min()) < -size or int(index.max()) >= size):
        raise IndexError(f"an index is outside an axis of {size}")
    return torch.where(index < 0, index + size, index)

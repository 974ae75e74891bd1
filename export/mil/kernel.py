"""What an operation's implementation is: a function that reads constant parameters once and returns a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.export.mil.blob import PackageError
from edgekit.export.mil.program import MAX_ELEMENTS, Constant, Operation, Value

Tensor = torch.Tensor
Result = Tensor | Sequence[Tensor]


class ProgramError(PackageError):
    """A program cannot be executed: an operation is malformed, or fails on its inputs; it is named (exit 3)."""


class UnknownOpError(ProgramError):
    """A program uses an operation that the interpreter does not know; it is named with its place (exit 3)."""


@dataclass(frozen=True)
class Kernel:
    """An operation ready to run.

    Attributes:
        operands: parameters whose tensors `run` takes, in order. An absent optional one arrives as None; one that holds
            several tensors ("values" of concat) arrives spread out.
        run: computes the results. Floating operands are float32 whatever the declared type; so are its results, which
            the executor rounds to half where the operation is declared fp16.
        moves: results are elements of the operands, so there is nothing to round.
    """

    operands: tuple[str, ...]
    run: Callable[..., Result]
    moves: bool = False


class Call:
    """One operation of a program with those of its parameters that are constant.

    The accessors return a parameter as a Python value.

    Raises (all accessors):
        ProgramError: the parameter is absent without a default, not constant, or of another kind.
    """

    def __init__(self, operation: Operation, constants: Mapping[str, Value | Tensor]) -> None:
        self.operation = operation
        self._constants = constants

    def value(self, name: str) -> Value | Tensor | None:
        """Return the constant parameter `name`, None if the operation does not set it."""
        arguments = self.operation.inputs.get(name)
        if not arguments:
            return None
        first = arguments[0]
        if isinstance(first, Constant):
            return first.value
        if first not in self._constants:
            raise ProgramError(f"{self.operation.place}: parameter '{name}' must be constant, and is not")
        return self._constants[first]

    def has(self, name: str) -> bool:
        """Say whether the operation sets the parameter."""
        return bool(self.operation.inputs.get(name))

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Return a list of integers."""
        array = self._array(name, default)
        return [int(item) for item in array.reshape(-1)]

    def integer(self, name: str, default: int | None = None) -> int:
        """Return one integer."""
        return int(self._one(name, default))

    def number(self, name: str, default: float | None = None) -> float:
        """Return one float."""
        return float(self._one(name, default))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Return one truth value."""
        return bool(self._one(name, default))

    def text(self, name: str, default: str | None = None, allowed: Sequence[str] = ()) -> str:
        """Return a string, one of `allowed` if given."""
        value = self.value(name)
        text = default if value is None else value
        if not isinstance(text, str) or (allowed and text not in allowed):
            raise ProgramError(f"{self.operation.place}: '{name}' is {text!r}, allowed: {', '.join(allowed) or 'text'}")
        return text

    def _one(self, name: str, default: float | None) -> float:
        array = self._array(name, None if default is None else [default])
        if array.size != 1:
            raise ProgramError(f"{self.operation.place}: '{name}' must be one value, not {array.size}")
        return float(array.reshape(-1)[0])

    def _array(self, name: str, default: Sequence[float] | None) -> NDArray[np.generic]:
        value = self.value(name)
        if value is None:
            if default is None:
                raise ProgramError(f"{self.operation.place}: the required parameter '{name}' is missing")
            return np.asarray(default)
        if isinstance(value, str | tuple):
            raise ProgramError(f"{self.operation.place}: '{name}' is text, not a number")
        return value.numpy() if isinstance(value, Tensor) else value


OpFunction = Callable[[Call], Kernel]
"""Implements one MIL operation: reads its constant parameters, returns the kernel."""


def sizes(tensor: Tensor) -> list[int]:
    """Return a runtime tensor of sizes, axes or indices as Python integers."""
    return [int(item) for item in tensor.reshape(-1).tolist()]


def bounded(shape: Sequence[int]) -> list[int]:
    """Return a shape that is about to be allocated, if it is within the limit on one tensor.

    Raises:
        ValueError: it is not.
    """
    if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"the shape {list(shape)} has more than the allowed {MAX_ELEMENTS} elements, or is negative")
    return list(shape)

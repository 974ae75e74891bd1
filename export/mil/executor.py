"""Compile a parsed MIL program into a list of steps, and run it.

Everything constant is done once: parameters are read, compressed weights decoded, operations on constants folded. A run
then walks the steps over numbered slots and drops each intermediate tensor after its last use.

fp16: floating tensors are held as float32; the result of every operation declared fp16 is rounded to half. So an
operation computes in float32 inside and rounds once, which is what the Neural Engine and the GPU promise at best;
a value above 65504 becomes infinite, as it does there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from edgekit.export.mil.kernel import Call, Kernel, ProgramError, Result, Tensor
from edgekit.export.mil.ops import implementation
from edgekit.export.mil.program import Constant, Operation, Program, TensorType, Value

TORCH_TYPES: Mapping[str, torch.dtype] = {
    "fp16": torch.float32, "fp32": torch.float32, "fp64": torch.float32, "bool": torch.bool,
    "int4": torch.int8, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "uint1": torch.uint8, "uint2": torch.uint8, "uint3": torch.uint8, "uint4": torch.uint8, "uint6": torch.uint8,
    "uint8": torch.uint8, "uint16": torch.int32, "uint32": torch.int64, "uint64": torch.int64,
}  # fmt: skip
"""How each MIL type is held while running. torch has little arithmetic on wide unsigned integers."""

# what torch and Python raise when an operation of a damaged program meets operands that do not fit it
_FAILURES = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError)
_ABSENT = 0  # the slot of optional operands that an operation does not set
Observe = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class _Step:
    operation: Operation
    run: Callable[..., Result]
    slots: tuple[int, ...]
    results: tuple[tuple[int, str, TensorType, bool], ...]  # slot, name, type, whether to round to half
    dead: tuple[int, ...]  # slots that nothing reads any more


class Executor:
    """A compiled program.

    Raises:
        UnknownOpError: the program uses an operation that is not implemented.
        ProgramError: an operation is malformed.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._slots: dict[str, int] = {}
        self._count = 1  # slot 0 is _ABSENT
        self._constants: dict[str, Value | Tensor] = {name: c.value for name, c in program.constants.items()}
        self._values: list[Tensor | None] = [None]
        for name in program.inputs:
            self._slot(name)
        with torch.inference_mode():
            steps = [step for op in program.operations if (step := self._compile(op)) is not None]
        self._steps = _with_lifetimes(steps, {self._slots[name] for name in program.outputs if name in self._slots})
        self._release_unused_constants()
        missing = [name for name in program.outputs if name not in self._slots]
        if missing:
            raise ProgramError(f"no operation gives the output '{missing[0]}'; the file is damaged")

    def run(self, feeds: Mapping[str, Tensor], observe: Observe | None = None) -> dict[str, Tensor]:
        """Run on tensors by input name; return the program's outputs.

        Args:
            feeds: one tensor per program input, of the type that TORCH_TYPES gives.
            observe: called with the name and value of every floating tensor that depends on the inputs, the inputs
                included. A tensor it keeps stays as it is.

        Raises:
            ProgramError: an operation fails, or gives another shape than it declares.
        """
        values = self._values.copy()
        with torch.inference_mode():
            for name, tensor in feeds.items():
                values[self._slots[name]] = tensor
                if observe is not None and tensor.is_floating_point():
                    observe(name, tensor)
            for step in self._steps:
                _execute(step, values)
                if observe is not None:
                    for slot, name, _, _ in step.results:
                        tensor_or_none = values[slot]
                        if tensor_or_none is not None and tensor_or_none.is_floating_point():
                            observe(name, tensor_or_none)
                for slot in step.dead:
                    values[slot] = None
        return {name: _present(values[self._slots[name]], name) for name in self._program.outputs}

    def _slot(self, name: str) -> int:
        if name not in self._slots:
            self._slots[name] = len(self._values)
            self._values.append(None)
        return self._slots[name]

    def _compile(self, operation: Operation) -> _Step | None:
        """Build the step of one operation; run it at once and return None if all its operands are constant."""
        function = implementation(operation)
        try:
            kernel = function(Call(operation, self._constants))
        except _FAILURES as e:
            raise ProgramError(f"{operation.place}: {e}") from e
        slots = tuple(self._operand_slots(operation, kernel))
        results = tuple(
            (self._slot(name), name, declared, declared.dtype == "fp16" and not kernel.moves)
            for name, declared in operation.outputs
        )
        step = _Step(operation, kernel.run, slots, results, ())
        if any(slot != _ABSENT and self._values[slot] is None for slot in slots):
            return step
        _execute(step, self._values)
        for slot, name, _, _ in results:
            self._constants[name] = _present(self._values[slot], name)
        return None

    def _operand_slots(self, operation: Operation, kernel: Kernel) -> Iterable[int]:
        for parameter in kernel.operands:
            arguments = operation.inputs.get(parameter, ())
            if not arguments:
                yield _ABSENT
            for argument in arguments:
                if isinstance(argument, Constant):
                    self._values.append(_tensor(argument.value, operation))
                    yield len(self._values) - 1
                elif argument in self._slots:
                    yield self._slots[argument]
                elif argument in self._constants:
                    slot = self._slot(argument)
                    self._values[slot] = _tensor(self._constants[argument], operation)
                    yield slot
                else:
                    raise ProgramError(f"{operation.place}: reads '{argument}', which nothing before it gives")

    def _release_unused_constants(self) -> None:
        """Drop compressed weights and parameters that were needed only while compiling."""
        kept = {slot for step in self._steps for slot in step.slots}
        kept |= {self._slots[name] for name in self._program.outputs if name in self._slots}
        self._values = [value if slot in kept else None for slot, value in enumerate(self._values)]
        self._constants = {}


def _execute(step: _Step, values: list[Tensor | None]) -> None:
    """Run one step; give every result its declared type."""
    try:
        result = step.run(*[values[slot] for slot in step.slots])
        results = (result,) if isinstance(result, Tensor) else result
        for (slot, name, declared, half), tensor in zip(step.results, results, strict=True):
            values[slot] = _typed(tensor, declared, half)
            if declared.dtype not in ("string", "dictionary") and not declared.admits(tuple(tensor.shape)):
                raise ValueError(f"'{name}' has the shape {tuple(tensor.shape)}, declared is {declared.shape}")
    except _FAILURES as e:
        first_line = str(e).strip().split("\n")[0]
        raise ProgramError(f"{step.operation.place} failed: {first_line}") from e


def _typed(tensor: Tensor, declared: TensorType, half: bool) -> Tensor:
    wanted = TORCH_TYPES.get(declared.dtype, tensor.dtype)
    if half:
        return tensor.half().to(wanted)
    return tensor if tensor.dtype == wanted else tensor.to(wanted)


def _tensor(value: Value | Tensor, operation: Operation) -> Tensor:
    """Turn a stored value into the tensor that kernels take."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str | tuple):
        raise ProgramError(f"{operation.place}: takes text where a tensor is needed")
    array = np.ascontiguousarray(value).reshape(value.shape)
    if array.dtype in (np.float16, np.float64):
        array = array.astype(np.float32)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64 if array.dtype.itemsize > 2 else np.int32)
    return torch.from_numpy(array)


def _with_lifetimes(steps: list[_Step], outputs: set[int]) -> list[_Step]:
    """Note at each step which computed slots are read there for the last time."""
    computed = {slot for step in steps for slot, *_ in step.results}
    last_use: dict[int, int] = {}
    for at, step in enumerate(steps):
        for slot in (*step.slots, *(slot for slot, *_ in step.results)):
            last_use[slot] = at
    finished = []
    for at, step in enumerate(steps):
        touched = {*step.slots, *(slot for slot, *_ in step.results)}
        dead = tuple(slot for slot in touched if last_use[slot] == at and slot in computed and slot not in outputs)
        finished.append(_Step(step.operation, step.run, step.slots, step.results, dead))
    return finished


def _present(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ProgramError(f"nothing computed '{name}'")
    return tensor

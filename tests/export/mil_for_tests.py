"""Build tiny MIL programs with coremltools, and run them both ways: its own value inference, and our interpreter."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.export.coreml.convert import coremltools_module
from edgekit.export.mil.executor import TORCH_TYPES, Executor
from edgekit.export.mil.package import _BlobReader
from edgekit.export.mil.program import Program, parse_program
from edgekit.export.quiet import quiet

ct = coremltools_module()
import coremltools.converters.mil.backend.mil.load  # noqa: E402
import coremltools.optimize.coreml as cto  # noqa: E402, F401
import torch  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Function, types  # noqa: E402

Build = Callable[..., Any]
_serialise = coremltools.converters.mil.backend.mil.load.load
_WRAPPERS: dict[int, Callable[[Build], Build]] = {  # mb.program counts the parameters of the function it is given
    1: lambda build: lambda a: build(a),
    2: lambda build: lambda a, b: build(a, b),
    3: lambda build: lambda a, b, c: build(a, b, c),
}
MIL_TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.int32}


def as_program(build: Build, arrays: Sequence[np.ndarray], target: Any = ct.target.iOS17) -> Program:
    """Return the program build(*inputs), stored as Core ML stores it and parsed back.

    A package takes and gives no booleans: those are cast from and to int32 inside.
    """
    specs = [mb.TensorSpec(array.shape, MIL_TYPES[array.dtype.name]) for array in arrays]

    def with_casts(*inputs: Any) -> Any:
        pairs = zip(inputs, arrays, strict=True)
        results = build(*[mb.cast(x=var, dtype="bool") if array.dtype == bool else var for var, array in pairs])
        results = results if isinstance(results, list | tuple) else (results,)
        return tuple(mb.cast(x=var, dtype="int32") if var.dtype == types.bool else var for var in results)

    with tempfile.TemporaryDirectory() as folder, quiet():
        built = mb.program(input_specs=specs, opset_version=target)(_WRAPPERS[len(arrays)](with_casts))
        built.skip_all_passes = True
        message = _serialise(built, folder, specification_version=int(target))
        reader = _BlobReader(Path(folder).parent)
        return parse_program(message.mlProgram, "main", lambda name, *rest: reader(_under(folder, name), *rest))


def interpreted(build: Build, *arrays: np.ndarray, target: Any = ct.target.iOS17) -> list[np.ndarray]:
    """Run build(*arrays) through our interpreter."""
    program = as_program(build, arrays, target)
    feeds = {
        name: torch.from_numpy(array).to(TORCH_TYPES[program.inputs[name].dtype])
        for name, array in zip(program.inputs, arrays, strict=True)
    }
    results = Executor(program).run(feeds)
    return [results[name].numpy() for name in program.outputs]


def inferred(build: Build, *arrays: np.ndarray, target: Any = ct.target.iOS17) -> list[np.ndarray]:
    """Return what coremltools' own value inference gives for build(*arrays)."""
    with Function({}, opset_version=target), quiet():
        results = build(*[mb.const(val=array) for array in arrays])
    results = results if isinstance(results, list | tuple) else [results]
    assert all(result.val is not None for result in results), "coremltools infers no value for this operation"
    return [np.asarray(result.val) for result in results]


def floats(shape: Sequence[int], seed: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Return uniform float32 numbers; no two seeds alike."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def assert_same(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-5) -> None:
    """Compare shapes, then values: absolute up to 1, relative above."""
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), atol=tolerance, rtol=tolerance)


def _under(folder: str, name: str) -> str:
    return f"{Path(folder).name}/{name.rpartition('/')[2]}"

"""Run a .tflite file with LiteRT on the CPU, and say how much of it XNNPACK really runs. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, LoadError, MissingExtraError
from edgekit.export.chatter import native_output_captured
from edgekit.export.session import FloatArray, RuntimeInfo, to_channels_last

DELEGATE = "DELEGATE"
_RANGE_SLACK = 0.05
"""Ranges that converters estimate on pictures miss 0, 1 or -1 by a few percent."""


@dataclass(frozen=True)
class PartitionReport:
    """How the runtime cut a graph between XNNPACK and the built-in kernels.

    Attributes:
        partitions: number of XNNPACK partitions; every one beyond the first costs two trips through memory.
        delegated: number of operators that run inside XNNPACK.
        outside: operators that fall back to a built-in kernel, by name, with their number.
    """

    partitions: int
    delegated: int
    outside: Mapping[str, int]

    def __str__(self) -> str:
        left = ", ".join(f"{count} {name}" for name, count in self.outside.items()) or "none"
        plural = "" if self.partitions == 1 else "s"
        return f"{self.partitions} XNNPACK partition{plural} with {self.delegated} operators; outside: {left}"


def partitions(path: Path) -> PartitionReport:
    """Load `path` as a session would, and report how its graph is partitioned.

    Raises:
        LoadError: the file is not a TFLite model that LiteRT can load.
    """
    return _partition_report(_open(path, threads=1))


class LiteRTModel:
    """A .tflite file under LiteRT, whatever it takes.

    Attributes:
        inputs: LiteRT's own details of each input.
        info: what runs the file; the note tells the partitions.

    Raises:
        LoadError: the file is not a TFLite model that LiteRT can load.
        MissingExtraError: ai-edge-litert is not installed.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._interpreter = _open(path, threads)
        self.inputs: list[dict[str, Any]] = self._interpreter.get_input_details()
        self._outputs = _named_outputs(self._interpreter)
        self.info = RuntimeInfo(
            runtime="litert",
            version=version("ai-edge-litert"),
            threads=threads,
            provider="XNNPACK",
            note=str(_partition_report(self._interpreter)),
        )

    def run(self, stored: NDArray[Any]) -> dict[str, FloatArray]:
        """Run on the one input in the file's own type and layout; return float32 outputs by name."""
        self._interpreter.set_tensor(self.inputs[0]["index"], stored)
        self._interpreter.invoke()
        return {
            name: _to_float(self._interpreter.get_tensor(detail["index"]), detail)
            for name, detail in self._outputs.items()
        }


class LiteRTSession:
    """A .tflite file under LiteRT: images (B, 3, H, W) float32 in [0, 1] in, named float32 outputs out.

    Files of edgekit take float32 NHWC. Files made elsewhere may also take NCHW, or uint8/int8 with a scale and a
    zero point, of pixels in [0, 1], [-1, 1] or [0, 255]; such input is quantized, and quantized outputs are
    dequantized, on the way.

    Raises:
        LoadError: the file is not a TFLite model that LiteRT can load, or not one that takes pictures.
        MissingExtraError: ai-edge-litert is not installed.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._model = LiteRTModel(path, threads)
        inputs = self._model.inputs
        if len(inputs) != 1 or len(inputs[0]["shape"]) != 4 or 3 not in (inputs[0]["shape"][1], inputs[0]["shape"][3]):
            shapes = [list(map(int, detail["shape"])) for detail in inputs]
            raise LoadError(f"{path} takes {shapes}; edgekit runs models with one picture input (1, H, W, 3).")
        self._input = inputs[0]
        self._channels_last = int(self._input["shape"][3]) == 3

    @property
    def info(self) -> RuntimeInfo:
        """What runs the file; the note tells the partitions."""
        return self._model.info

    @property
    def input_shape(self) -> tuple[int | None, int, int, int]:
        """(B, 3, H, W) that a call takes."""
        shape = tuple(int(side) for side in self._input["shape"])
        batch, first, second, third = shape
        return (batch, 3, first, second) if self._channels_last else (batch, first, second, third)

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run one batch; see `edgekit.export.session.Session`.

        Raises:
            DataError: `images` has another shape than the file takes.
        """
        if images.shape != self.input_shape:
            raise DataError(f"images have the shape {images.shape}; this model takes {self.input_shape}.")
        layout = to_channels_last(images) if self._channels_last else images
        return self._model.run(_to_stored(layout, self._input))


def _open(path: Path, threads: int) -> Any:
    """Load and allocate an interpreter with the default (XNNPACK) delegate."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as e:
        raise MissingExtraError("ai-edge-litert", "tflite", "Running a .tflite file") from e
    if not path.is_file():
        raise LoadError(f"{path} is not a file.")
    try:
        with native_output_captured():  # "Created TensorFlow Lite XNNPACK delegate for CPU."
            interpreter = Interpreter(str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as e:
        raise LoadError(f"{path} is not a TFLite model that LiteRT can load: {str(e).splitlines()[0][:200]}") from e
    return interpreter


def _partition_report(interpreter: Any) -> PartitionReport:
    """Walk back from the outputs: what is not produced by a delegate runs outside of it.

    `_get_ops_details` lists the original operators and, after them, one DELEGATE node per partition. It is private
    but has been stable since TensorFlow 2.5; there is no public way to the execution plan.
    """
    operators = interpreter._get_ops_details()
    delegates = [operator for operator in operators if operator["op_name"] == DELEGATE]
    producer: dict[int, int] = {}
    for number, operator in enumerate(operators):
        # delegates come last, so that they overwrite the operators that they replaced
        producer.update({int(tensor): number for tensor in operator["outputs"]})
    waiting = [int(detail["index"]) for detail in interpreter.get_output_details()]
    reached: set[int] = set()
    while waiting:
        number = producer.get(waiting.pop(), -1)
        if number < 0 or number in reached:
            continue
        reached.add(number)
        waiting.extend(int(tensor) for tensor in operators[number]["inputs"] if tensor >= 0)
    outside: dict[str, int] = {}
    for number in sorted(reached):
        name = str(operators[number]["op_name"])
        if name != DELEGATE:
            outside[name] = outside.get(name, 0) + 1
    return PartitionReport(
        partitions=len(delegates),
        delegated=len(operators) - len(delegates) - sum(outside.values()),
        outside=outside,
    )


def _named_outputs(interpreter: Any) -> dict[str, dict[str, Any]]:
    """Map output names to tensor details: the signature's names, else the tensors' own.

    A single one is "logits", whatever its file calls it; only "embedding" stays.
    """
    signatures = interpreter.get_signature_list()
    if signatures:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        named: dict[str, dict[str, Any]] = dict(runner.get_output_details())
    else:
        named = {str(detail["name"]): detail for detail in interpreter.get_output_details()}
    return {"logits": next(iter(named.values()))} if len(named) == 1 and "embedding" not in named else named


def _to_stored(values: FloatArray, detail: Mapping[str, Any]) -> NDArray[Any]:
    """Quantize [0, 1] pixels to the type of the input tensor: q = round(x / scale) + zero point.

    A tensor that holds [-1, 1] or [0, 255] is of a model that was made for pixels of that range: its x is brought
    there, which makes q the pixel's own byte, as applications feed it (MobileNet's uint8 files: scale 1/128, zero 128).
    """
    dtype = np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return values.astype(dtype, copy=False)
    bounds = np.iinfo(dtype)
    scale, zero_point = detail["quantization"]
    if not scale:  # no quantization parameters: the file takes raw pixels, 0..255
        scale, zero_point = 1 / 255, bounds.min
    low, high = scale * (bounds.min - zero_point), scale * (bounds.max - zero_point)
    if max(abs(low + 1), abs(high - 1)) < _RANGE_SLACK:
        values = values * np.float32(2) - np.float32(1)
    elif max(abs(low), abs(high - 255)) < 255 * _RANGE_SLACK:
        values = values * np.float32(255)
    quantized = np.rint(values / np.float32(scale)) + zero_point
    codes: NDArray[Any] = np.clip(quantized, bounds.min, bounds.max).astype(dtype)
    return codes


def _to_float(values: NDArray[Any], detail: Mapping[str, Any]) -> FloatArray:
    """Dequantize an output: x = scale * (q - zero point)."""
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    scale, zero_point = detail["quantization"]
    return ((values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale or 1.0)).astype(np.float32)

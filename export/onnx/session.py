"""Run an .onnx file with ONNX Runtime, and say which kernels it really runs and for how long. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, LoadError, MissingExtraError, UsageError, did_you_mean
from edgekit.export.session import FloatArray, RuntimeInfo, to_channels_last

CPU = "CPUExecutionProvider"
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxSession:
    """An .onnx file under ONNX Runtime: images (B, 3, H, W) float32 in [0, 1] in, named float32 outputs out.

    Files of edgekit take float32 NCHW. Files made elsewhere may also take NHWC, float16, or uint8 pixels 0..255.

    Args:
        path: the file.
        threads: threads within one operator; 0 lets the runtime decide.
        providers: execution providers in the order of preference.

    Raises:
        LoadError: not an ONNX model that the runtime can load, or not one that takes pictures of a fixed size.
        MissingExtraError: onnxruntime is not installed.
        UsageError: a provider that this build of the runtime has not.
    """

    def __init__(self, path: Path, threads: int = 1, providers: Sequence[str] = (CPU,)) -> None:
        self._session = _open(path, threads, providers)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _DTYPES:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise LoadError(f"{path} takes {found}; edgekit runs models with one picture input (B, 3, H, W).")
        self._name: str = inputs[0].name
        self._dtype = np.dtype(_DTYPES[inputs[0].type])
        self._channels_last, self._input_shape = _layout(path, inputs[0].shape)
        names = [output.name for output in self._session.get_outputs()]
        self._outputs: tuple[str, ...] = ("logits",) if len(names) == 1 and names != ["embedding"] else tuple(names)
        self._info = RuntimeInfo(
            runtime="onnxruntime",
            version=_ort().__version__,
            threads=threads,
            provider=self._session.get_providers()[0],
        )

    @property
    def info(self) -> RuntimeInfo:
        """What runs the file."""
        return self._info

    @property
    def input_shape(self) -> tuple[int | None, int, int, int]:
        """(B, 3, H, W) that a call takes; None for a free batch."""
        return self._input_shape

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run one batch; see `edgekit.export.session.Session`.

        Raises:
            DataError: `images` has another shape than the file takes.
        """
        batch = self._input_shape[0] or (len(images) if images.ndim == 4 else 1)
        if images.shape != (batch, *self._input_shape[1:]):
            raise DataError(f"images have the shape {images.shape}; this model takes {self._input_shape}.")
        stored = _to_stored(images, self._dtype, channels_last=self._channels_last)
        results = self._session.run(None, {self._name: stored})
        return {name: np.asarray(y, np.float32) for name, y in zip(self._outputs, results, strict=True)}


@dataclass(frozen=True)
class KernelTime:
    """The kernels of one operator type in the graph that the runtime made of a file.

    Attributes:
        operator: e.g. "QLinearConv"; after the runtime's own fusions.
        provider: execution provider that runs them.
        count: number of nodes.
        time_s: sum over the nodes of the median seconds of a run, profiling overhead (about 1 us a node) included.
    """

    operator: str
    provider: str
    count: int
    time_s: float


def profile(path: Path, threads: int = 1, runs: int = 20) -> tuple[KernelTime, ...]:
    """Run `path` on random pixels under the runtime's profiler; return its kernels, the slowest operator first.

    A free batch is run at 1. Raises as `OnnxSession`.
    """
    with TemporaryDirectory() as folder:
        session = _open(path, threads, (CPU,), profile_prefix=str(Path(folder) / "profile"))
        entry = session.get_inputs()[0]
        channels_last, (batch, *picture) = _layout(path, entry.shape)
        pixels = np.random.default_rng(0).random((batch or 1, *picture), dtype=np.float32)
        stored = _to_stored(pixels, np.dtype(_DTYPES[entry.type]), channels_last=channels_last)
        for _ in range(runs):
            session.run(None, {entry.name: stored})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["args"]["op_name"], event["args"]["provider"], event["name"])
            nodes.setdefault(key, []).append(event["dur"] * 1e-6)
    kinds: dict[tuple[str, str], list[float]] = {}
    for (operator, provider, _), times in nodes.items():
        kinds.setdefault((operator, provider), []).append(median(times))
    found = [KernelTime(op, provider, len(times), sum(times)) for (op, provider), times in kinds.items()]
    return tuple(sorted(found, key=lambda kernel: -kernel.time_s))


def _ort() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingExtraError("onnxruntime", "onnx", "Running an .onnx file") from e
    return onnxruntime


def _open(path: Path, threads: int, providers: Sequence[str], profile_prefix: str = "") -> Any:
    ort = _ort()
    available = ort.get_available_providers()
    for provider in providers:
        if provider not in available:
            raise UsageError(f"provider '{provider}' is not in this onnxruntime; {did_you_mean(provider, available)}")
    if not path.is_file():
        raise LoadError(f"{path} is not a file.")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; warnings go past Python straight to stderr
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as e:  # the runtime's exceptions have no common base but Exception
        raise LoadError(f"{path} is not a model that ONNX Runtime can load: {str(e).splitlines()[0]}") from e


def _layout(path: Path, shape: Sequence[int | str | None]) -> tuple[bool, tuple[int | None, int, int, int]]:
    """Return whether channels are last, and the input shape as (B, 3, H, W); B may be free, the rest may not."""
    if len(shape) == 4 and 3 in (shape[1], shape[3]):
        channels_last = shape[1] != 3
        batch = shape[0] if isinstance(shape[0], int) else None
        height, width = shape[1:3] if channels_last else shape[2:4]
        if isinstance(height, int) and isinstance(width, int):
            return channels_last, (batch, 3, height, width)
    raise LoadError(
        f"{path} takes the shape {list(shape)}; edgekit runs models that take (B, 3, H, W) of a fixed size."
    )


def _to_stored(images: FloatArray, dtype: np.dtype[Any], *, channels_last: bool) -> NDArray[Any]:
    """Bring images (B, 3, H, W) in [0, 1] to the layout and type of a file; integers are pixels 0..255."""
    layout = to_channels_last(images) if channels_last else images
    pixels = np.clip(np.rint(layout * np.float32(255)), 0, 255) if dtype == np.uint8 else layout
    stored: NDArray[Any] = pixels.astype(dtype, copy=False)
    return stored

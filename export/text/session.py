"""Run exported text classifiers: ids (B, L) int32 in, named float32 outputs out. Needs no torch but for Core ML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgekit.errors import DataError, LoadError, MissingExtraError
from edgekit.export.runtimes import Format, format_of
from edgekit.export.session import FloatArray, Outputs, RuntimeInfo
from edgekit.models.text_tokenizer import Ids

INPUT_NAME = "tokens"
_STEP = 64


class TextSession(Protocol):
    """A loaded text classifier, ready to run.

    Attributes:
        info: what runs it.
        input_shape: (B, L) that a call takes, None for a free dimension.

    A call takes ids (B, L) int32 and returns the named outputs: "logits" (B, C) and, where the model has it,
    "embedding" (B, D) unit rows.
    """

    @property
    def info(self) -> RuntimeInfo: ...

    @property
    def input_shape(self) -> tuple[int | None, int | None]: ...

    def __call__(self, ids: Ids) -> Outputs: ...


def run_texts(session: TextSession, ids: Ids) -> dict[str, FloatArray]:
    """Run any number of texts (N, L) through a session in pieces of its batch size; concatenate the outputs."""
    step = session.input_shape[0] or _STEP
    missing = -len(ids) % step if session.input_shape[0] else 0
    padded = np.concatenate([ids, np.repeat(ids[-1:], missing, axis=0)])
    parts = [session(padded[at : at + step]) for at in range(0, len(padded), step)]
    return {name: np.concatenate([part[name] for part in parts])[: len(ids)] for name in parts[0]}


class _Shaped:
    """What sessions share: the shape of their input, checked at each call."""

    input_shape: tuple[int | None, int | None]

    def _check(self, ids: Ids) -> None:
        if ids.ndim != 2 or any(
            wanted not in (None, given) for wanted, given in zip(self.input_shape, ids.shape, strict=True)
        ):
            raise DataError(f"ids have the shape {ids.shape}; this model takes {self.input_shape}")


class OnnxTextSession(_Shaped):
    """An .onnx file under ONNX Runtime.

    Raises:
        LoadError: not an ONNX model that the runtime can load, or not one that takes int32 ids (B, L).
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        try:
            import onnxruntime as ort
        except ImportError as e:
            raise MissingExtraError("onnxruntime", "onnx", "Running an .onnx file") from e
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors; warnings go past Python straight to stderr
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # the runtime's exceptions have no common base but Exception
            raise LoadError(f"{path} is not a model that ONNX Runtime can load: {str(e).splitlines()[0]}") from e
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(int32)" or len(inputs[0].shape) != 2:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise LoadError(f"{path} takes {found}; a text classifier takes one input of int32 ids (B, L)")
        self._name: str = inputs[0].name
        batch, length = (side if isinstance(side, int) else None for side in inputs[0].shape)
        self.input_shape = (batch, length)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.info = RuntimeInfo("onnxruntime", ort.__version__, threads, self._session.get_providers()[0])

    def __call__(self, ids: Ids) -> dict[str, FloatArray]:
        """Run one batch."""
        self._check(ids)
        results = self._session.run(None, {self._name: ids})
        return {name: np.asarray(y, np.float32) for name, y in zip(self._outputs, results, strict=True)}


class LiteRTTextSession(_Shaped):
    """A .tflite file under LiteRT.

    Raises:
        LoadError: the file is not a TFLite model that LiteRT can load, or not one that takes int32 ids (B, L).
        MissingExtraError: ai-edge-litert is not installed.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        from edgekit.export.tflite.session import LiteRTModel

        self._model = LiteRTModel(path, threads)
        inputs = self._model.inputs
        if len(inputs) != 1 or inputs[0]["dtype"] != np.int32 or len(inputs[0]["shape"]) != 2:
            found = [(detail["dtype"].__name__, list(map(int, detail["shape"]))) for detail in inputs]
            raise LoadError(f"{path} takes {found}; a text classifier takes one input of int32 ids (B, L)")
        batch, length = map(int, inputs[0]["shape"])
        self.input_shape = (batch, length)
        self.info = self._model.info

    def __call__(self, ids: Ids) -> dict[str, FloatArray]:
        """Run one batch."""
        self._check(ids)
        return self._model.run(ids)


class MilTextSession(_Shaped):
    """An .mlpackage under the MIL interpreter (needs torch and coremltools).

    Raises:
        PackageError: the package cannot be read, or does not take int32 ids (B, L).
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        try:
            from edgekit.export.mil.interpreter import NOTE, MilProgram
        except ModuleNotFoundError as e:
            raise MissingExtraError(e.name or "torch", "coreml", "Running an .mlpackage away from a Mac") from e
        self._program = MilProgram.load(path)
        features: list[Any] = list(self._program.inputs.values())
        if len(features) != 1 or features[0].dtype != "int32" or len(features[0].shape) != 2:
            given = ", ".join(f"{feature.name} {feature.dtype} {feature.shape}" for feature in features)
            raise LoadError(f"{path} takes {given}; a text classifier takes one input of int32 ids (B, L)")
        self._name: str = features[0].name
        self.input_shape = features[0].shape
        self.info = RuntimeInfo("mil", self._program.version, threads, "interpreter", NOTE)

    def __call__(self, ids: Ids) -> dict[str, FloatArray]:
        """Run one batch."""
        self._check(ids)
        results = self._program.run({self._name: ids})
        return {
            name: np.asarray(results[name], np.float32)
            for name, feature in self._program.outputs.items()
            if feature.kind == "tensor"
        }


TEXT_RUNTIMES: Mapping[Format, Callable[[Path, int], TextSession]] = {
    "onnx": OnnxTextSession,
    "tflite": LiteRTTextSession,
    "coreml": MilTextSession,
}


def open_text_session(path: Path, threads: int = 1) -> TextSession:
    """Open an artifact that takes ids in the runtime of its format.

    Raises:
        LoadError: not there, no such format, the runtime rejects it, or it takes something else.
    """
    form = format_of(path)
    if not path.exists():
        raise LoadError(f"{path} is not there")
    if form not in TEXT_RUNTIMES:
        raise LoadError(f"{path} takes pictures; texts are taken by {', '.join(TEXT_RUNTIMES)} files")
    return TEXT_RUNTIMES[form](path, threads)

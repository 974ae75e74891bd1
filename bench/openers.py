"""Open a model in the process that will hold it. The functions take JSON values, as `edgekit.bench.child` gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit.errors import UsageError
from edgekit.export.session import FloatArray, Outputs, RuntimeInfo, Session


def artifact(path: str, threads: int) -> Session:
    """Open a file in the runtime of its format.

    Raises:
        LoadError: the runtime rejects it.
    """
    from edgekit.export.runtimes import open_session

    return open_session(Path(path), threads)


def text_artifact(path: str, threads: int, length: int, token: int) -> Session:
    """Open a file that takes the ids of a text; `length` and `token` make the text that it is timed with.

    Raises:
        LoadError: the runtime rejects it.
    """
    return _TextsAsPictures(Path(path), threads, length, token)


class _TextsAsPictures:
    """A text file as a Session: ids travel as floats (B, 1, 1, L), which hold whole numbers up to 2^24 exactly."""

    def __init__(self, path: Path, threads: int, length: int, token: int) -> None:
        from edgekit.export.text.session import open_text_session

        self._session = open_text_session(path, threads)
        batch, own = self._session.input_shape
        self._token = token
        self.input_shape = (batch, 1, 1, own or length)
        self.info = self._session.info

    def example(self, batch: int) -> FloatArray:
        """Return texts of full length."""
        return np.full((batch, *self.input_shape[1:]), self._token, np.float32)

    def __call__(self, images: FloatArray) -> Outputs:
        return self._session(images.reshape(len(images), -1).astype(np.int32))


def student(run: str, threads: int) -> Session:
    """Open a run's student in eager PyTorch.

    Raises:
        LoadError: the run holds none, or a damaged one.
    """
    from edgekit.export.deploy import DeployModel, TorchSession
    from edgekit.models.checkpoint import load_student

    return TorchSession(DeployModel(load_student(Path(run))), threads)


def teacher(name: str, fingerprint: str, threads: int, frames: int) -> Session:
    """Open the teacher that a run was distilled from.

    Raises:
        LoadError: it is not here.
        UsageError: it is another one than the run's.
    """
    return _TeacherSession(name, fingerprint, threads, frames)


class _TeacherSession:
    """The teacher itself, to be timed at its own input size; of a clip student's, on as many frames at once."""

    def __init__(self, name: str, fingerprint: str, threads: int, frames: int) -> None:
        import torch

        from edgekit.models.teacher import load_teacher

        self._teacher = load_teacher(name, torch.device("cpu"), threads=threads)
        if self._teacher.fingerprint() != fingerprint:
            raise UsageError(f"the teacher {name} is not the one that the run was distilled from: its weights differ")
        self._threads = threads
        size = self._teacher.preprocess.image_size
        self.input_shape = (None if frames == 1 else frames, 3, size, size)
        runtime = "onnxruntime" if name.endswith(".onnx") else "torch"
        self.info = RuntimeInfo(runtime, torch.__version__, threads, "eager")

    def __call__(self, images: FloatArray) -> Outputs:
        import torch

        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        return {"embedding": np.asarray(self._teacher(torch.from_numpy(images)).numpy(), np.float32)}


def precision(path: str) -> str:
    """Return what a file's weights are stored in.

    Raises:
        LoadError: it cannot be read.
    """
    from edgekit.export.audit.audit import stored_precision

    return str(stored_precision(Path(path)))


def core_ml(path: str, unit: str) -> Session:
    """Open a package on this Mac's CPU, GPU or Neural Engine.

    Raises:
        LoadError: this is no Mac, or Core ML rejects the package.
    """
    from edgekit.export.coreml.session import CoreMLSession

    return CoreMLSession(Path(path), unit)


def onnx_provider(path: str, threads: int, provider: str) -> Session:
    """Open a file in ONNX Runtime with another execution provider before the CPU's.

    Raises:
        LoadError: the runtime rejects it.
        UsageError: this build of the runtime lacks the provider.
    """
    from edgekit.export.onnx.session import CPU, OnnxSession

    return OnnxSession(Path(path), threads, (provider, CPU))

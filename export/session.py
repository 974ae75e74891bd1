"""One protocol for everything that can be run: eager PyTorch, ONNX Runtime, LiteRT, Core ML, the MIL interpreter.

Parity and bench know only this. Nothing here imports torch or a runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Outputs = Mapping[str, FloatArray]


@dataclass(frozen=True)
class RuntimeInfo:
    """What really runs a model.

    Attributes:
        runtime: the runtime's name, e.g. "onnxruntime".
        version: the runtime's version.
        threads: threads for one inference; 0 where the runtime decides.
        provider: execution provider, delegate or compute unit in use, e.g. "CPUExecutionProvider", "XNNPACK".
        note: what a reader of the numbers must know, e.g. "interpreted, not run on Apple hardware".
    """

    runtime: str
    version: str
    threads: int
    provider: str
    note: str = ""


class Session(Protocol):
    """A loaded model, ready to run.

    Attributes:
        info: what runs it.
        input_shape: (B, 3, H, W) that a call takes, None for a free dimension. NCHW whatever the file's own layout.

    A call takes images (B, 3, H, W) float32 RGB in [0, 1] and returns the named outputs: "logits" (B, num_classes)
    and, where the model has it, "embedding" (B, embed_dim) unit rows. It may be called from one thread at a time.
    """

    @property
    def info(self) -> RuntimeInfo: ...

    @property
    def input_shape(self) -> tuple[int | None, int, int, int]: ...

    def __call__(self, images: FloatArray) -> Outputs: ...


def run_batched(session: Session, images: FloatArray) -> dict[str, FloatArray]:
    """Run any number of images (N, 3, H, W) through a session in pieces of its batch size; concatenate the outputs."""
    step = session.input_shape[0] or 32
    if len(images) % step:
        padding = np.repeat(images[-1:], step - len(images) % step, axis=0) if session.input_shape[0] else images[:0]
        padded = np.concatenate([images, padding])
    else:
        padded = images
    parts = [session(padded[at : at + step]) for at in range(0, len(padded), step)]
    return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in parts[0]}


def to_channels_last(images: FloatArray) -> FloatArray:
    """Return images (B, 3, H, W) as a contiguous copy (B, H, W, 3), for files that take that layout.

    A plane at a time: numpy's copy of the transposed view moves single numbers and takes three times as long, 160 us
    for 256 px and so 2 % of a call of the int8 mobilevit_s.
    """
    laid_out = np.empty((len(images), *images.shape[2:], images.shape[1]), images.dtype)
    for channel in range(images.shape[1]):
        laid_out[..., channel] = images[:, channel]
    return laid_out

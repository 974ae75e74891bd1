"""Convert a student to TFLite: float32 or float16 weights, NHWC float32 in, named float32 outputs out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import MissingExtraError
from edgekit.export.chatter import native_output_captured
from edgekit.export.rewrites import RewriteReport, rewrite
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.peephole import power_to_square_root

INPUT_NAME = "image"
OUTPUT_NAMES = ("logits", "embedding")


class _ChannelsLastInput(nn.Module):
    """Take pictures (B, H, W, 3), as TFLite files do, and return a plain tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, H, W, 3) to what the model returns for (B, 3, H, W)."""
        outputs = self.model(images.permute(0, 3, 1, 2))
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def export_tflite(
    model: nn.Module,
    image_size: int,
    out: Path,
    *,
    rows: int = 1,
    output_names: Sequence[str] = OUTPUT_NAMES,
    metadata: Mapping[str, str] | None = None,
) -> RewriteReport:
    """Rewrite `model` for LiteRT, convert it, and write `out`; return what was rewritten.

    Args:
        model: takes images (B, 3, H, W) float32 RGB in [0, 1], returns a tensor or a tuple in the order of
            `output_names`. It is not changed.
        image_size: side of the square picture; the file takes (rows, image_size, image_size, 3).
        out: the .tflite file, written whole or not at all.
        rows: pictures that the file takes at once: the frames of one clip.
        output_names: names of the outputs in the file's signature.
        metadata: texts kept inside the file under "edgekit.<key>", e.g. class names and the input contract.

    Raises:
        MissingExtraError: litert-torch is not installed.
    """
    fast, report = rewrite(model, "tflite")
    convert_float(fast, image_size, out, rows=rows, output_names=output_names, metadata=metadata)
    return report


def convert_float(
    model: nn.Module,
    image_size: int,
    out: Path,
    *,
    rows: int = 1,
    output_names: Sequence[str] = OUTPUT_NAMES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Convert `model` as it is, without rewriting it: the naive baseline. Arguments as `export_tflite`."""
    try:
        with converter_silenced():
            import litert_torch
    except ImportError as e:
        raise MissingExtraError("litert-torch", "tflite", "Exporting to TFLite") from e
    sample = torch.zeros(rows, image_size, image_size, 3)
    with TemporaryDirectory() as folder, converter_silenced(), torch.no_grad():
        raw = Path(folder) / "raw.tflite"
        litert_torch.convert(_ChannelsLastInput(model).eval(), (sample,)).export(str(raw))
        graph = Graph.read(raw)
    graph.name_input(INPUT_NAME)
    graph.name_outputs(output_names)
    power_to_square_root(graph)
    graph.set_metadata(metadata or {})
    graph.write(out)


@contextmanager
def converter_silenced() -> Iterator[None]:
    """Keep the progress report of litert-torch 0.10 and the logs of the MLIR converter off the terminal."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    with native_output_captured(), warnings.catch_warnings():
        logger.setLevel(logging.ERROR)  # torchao 0.18 registers enum constants in a way that torch 2.14 warns of
        _show_progress(False)
        try:
            yield
        finally:
            _show_progress(True)
            logger.setLevel(level)


def _show_progress(shown: bool) -> None:
    """Switch litert-torch's own progress lines; they go through rich, past any redirection made after its import."""
    try:
        from litert_torch import _config
    except ImportError:
        return
    config: Any = _config.config
    config.show_progress = shown

"""Convert a student to ONNX for ONNX Runtime: one file, float32, NCHW in [0, 1] in, named outputs out."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.atomic import atomic_path
from edgekit.errors import MissingExtraError
from edgekit.export.rewrites import RewriteReport, rewrite

INPUT_NAME = "image"
OUTPUT_NAMES = ("logits", "embedding")
OPSET = 23
"""The first opset with Attention and RMSNormalization, each one kernel of ONNX Runtime (>= 1.23)."""

MAX_BATCH = 1024
METADATA_PREFIX = "edgekit."


def export_onnx(
    model: nn.Module,
    image_size: int,
    out: Path,
    *,
    rows: int = 1,
    dynamic_batch: bool = False,
    output_names: Sequence[str] = OUTPUT_NAMES,
    metadata: Mapping[str, str] | None = None,
) -> RewriteReport:
    """Rewrite `model` for ONNX Runtime, convert it, and write `out`; return what was rewritten.

    Args:
        model: takes images (B, 3, H, W) float32 RGB in [0, 1], returns a tensor or a tuple in the order of
            `output_names`. It is not changed.
        image_size: side of the square picture; the file takes (rows, 3, image_size, image_size).
        out: the .onnx file, weights inside, written whole or not at all.
        rows: pictures that the file takes at once: the frames of one clip.
        dynamic_batch: leave the batch free, 1 to 1024, under the name "batch". Costs 0-10 % of time at batch 1.
        output_names: names of the outputs.
        metadata: texts kept inside the file as metadata_props under "edgekit.<key>".

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    fast, report = rewrite(model, "onnx")
    convert_float(
        fast,
        image_size,
        out,
        rows=rows,
        dynamic_batch=dynamic_batch,
        output_names=output_names,
        metadata=metadata,
    )
    return report


def convert_float(
    model: nn.Module,
    image_size: int,
    out: Path,
    *,
    rows: int = 1,
    dynamic_batch: bool = False,
    output_names: Sequence[str] = OUTPUT_NAMES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Convert `model`, in eval mode, as it is: without rewriting it. Arguments as `export_onnx`."""
    # torch.export takes a dimension of 1 for a constant: the sample of a free batch must hold 2
    sample = torch.zeros(2 if dynamic_batch else rows, 3, image_size, image_size)
    graph = _convert(model, sample, output_names, OPSET, dynamic_batch=dynamic_batch)
    tidy(graph)
    set_metadata(graph, metadata or {})
    save_onnx(graph, out)


def export_naive(model: nn.Module, image_size: int, out: Path, *, output_names: Sequence[str] = OUTPUT_NAMES) -> None:
    """Write what `torch.onnx.export` makes of `model` by default: the baseline to measure against."""
    sample = torch.zeros(1, 3, image_size, image_size)
    save_onnx(_convert(copy.deepcopy(model).eval(), sample, output_names, None), out)


def _convert(
    model: nn.Module, sample: Tensor, output_names: Sequence[str], opset: int | None, *, dynamic_batch: bool = False
) -> Any:
    """Return the onnx.ModelProto of `model` for inputs like `sample`; opset None is torch's default."""
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it, and says so less clearly
    except ImportError as e:
        raise MissingExtraError(e.name or "onnx", "onnx", "Exporting to ONNX") from e
    shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},) if dynamic_batch else None
    with TemporaryDirectory() as folder, exporter_silenced(), torch.no_grad():
        raw = Path(folder) / "raw.onnx"
        program = torch.onnx.export(
            model,
            (sample,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(output_names),
            dynamic_shapes=shapes,
        )
        assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
        program.save(str(raw), external_data=False)
        return onnx.load(raw)


def save_onnx(model: Any, out: Path) -> None:
    """Write an onnx.ModelProto with its weights inside, whole or not at all."""
    with atomic_path(out) as temporary:
        temporary.write_bytes(model.SerializeToString())


def set_metadata(model: Any, metadata: Mapping[str, str]) -> None:
    """Keep `metadata` in an onnx.ModelProto as metadata_props under "edgekit.<key>", in place of what was there."""
    kept = {entry.key: entry.value for entry in model.metadata_props}
    kept |= {METADATA_PREFIX + key: value for key, value in metadata.items()}
    del model.metadata_props[:]
    for key, value in kept.items():
        model.metadata_props.add(key=key, value=value)


def tidy(model: Any) -> None:
    """Drop what only the exporting machine needs.

    The exporter notes the stack trace of every node, with the paths of the machine it ran on. Its value_info names
    shapes that a later quantization changes: `quantize_dynamic` of ONNX Runtime 1.31 fails on them, and every runtime
    infers them anyhow.
    """
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for thing in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del thing.metadata_props[:]
        thing.doc_string = ""


@contextmanager
def exporter_silenced() -> Iterator[None]:
    """Keep deprecations that torch 2.14 raises inside its own exporter off the terminal."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    with warnings.catch_warnings():
        logger.setLevel(logging.ERROR)  # torchao 0.18 registers enum constants in a way that torch 2.14 warns of
        try:
            yield
        finally:
            logger.setLevel(level)

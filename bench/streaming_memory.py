"""Peak memory of streamed distillation on 10,000 and on 40,000 pictures: it must not grow with the data.

    python -m edgekit.bench.streaming_memory --pictures DIR

The pictures of DIR are repeated until there are enough. For each size one process writes nothing but its run folder:
it teaches a store from the shards (two views, 512 numbers each), then trains one epoch, so that every shard is visited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

from edgekit.data import ImageDataset, Sample
from edgekit.errors import DataError
from edgekit.exits import run_command
from edgekit.images import IMAGE_SUFFIXES
from edgekit.shard_writer import write_shards

CLASSES = ("even", "odd")
VAL = 200
TEACHER_SIDE, TEACHER_DIM = 32, 512


@click.command()
@click.option("--pictures", type=click.Path(path_type=Path), required=True, help="Folder whose pictures are repeated.")
@click.option("--counts", type=click.IntRange(min=64), nargs=2, default=(10_000, 40_000), show_default=True)
@click.option("--student", default="mobilevit_xxs", show_default=True)
def main(pictures: Path, counts: tuple[int, int], student: str) -> None:
    """Measure the peak memory of streamed distillation at both counts of pictures, and print them with their ratio."""
    files = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{pictures} has no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) to repeat")
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_teacher(folder / "teacher.onnx")
        for count in counts:
            peaks.append(measure(folder, repeated(files, count), student))
            click.echo(f"{count:6d} pictures: {peaks[-1] / 1e6:7.1f} MB")
    click.echo(f"difference {100 * (peaks[1] / peaks[0] - 1):+.1f} %")


def repeated(files: list[Path], count: int) -> ImageDataset:
    """Return a data set of `count` training pictures, the same files again and again under new names."""
    samples = [Sample(f"{number:07d}", files[number % len(files)], number % 2) for number in range(count + VAL)]
    return ImageDataset(files[0].parent, CLASSES, tuple(samples[VAL:]), tuple(samples[:VAL]))


def measure(folder: Path, dataset: ImageDataset, student: str) -> int:
    """Return the peak resident bytes of one process that teaches a store and trains an epoch.

    Raises:
        Exit: it failed, and said why; with its exit code.
    """
    place = folder / str(len(dataset.train))
    write_shards(dataset, place / "shards", shard_bytes=8_000_000)
    command = (
        f"distill --data {place / 'shards'} --teacher {folder / 'teacher.onnx'} --views 2 --student {student} "
        f"--image-size 64 --batch-size 64 --epochs 1 --device cpu -q -o {place / 'run'}"
    )
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *command.split()],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    if done.returncode:
        raise click.exceptions.Exit(done.returncode if done.returncode > 0 else 128 - done.returncode)
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return max(int(row["peak_memory_bytes"]) for row in rows if row.get("peak_memory_bytes"))


def write_teacher(path: Path) -> None:
    """Write an embedding model that costs nothing: a coarse grid of colours through a random matrix."""
    from onnx import TensorProto, helper, numpy_helper, save

    matrix = np.random.default_rng(0).normal(size=(48, TEACHER_DIM)).astype(np.float32)
    shape = ["batch", 3, TEACHER_SIDE, TEACHER_SIDE]
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["image"], ["grid"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Flatten", ["grid"], ["row"]),
            helper.make_node("MatMul", ["row", "matrix"], ["embedding"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", TEACHER_DIM])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.bench.streaming_memory"))

"""A TensorFlow SavedModel of a student: for servers, and for tools that begin with one. float32.

It is made from the float .tflite file, operator by operator, with TensorFlow's own operations and the weights as
variables. TensorFlow runs in a process of its own, in this environment or another (`tensorflow_python`).
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import tempfile
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np

from edgekit.atomic import atomic_folder
from edgekit.errors import DataError, LoadError
from edgekit.export.audit.record import Audit, Op, Port, RuntimeAudit, WeightCounter
from edgekit.export.runtimes import size_bytes
from edgekit.export.session import FloatArray, RuntimeInfo
from edgekit.export.tflite.graph import Graph
from edgekit.export.tflite.tensorflow import TIMEOUT_S, alone, run_script, script_failure, tensorflow_python

_WORKER = Path(__file__).with_name("worker.py")
_PRODUCTS = ("BatchMatMulV2", "Conv2D", "DepthwiseConv2dNative", "Einsum", "MatMul")
_DTYPES = {"float32": "fp32", "float16": "fp16", "float64": "fp64", "bfloat16": "bf16"}


def export_saved_model(float_tflite: Path, out: Path) -> None:
    """Write `out`, a SavedModel folder that computes what a float32 .tflite file of one picture input computes.

    Its signature "serving_default" has the file's names, shapes and layout (NHWC).

    Raises:
        LoadError: an operator that is not known here, or TensorFlow failed.
        MissingExtraError: there is no TensorFlow.
    """
    graph = Graph.read(float_tflite)
    constants = {str(n): graph.constant(n) for n in range(len(graph.tensors))}
    with atomic_folder(out, overwrite=True) as fresh:
        source = fresh / "graph.npz"
        arrays: dict[str, Any] = {name: content for name, content in constants.items() if content is not None}
        np.savez(source, graph=np.frombuffer(json.dumps(_description(graph)).encode(), np.uint8), **arrays)
        problem = f"{float_tflite.name} cannot become a SavedModel"
        run_script(tensorflow_python(None), _script("build", str(source), str(fresh)), problem)
        source.unlink()


def _description(graph: Graph) -> dict[str, Any]:
    definition = graph.model.signatureDefs[0]
    (taken,) = definition.inputs
    return {
        "input": str(int(taken.tensorIndex)),
        "input_name": bytes(taken.name).decode(),
        "shape": graph.shape(taken.tensorIndex),
        "outputs": {bytes(entry.name).decode(): str(int(entry.tensorIndex)) for entry in definition.outputs},
        "operators": [
            {
                "name": graph.name(operator),
                "inputs": [None if tensor < 0 else str(int(tensor)) for tensor in operator.inputs],
                "output": str(int(operator.outputs[0])),
                "options": {
                    name: value
                    for name, value in vars(operator.builtinOptions or object).items()
                    if isinstance(value, bool | int | float)
                },
            }
            for operator in graph.operators
        ],
    }


class SavedModelSession:
    """A SavedModel under TensorFlow, in a process that lives as long as the session: images (B, 3, H, W) in [0, 1].

    Raises:
        LoadError: it is none that TensorFlow can load, or none of one picture input.
        MissingExtraError: there is no TensorFlow.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._name = path.name
        self._start(path, threads)
        facts = self._facts()
        shapes = [shape for _, shape, _ in facts["inputs"]]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] != 3:
            raise LoadError(f"{path} takes {shapes}; edgekit runs models with one picture input (1, H, W, 3)")
        batch, height, width, _ = shapes[0]
        self.input_shape: tuple[int | None, int, int, int] = (batch, 3, height, width)
        self.info = RuntimeInfo("tensorflow", facts["version"], threads, "CPU", "in a process of its own")

    def _start(self, path: Path, threads: int) -> None:
        _check_there(path)
        self._python = tensorflow_python(None)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  a pipe that nobody reads would fill up and stop TensorFlow
        try:
            self._process = subprocess.Popen(
                alone(self._python, _script("serve", str(path.absolute()), str(threads))),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
            )
        except OSError as e:
            raise LoadError(f"{self._python} cannot be run: {e.strerror or e}") from e

    def _facts(self) -> dict[str, Any]:
        late = Timer(TIMEOUT_S, self._process.kill)
        late.start()
        try:
            facts: dict[str, Any] = json.loads(self._answer())
        except struct.error as e:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")
            raise script_failure(self._python, code, said, f"TensorFlow cannot load {self._name}") from e
        finally:
            late.cancel()
        return facts

    def _answer(self) -> bytes:
        """Return the next answer: its length comes first.

        Raises:
            struct.error: TensorFlow ended.
        """
        assert self._process.stdout is not None
        (length,) = struct.unpack("<q", self._process.stdout.read(8))
        return self._process.stdout.read(length)

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        """Run one batch; see `edgekit.export.session.Session`.

        Raises:
            DataError: `images` has another shape than the model takes.
            LoadError: TensorFlow ended.
        """
        if images.shape[1:] != self.input_shape[1:] or self.input_shape[0] not in (None, len(images)):
            raise DataError(f"images have the shape {images.shape}; this model takes {self.input_shape}")
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("<q", content.tell()) + content.getvalue())
            self._process.stdin.flush()
            with np.load(io.BytesIO(self._answer()), allow_pickle=False) as file:
                found = {name: file[name].astype(np.float32) for name in file.files}
        except (OSError, struct.error) as e:
            raise LoadError(f"TensorFlow ended while it ran {self._name} (code {self._process.poll()})") from e
        return {"logits": next(iter(found.values()))} if len(found) == 1 and "embedding" not in found else found

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
            self._said.close()


def audit_saved_model(path: Path) -> Audit:
    """Read what a SavedModel is, as TensorFlow tells it.

    Raises:
        LoadError: none that TensorFlow can load.
        MissingExtraError: there is no TensorFlow.
    """
    facts = _facts(path)
    weights = WeightCounter()
    for dtype, elements in facts["weights"]:
        weights.add(_DTYPES.get(dtype, dtype), elements)
    inputs, outputs = (
        tuple(Port(name, tuple(shape), _DTYPES.get(dtype, dtype)) for name, shape, dtype in facts[side])
        for side in ("inputs", "outputs")
    )
    return Audit(
        path=str(path),
        format="saved_model",
        size_bytes=size_bytes(path),
        made_by={"tensorflow": facts["version"]},
        inputs=inputs,
        outputs=outputs,
        metadata={},
        weights=weights.weights(),
        quantization_bytes=0,
        ops=tuple(
            Op(kind, "fp32", None if kind in _PRODUCTS else 0)
            for kind, count in facts["operations"].items()
            for _ in range(count)
        ),
        boundaries={},
        counted="all operations are float",
        notes=("multiply-accumulates are not counted in SavedModels",),
    )


def audit_tensorflow(path: Path) -> RuntimeAudit:
    """Open a SavedModel with TensorFlow.

    Raises as `audit_saved_model`.
    """
    facts = _facts(path)
    return RuntimeAudit("tensorflow", facts["version"], "CPU", kernels=facts["operations"], note="float32")


def _check_there(path: Path) -> None:
    if not (path / "saved_model.pb").is_file():
        raise LoadError(f"{path} is no SavedModel: it holds no saved_model.pb")


def _facts(path: Path) -> dict[str, Any]:
    _check_there(path)
    arguments = _script("describe", str(path.absolute()))
    said = run_script(tensorflow_python(None), arguments, f"TensorFlow cannot load {path.name}")
    facts: dict[str, Any] = json.loads(said.splitlines()[-1])
    return facts


def _script(mode: str, *arguments: str) -> tuple[str, ...]:
    return (str(_WORKER), mode, *arguments)

"""A second opinion on a .tflite file: TensorFlow's own interpreter, in a process and an environment of its own.

With TensorFlow installed, importing coremltools before torchvision segfaults; so it is never imported here, and it
may live in another virtual environment, whose Python is given. That environment needs TensorFlow only, not edgekit.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.errors import EdgekitError, LoadError, MissingExtraError, UsageError
from edgekit.export.session import FloatArray
from edgekit.printable import printable

PYTHON_VARIABLE = "EDGEKIT_TENSORFLOW_PYTHON"
TIMEOUT_S = 300.0
_NO_TENSORFLOW = 77
"""What the worker ends with where TensorFlow cannot be imported."""

_WORKER = """
import sys
import numpy as np
try:
    import tensorflow as tf
except ImportError:
    sys.exit(77)
path, threads, source, target = sys.argv[1:]
images = np.load(source)
interpreter = tf.lite.Interpreter(path, num_threads=int(threads))
interpreter.allocate_tensors()
entry = interpreter.get_input_details()[0]
last = entry["shape"][3] == 3
runner = interpreter.get_signature_list()
if runner:
    named = interpreter.get_signature_runner(next(iter(runner))).get_output_details()
else:
    named = {detail["name"]: detail for detail in interpreter.get_output_details()}
rows = {name: [] for name in named}
step = int(entry["shape"][0])  # the frames of a clip go together
for at in range(0, len(images), step):
    part = images[at : at + step]
    interpreter.set_tensor(entry["index"], (part.transpose(0, 2, 3, 1) if last else part).astype(entry["dtype"]))
    interpreter.invoke()
    for name, detail in named.items():
        rows[name].append(interpreter.get_tensor(detail["index"])[0])
np.savez(target, __version__=np.array(tf.__version__), **{name: np.stack(row) for name, row in rows.items()})
"""


def run_tensorflow(path: Path, images: FloatArray, python: Path, threads: int = 1) -> dict[str, FloatArray]:
    """Run a .tflite file with float inputs under TensorFlow.

    Args:
        path: the file.
        images: (N, 3, H, W) float32 in [0, 1].
        python: interpreter of an environment with TensorFlow.
        threads: of TensorFlow's interpreter.

    Returns:
        The outputs by the names of the file's signature, float32 (N, ...); a single one is called "logits".

    Raises:
        MissingExtraError: that environment has no TensorFlow.
        LoadError: TensorFlow refused the file, crashed or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        source, target = Path(folder) / "images.npy", Path(folder) / "outputs.npz"
        np.save(source, images)
        arguments = ("-c", _WORKER, str(path.absolute()), str(threads), str(source), str(target))
        run_script(python, arguments, f"TensorFlow cannot run {path.name}")
        try:
            with np.load(target, allow_pickle=False) as file:
                found = {name: file[name].astype(np.float32) for name in file.files if name != "__version__"}
        except (OSError, ValueError, zipfile.BadZipFile) as e:
            raise LoadError(f"TensorFlow's answer on {path.name} cannot be read: {e}") from e
    return {"logits": next(iter(found.values()))} if len(found) == 1 else found


def run_script(python: Path, arguments: Sequence[str], problem: str) -> str:
    """Run a script that ends with code 77 where it cannot import TensorFlow; return what it prints.

    Args:
        python: interpreter of an environment with TensorFlow.
        arguments: of the interpreter.
        problem: begins the line that says why it failed.

    Raises:
        MissingExtraError: that environment has no TensorFlow.
        LoadError: the script failed, crashed or took too long.
    """
    try:
        done = subprocess.run(
            alone(python, arguments), capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as e:
        raise LoadError(f"TensorFlow gave no answer within {TIMEOUT_S:g} s") from e
    except OSError as e:
        raise LoadError(f"{python} cannot be run: {e.strerror or e}") from e
    if done.returncode != 0:
        raise script_failure(python, done.returncode, done.stderr, problem)
    return done.stdout


def script_failure(python: Path, code: int, stderr: str, problem: str) -> EdgekitError:
    """Return the error for a script of `run_script` that ended with `code`."""
    if code == _NO_TENSORFLOW:
        return MissingExtraError("tensorflow", "tensorflow", f"Running under TensorFlow ({python})")
    last = (stderr.strip().splitlines() or [f"it ended with code {code}"])[-1]
    return LoadError(f"{problem}: {printable(last, 300)}")


def alone(python: Path, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs `python` without the working folder or PYTHONPATH, another environment's perhaps."""
    return [str(python), "-I", *arguments]


def tensorflow_python(given: Path | None) -> Path:
    """Return the Python that has TensorFlow: the given one, else `EDGEKIT_TENSORFLOW_PYTHON`, else this one.

    Raises:
        UsageError: the given or named one is no file.
        MissingExtraError: none was given, and this environment has no TensorFlow.
    """
    if given is not None:
        if not given.is_file():
            raise UsageError(f"--tensorflow-python {given} is not there; give the python of an environment")
        return given.absolute()
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise UsageError(f"{PYTHON_VARIABLE} is {named}, which is not there; give the python of an environment")
        return Path(named).absolute()
    if importlib.util.find_spec("tensorflow") is None:  # looked for, not imported
        raise MissingExtraError(
            "tensorflow", "tensorflow", f"TensorFlow (or {PYTHON_VARIABLE}, the python of another environment)"
        )
    return Path(sys.executable)

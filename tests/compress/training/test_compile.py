"""Training through torch.compile: really compiled, the same losses, plain names in the files, and a resume."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.checkpointing import Checkpoints
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from tests.sides_for_tests import CONFIG, Interrupted, Sides, new_run, saved
from tests.tolerances import COMPILED

COMPILED_CONFIG = CONFIG.model_copy(update={"compile": True, "ema_decay": 0.9})
_COMPILER = next(filter(shutil.which, (os.environ.get("CXX", "g++"), "clang++")), None)
_HEADER = Path(sysconfig.get_paths()["include"], "Python.h")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_COMPILER is None, reason="torch.compile needs a C++ compiler"),
    pytest.mark.skipif(not _HEADER.is_file(), reason=f"torch.compile needs {_HEADER}"),
]


class Witness(nn.Module):
    """Passes on what it gets, and tells whether torch.compile was tracing when it did so last."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled = False

    def forward(self, x: Tensor) -> Tensor:
        self.compiled = torch.compiler.is_compiling()
        return x


class Compilable(Sides):
    """Without dropout, whose numbers the compiler draws in another way."""

    def __init__(self, *, stop_in_epoch: int = 0) -> None:
        super().__init__(stop_in_epoch=stop_in_epoch)
        torch.manual_seed(0)
        self.witness = Witness()
        self.model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), self.witness, nn.Linear(16, 2))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile anew, whatever an earlier run has left on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


def train(path: Path, config: FitConfig) -> tuple[Compilable, list[float]]:
    task = Compilable()
    result = fit(task, config, new_run(path))
    return task, [row["loss"] for row in result.rows]


def test_a_compiled_run_is_the_eager_one_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    # In a process of its own: the compiler's first use imports setuptools, which puts its own distutils in place, and
    # whether that works depends on what other tests have imported, and on warnings being errors here.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_compare, tmp_path).result()


def _compare(tmp_path: Path) -> None:
    plain, expected = train(tmp_path / "eager", COMPILED_CONFIG.model_copy(update={"compile": False}))
    task, losses = train(tmp_path / "compiled", COMPILED_CONFIG)
    assert (plain.witness.compiled, task.witness.compiled) == (False, True)
    assert losses == pytest.approx(expected, rel=COMPILED)

    names = set(plain.model.state_dict())
    assert set(saved(tmp_path / "compiled")) == names
    for entry in Checkpoints(tmp_path / "compiled" / "last", pytest.fail).entries():
        state = torch.load(tmp_path / "compiled" / "last" / entry.name, weights_only=True)
        assert set(state["model"]) == set(state["ema"]) == names

    new_run(tmp_path / "cut")
    with pytest.raises(Interrupted):
        fit(Compilable(stop_in_epoch=3), COMPILED_CONFIG, RunFolder(tmp_path / "cut"))
    again = Compilable()
    resumed = fit(again, COMPILED_CONFIG, RunFolder(tmp_path / "cut"), resume=True)
    assert again.epochs == [3, 4] and again.witness.compiled
    assert [row["loss"] for row in resumed.rows] == pytest.approx(losses, rel=COMPILED)
    for name, tensor in saved(tmp_path / "cut").items():
        torch.testing.assert_close(tensor, saved(tmp_path / "compiled")[name], rtol=0, atol=COMPILED)

"""An environment with chosen packages only: a real venv whose packages are links to those installed here."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


class BareEnvironment:
    """A venv that holds edgekit's core and the distributions named, with all that they require, and nothing else."""

    def __init__(self, folder: Path, extra: Iterable[str] = ()) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site = next(folder.glob("lib/python*/site-packages"))
        for name in _closure(["edgekit", *extra]):
            self._link(_installed(name))

    def edgekit(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the `edgekit` command in the environment."""
        # the tests' own path would let packages in that are not meant to be there
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [str(self.python), "-m", "edgekit", *map(str, arguments)]
        folder = self.python.parent  # not the repository, whose folders could be found there
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=environment)

    def add_module(self, distribution: str, module: str, source: str) -> None:
        """Add a distribution of one module."""
        (self.site / f"{module}.py").write_text(source)
        info = self.site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")

    def _link(self, distribution: metadata.Distribution) -> None:
        for file in distribution.files or ():
            top = file.parts[0]
            target = self.site / top
            if top not in ("..", "__pycache__") and not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))))


def _installed(name: str) -> metadata.Distribution:
    """Return a distribution as it is installed; the repository's own egg-info, on the path of tests, is not that."""
    folder = sysconfig.get_paths()["purelib"]
    return next(iter(metadata.distributions(name=name, path=[folder])))


def _closure(names: Iterable[str]) -> set[str]:
    """Return the names and everything that they require here, extras not asked for."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for text in _installed(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found

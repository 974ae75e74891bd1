"""What devices share: which of the candidates they run, and files whose outputs their tool does not tell."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.bench.candidates import Candidate
from edgekit.bench.devices.stored import precision_here
from edgekit.bench.timing import ColdStart
from edgekit.errors import LoadError
from edgekit.export.session import FloatArray, Outputs, RuntimeInfo


class Runnable:
    """Sorts out the candidates that a device cannot run: those that were given by name fail, the others are left out.

    Args:
        files: that were given.
        formats: that the device runs.
        refusal: why a file of another format fails.

    Attributes:
        left_out: names of candidates of other formats, from bundles.
    """

    def __init__(self, files: Sequence[Path], formats: Collection[str], refusal: str) -> None:
        self._named = {path.absolute() for path in files}
        self._formats, self._refusal = formats, refusal
        self.left_out: list[str] = []

    def of(self, found: Sequence[Candidate]) -> Iterator[Candidate]:
        """Yield what has a row: what can be run, and what fails, with its problem."""
        for candidate in found:
            if candidate.problem is not None or candidate.format in self._formats:
                yield candidate
            elif candidate.path is not None and candidate.path.absolute() in self._named:
                yield replace(candidate, problem=self._refusal)
            else:
                self.left_out.append(candidate.name)


class TimedFile:
    """A `Holder` of a file that a tool times, and no more."""

    tool: str
    info: RuntimeInfo
    input_shape: tuple[int | None, int, int, int]
    cold: ColdStart
    process_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    ended = False

    def loaded(self) -> None:
        """Do nothing: the tool brings its runtime with it."""

    def __call__(self, images: FloatArray) -> Outputs:
        """Refuse: the tool does not tell what a model puts out.

        Raises:
            LoadError: always.
        """
        raise LoadError(f"{self.tool} does not tell what a model puts out")

    def precision(self, path: Path) -> str:
        """Read the precision here, in a process of its own."""
        return precision_here(path)

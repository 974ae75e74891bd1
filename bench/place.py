"""Where models under test are held: in processes of this machine, or in a browser. `run_bench` knows only this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgekit.bench.candidates import Candidate
from edgekit.bench.machine import Machine, describe_machine
from edgekit.bench.timing import ColdStart, Timer
from edgekit.bench.variants import local_variants
from edgekit.bench.worker import Worker
from edgekit.export.session import FloatArray, Outputs, RuntimeInfo


class Holder(Protocol):
    """A model held open somewhere; once open a `Session`, and a source of `Timer`s.

    Attributes:
        info, input_shape: as in `Session`.
        cold: what loading and the first call took.
        process_memory_bytes: most memory that its process had held before the model was opened; None where unknown.
        peak_memory_bytes: the same after the first calls on one picture.
        ended: whether what held it is no more.

    Every method raises LoadError where the model, or what holds it, fails; the message says why.
    """

    info: RuntimeInfo
    input_shape: tuple[int | None, int, int, int]
    cold: ColdStart
    process_memory_bytes: int | None
    peak_memory_bytes: int | None

    @property
    def ended(self) -> bool: ...

    def loaded(self) -> None:
        """Wait until the libraries are loaded."""

    def open(self) -> None:
        """Open the model and call it twice."""

    def __call__(self, images: FloatArray) -> Outputs:
        """Run any number of images (N, 3, H, W) float32 in [0, 1] through the model."""
        ...

    def timer(self, batch: int | None = None) -> Timer:
        """Return what takes visits of a batch, by default the file's own or one picture."""
        ...

    def precision(self, path: Path) -> str:
        """Return what a file's weights are stored in."""
        ...

    def close(self) -> None:
        """Let go of the model."""


class Place(Protocol):
    """Where the models of one run are held.

    Attributes:
        device: its name for the report, e.g. "local".
        proves: whether golden vectors are run there: it is not where the files were proven.
        notes: what a reader of the report must know of it; asked for after everything has run.
    """

    @property
    def device(self) -> str: ...

    @property
    def proves(self) -> bool: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def machine(self) -> Machine:
        """Return facts about it."""
        ...

    def candidates(self, found: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return what of `found` can be measured there, each in every way that it can be."""
        ...

    def start(self, candidate: Candidate) -> Holder:
        """Begin to hold a candidate that has no problem and is to be opened."""
        ...


class ThisMachine:
    """Each model in a process of its own."""

    device = "local"
    proves = False
    notes: Sequence[str] = ()

    def machine(self) -> Machine:
        """Return facts about this machine."""
        return describe_machine()

    def candidates(self, found: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return all, each in every way that this machine can run it."""
        return local_variants(found)

    def start(self, candidate: Candidate) -> Holder:
        """Start a process that loads its libraries."""
        assert candidate.opening is not None
        return Worker(candidate.opening)

"""Training states on the disk: each written whole or not at all, the last two kept, damage met by the one before.

`last/manifest.json` lists them, newest first, with their sha256. A state is written before the manifest names it, and
removed after the manifest has forgotten it: a kill at any moment leaves a manifest whose states are all there.
Knows no torch: a state is bytes here, and they go to the disk as they come, never all in memory at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from edgekit import atomic
from edgekit.errors import LoadError

KEPT = 2
MANIFEST_VERSION = 1
_NAME = re.compile(r"state-(\d{6})-(\d{8})\.pt")


@dataclass(frozen=True)
class Entry:
    """A training state in the manifest.

    Attributes:
        name: its file.
        epoch: the 1-based epoch that it continues with.
        step: steps of that epoch that are done.
        sha256: of the file; empty where the manifest was lost.
    """

    name: str
    epoch: int
    step: int
    sha256: str


class Stream(Protocol):
    """What a state is written to."""

    def write(self, part: bytes | memoryview, /) -> int: ...

    def flush(self) -> None: ...


class _Recorder:
    """Passes bytes on to a file, hashes them, and keeps the first error for `close`.

    torch writes through C++, which cannot be relied on to pass an exception through: of a full disk it tells nothing
    but "unexpected pos". After an error the rest is swallowed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._error: OSError | None = None

    def write(self, part: bytes | memoryview) -> int:
        length = part.nbytes if isinstance(part, memoryview) else len(part)
        if self._error is None:
            try:
                self._file.write(part)
                self._digest.update(part)
            except OSError as e:
                self._error = e
        return length

    def flush(self) -> None:
        if self._error is None:
            try:
                self._file.flush()
            except OSError as e:
                self._error = e

    def close(self) -> str:
        """Return the sha256 of all that was written; raise what a write ran into."""
        self.flush()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()


class Checkpoints:
    """The states of one run.

    Args:
        folder: where they lie, `last/` of a run folder.
        warn: told of every state that is passed over.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self._warn = folder, warn
        self._manifest = folder / "manifest.json"

    def save(self, write: Callable[[Stream], object], *, epoch: int, step: int) -> None:
        """Let `write` write a state, and forget all but the last two.

        Raises:
            WriteError: the disk is full or read-only; the states that were there are untouched.
        """
        name = f"state-{epoch:06d}-{step:08d}.pt"
        # states from after this position belong to a future that was rolled back
        older = [e for e in self.entries() if (e.epoch, e.step) < (epoch, step)]
        with atomic.atomic_path(self.folder / name) as temporary, temporary.open("wb") as file:
            recorder = _Recorder(file)
            write(recorder)
            digest = recorder.close()
        kept = [Entry(name, epoch, step, digest), *older[: KEPT - 1]]
        atomic.write_json(self._manifest, {"version": MANIFEST_VERSION, "states": [asdict(e) for e in kept]})
        names = {e.name for e in kept}
        for path in self.folder.glob("state-*.pt"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def load(self, *, skip: int = 0) -> Iterator[tuple[Entry, bytes]]:
        """Yield the whole states, newest first, without the first `skip`; warn of each damaged one.

        Raises:
            LoadError: there are states, and none of them is whole; or a newer edgekit wrote them.
        """
        entries = self.entries()
        if not entries and (self.folder / "state.pt").is_file():
            raise LoadError(
                f"{self.folder} cannot be resumed from: an edgekit before 0.1 wrote it. Start over with --overwrite"
            )
        whole = 0
        for entry in entries:
            content = self._read(entry)
            if content is None:
                continue
            whole += 1
            if whole > skip:
                yield entry, content
        if entries and not whole:
            raise LoadError(
                f"{self.folder} cannot be resumed from: none of its {len(entries)} training states is whole. "
                f"Start over with --overwrite"
            )

    def forget_after(self, entry: Entry) -> None:
        """Strike the states newer than `entry` from the manifest: the run goes on from `entry`."""
        kept = [e for e in self.entries() if (e.epoch, e.step) <= (entry.epoch, entry.step)]
        atomic.write_json(self._manifest, {"version": MANIFEST_VERSION, "states": [asdict(e) for e in kept]})

    def clear(self) -> None:
        """Remove all states."""
        for path in (self._manifest, *self.folder.glob("state-*.pt")):
            path.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """Return what the manifest lists, newest first; where it is lost, what lies in the folder.

        Raises:
            LoadError: a newer edgekit wrote it.
        """
        try:
            content = json.loads(self._manifest.read_text(encoding="utf-8"))
            version = int(content["version"])
            entries = [
                Entry(str(e["name"]), int(e["epoch"]), int(e["step"]), str(e["sha256"])) for e in content["states"]
            ]
            if not all(_NAME.fullmatch(e.name) for e in entries):  # no path out of the folder
                raise ValueError("it names a file that is no state")
        except FileNotFoundError:
            return self._found()
        except (OSError, ValueError, KeyError, TypeError) as e:
            self._warn(f"{self._manifest} is damaged ({e}); the training states beside it are used unchecked")
            return self._found()
        if version > MANIFEST_VERSION:
            raise LoadError(f"{self._manifest} was written by a newer edgekit (version {version}); update edgekit")
        return entries

    def _found(self) -> list[Entry]:
        """Return the states by their names alone."""
        matches = (_NAME.fullmatch(path.name) for path in self.folder.glob("state-*.pt"))
        found = [Entry(m[0], int(m[1]), int(m[2]), "") for m in matches if m]
        # without a manifest at all the first save was killed before it was done: its state may still be used
        return sorted(found, key=lambda e: (e.epoch, e.step), reverse=True)

    def _read(self, entry: Entry) -> bytes | None:
        path = self.folder / entry.name
        try:
            content = path.read_bytes()
        except OSError as e:
            self._warn(f"the training state {path} cannot be read ({e.strerror or e}); going back to the one before")
            return None
        if entry.sha256 and hashlib.sha256(content).hexdigest() != entry.sha256:
            self._warn(f"the training state {path} is damaged (its sha256 is wrong); going back to the one before")
            return None
        return content


@dataclass(frozen=True)
class Cadence:
    """How often a state is saved within an epoch; one of both is set.

    Attributes:
        steps: optimizer steps between two saves.
        seconds: wall time between two saves.
    """

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Cadence:
        """Return the cadence that "200" (steps), "60s" or "5m" stands for.

        Raises:
            ValueError: it is none of these, or not above zero.
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m)?\s*", text)
        if match is None or float(match[1]) <= 0 or (match[2] is None and "." in match[1]):
            raise ValueError(f"'{text}' is no interval: give steps (200), seconds (60s) or minutes (5m)")
        if match[2] is None:
            return cls(steps=int(match[1]))
        return cls(seconds=float(match[1]) * (60 if match[2] == "m" else 1))


class Due:
    """Tells when the next save within an epoch is due."""

    def __init__(self, cadence: Cadence | None) -> None:
        self._cadence = cadence
        self.saved()

    def saved(self) -> None:
        """Count from now on."""
        self._steps, self._at = 0, time.monotonic()

    def step(self) -> bool:
        """Count one step and return whether a save is due."""
        self._steps += 1
        if self._cadence is None:
            return False
        if self._cadence.steps is not None:
            return self._steps >= self._cadence.steps
        assert self._cadence.seconds is not None
        return time.monotonic() - self._at >= self._cadence.seconds

"""Talk to a phone through the `adb` command: push a file, run a line of shell, read a property."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import LoadError
from edgekit.printable import printable

_PUSH_S = 600.0
_ASK_S = 60.0
_LOST = ("not found", "offline", "no devices", "closed", "unauthorized", "protocol fault", "failed to get feature set")


class LostError(LoadError):
    """The phone is not there any more."""


@dataclass(frozen=True)
class Adb:
    """A phone.

    Attributes:
        serial: as `adb devices` lists it; None where only one is connected.
    """

    serial: str | None = None

    def __str__(self) -> str:
        return f"adb:{self.serial}" if self.serial else "adb"

    def check(self) -> None:
        """Make sure that the phone is there and lets us in.

        Raises:
            LoadError: it is not, and what to do.
        """
        done = self._run(("get-state",), _ASK_S)
        if done.returncode != 0 or done.stdout.strip() != b"device":
            said = _said(done) or "no answer"
            raise LoadError(
                f"{self} cannot be used: {said}. Connect one phone with USB debugging allowed, or name it as "
                "`adb devices` lists it: --device adb:SERIAL"
            )

    def push(self, source: Path, target: str) -> None:
        """Copy a file to the phone.

        Raises:
            LoadError: it could not be copied.
        """
        done = self._run(("push", str(source), target), _PUSH_S)
        if done.returncode != 0:
            raise self._error(done, f"{source.name} could not be copied to the phone")

    def shell(self, line: str, limit_s: float = _ASK_S) -> tuple[int, str]:
        """Run a line of shell; return its exit code and all it printed.

        Raises:
            LostError: the phone is gone.
            LoadError: no answer in time.
        """
        done = self._run(("shell", f"{{ {line}; }} 2>&1"), limit_s)
        if done.returncode != 0 and done.stderr:  # of adb itself: all that the line prints is on standard output
            raise self._error(done, "the phone did not answer")
        return done.returncode, done.stdout.decode(errors="replace")

    def ask(self, line: str) -> str | None:
        """Return what a line of shell prints, None where it fails or prints nothing."""
        code, text = self.shell(line)
        return printable(text.strip(), 100) or None if code == 0 else None

    def _error(self, done: subprocess.CompletedProcess[bytes], what: str) -> LoadError:
        said = _said(done)
        if any(word in said for word in _LOST):
            return LostError(f"{self} went away: {said}")
        return LoadError(f"{what}: {said}")

    def _run(self, arguments: tuple[str, ...], limit_s: float) -> subprocess.CompletedProcess[bytes]:
        named = ("-s", self.serial) if self.serial else ()
        try:
            return subprocess.run(
                ["adb", *named, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s
            )
        except FileNotFoundError as e:
            raise LoadError("--device adb needs the command adb, of Android's platform tools; install it") from e
        except subprocess.TimeoutExpired as e:
            raise LostError(f"{self} gave no answer within {limit_s:g} s") from e


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    text = (done.stderr or done.stdout).decode(errors="replace").strip()
    lines = [line for line in text.splitlines() if not line.startswith("* daemon")]
    return printable(lines[-1].removeprefix("adb: ").removeprefix("error: "), 300) if lines else ""

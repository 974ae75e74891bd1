"""`--device ssh:USER@HOST[:PORT]`: the same bench on another computer that has edgekit, over the system's own ssh."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.bench.accuracy import Progress
from edgekit.bench.candidates import Candidate
from edgekit.bench.devices.device import Say
from edgekit.bench.devices.failed import candidates_of, failed_row, report_of
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig
from edgekit.errors import EXIT_NEGATIVE, EXIT_OK, EdgekitError, LoadError, UsageError
from edgekit.export.manifest import MANIFEST_FILE
from edgekit.printable import printable

_NAME = re.compile(r"(?:(?P<user>[\w.+-]+)@)?(?P<host>[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:.%\w]+\])(?::(?P<port>\d{1,5}))?")
_REMOTE = re.compile(r"/[\w./+-]+")
_CONNECTION_FAILED = 255
_NOT_FOUND = 127
_STEP_S = 120.0
_COPY_S = 1800.0
_OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),  # no questions: they would wait for ever behind a bar
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


@dataclass(frozen=True)
class SshHost:
    """Where to log in; what is None is left to the user's own ssh configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> SshHost:
        """Read USER@HOST[:PORT].

        Raises:
            UsageError: it is none; above all it must not begin with a dash, which ssh would take for an option.
        """
        found = _NAME.fullmatch(text)
        port = int(found["port"]) if found and found["port"] else None
        if found is None or (port is not None and not 0 < port < 65536):
            raise UsageError(f"--device ssh:{text} names no computer; give ssh:USER@HOST or ssh:USER@HOST:PORT")
        return cls(found["host"].strip("[]"), found["user"], port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


@dataclass(frozen=True)
class SshDevice:
    """Another computer, e.g. a Raspberry Pi, a Jetson or a Mac.

    Attributes:
        host: where to log in; a key must open it, as nothing is asked.
        command: how edgekit is called there, as its shell takes it.
        say: shows a line to the user.
        config_file: ssh configuration in the place of the user's own.
    """

    host: SshHost
    say: Say
    command: str = "edgekit"
    config_file: Path | None = None

    @property
    def name(self) -> str:
        """The device's name in reports."""
        return f"ssh:{self.host}"

    def bench(self, config: BenchConfig, progress: Progress | None = None) -> BenchReport:
        """Copy the files there, measure there, and bring the result back; see `Device`."""
        bar = progress or (lambda description, total: nullcontext(lambda count: None))
        candidates = candidates_of(config, "ssh")
        with bar(f"{self.name}: copying, measuring, cleaning up", 3) as advance:
            remote = self._make_folder(len(config.files))
            try:
                given = [self._copy(path, f"{remote}/{number}") for number, path in enumerate(config.files)]
                advance(1)
                done = self._ssh(_script(self.command, remote, given, config), limit_s=None)
                advance(1)
            finally:
                with suppress(EdgekitError):  # what it measured counts, and who has gone cannot clean up
                    self._ssh(f"rm -rf {remote}", limit_s=_STEP_S)
            advance(1)
        if done.returncode == _CONNECTION_FAILED:
            reason = f"{self.name} went away while it measured: {_last_line(done.stderr)}"
            return report_of([failed_row(one, reason) for one in candidates], config, self.name)
        report = self._read(done)
        return _named_as_here(replace(report, device=self.name), candidates, config.files, remote)

    def _make_folder(self, count: int) -> str:
        """Make a folder there, with one in it for each given path.

        Raises:
            LoadError: the computer cannot be reached.
        """
        inner = " ".join(f'"$d/{number}"' for number in range(count))
        done = self._ssh(f'd=$(mktemp -d /tmp/edgekit-bench.XXXXXX) && mkdir {inner} && echo "$d"', limit_s=_STEP_S)
        remote = done.stdout.decode(errors="replace").strip().splitlines()[-1:] or [""]
        if done.returncode != 0 or not _REMOTE.fullmatch(remote[0]):
            raise LoadError(f"{self.name} cannot be used: {_last_line(done.stderr) or 'it made no folder'}")
        return remote[0]

    def _copy(self, path: Path, folder: str) -> str:
        """Copy a bundle or a file, with the manifest beside it that tells of it; return its path there."""
        whole = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow links and change names
        sources = [whole, *([] if (whole / MANIFEST_FILE).is_file() else [whole.parent / MANIFEST_FILE])]
        existing = [str(source) for source in sources if source.exists()]  # what is not there is told there
        host = f"[{self.host.host}]" if ":" in self.host.host else self.host.host
        target = (f"{self.host.user}@" if self.host.user else "") + f"{host}:{folder}/"
        port = ("-P", str(self.host.port)) if self.host.port else ()
        if existing:
            done = _run(["scp", "-r", "-q", *self._options(), *port, *existing, target], _COPY_S)
            if done.returncode != 0:
                raise LoadError(f"{path} cannot be copied to {self.name}: {_last_line(done.stderr)}")
        return f"{folder}/{sources[0].name}"

    def _read(self, done: subprocess.CompletedProcess[bytes]) -> BenchReport:
        if done.returncode == _NOT_FOUND:
            raise LoadError(
                f"{self.name} has no command '{self.command}': install edgekit there, or say how it is called with "
                "--remote-command, e.g. .venv/bin/edgekit"
            )
        if done.returncode not in (EXIT_OK, EXIT_NEGATIVE) or not done.stdout.strip():
            raise LoadError(f"{self.name} could not measure: {_last_line(done.stderr) or f'exit {done.returncode}'}")
        try:
            return BenchReport.from_json(json.loads(done.stdout))
        except (ValueError, RecursionError, UsageError) as e:
            raise LoadError(f"{self.name} gave no bench result: {printable(str(e), 300)}") from e

    def _ssh(self, script: str, limit_s: float | None) -> subprocess.CompletedProcess[bytes]:
        """Run a script of the POSIX shell there, whatever the login shell is."""
        port = ("-p", str(self.host.port)) if self.host.port else ()
        login = ("-l", self.host.user) if self.host.user else ()
        return _run(["ssh", *self._options(), *port, *login, self.host.host, f"sh -c {shlex.quote(script)}"], limit_s)

    def _options(self) -> tuple[str, ...]:
        return (*_OPTIONS, *(("-F", str(self.config_file)) if self.config_file else ()))


def _script(command: str, remote: str, given: Sequence[str], config: BenchConfig) -> str:
    """Return what runs there: the same bench, cleaning up at its end even if nobody listens any more."""
    options = ["--json", "--quiet", "--threads", str(config.threads)]
    if config.latency is None:
        options.append("--no-latency")
    else:
        options += ["--budget", str(config.latency.max_time_s)]
    if config.batch_size is not None:
        options += ["--batch-size", str(config.batch_size)]
    if config.duration_s is not None:
        options += ["--duration", str(config.duration_s)]
    paths = " ".join(shlex.quote(path) for path in given)
    return f"trap 'rm -rf {remote}' EXIT; {command} bench {paths} {' '.join(options)}"


def _run(command: Sequence[str], limit_s: float | None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s)
    except FileNotFoundError as e:
        raise LoadError(f"--device ssh needs the command {command[0]}, OpenSSH's client; install it") from e
    except subprocess.TimeoutExpired as e:
        raise LoadError(f"{command[0]} gave no answer within {limit_s:g} s") from e


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return printable(lines[-1], 300) if lines else ""


def _named_as_here(
    report: BenchReport, candidates: Sequence[Candidate], files: Sequence[Path], remote: str
) -> BenchReport:
    """Give models the names, and paths the places, that they have here."""
    same = len(report.rows) == len(candidates)
    names = {row.name: one.name for row, one in zip(report.rows, candidates, strict=True)} if same else {}
    folders = {f"{remote}/{number}/": f"{path.parent}/" for number, path in enumerate(files)}

    def here(text: str) -> str:
        for there, local in folders.items():
            text = text.replace(there, local if local != "./" else "")
        return text

    def named(name: str) -> str:
        return names.get(name, name)

    return replace(
        report,
        rows=tuple(
            replace(row, name=named(row.name), failure=row.failure and here(row.failure)) for row in report.rows
        ),
        baseline=report.baseline and named(report.baseline),
        samples={named(name): samples for name, samples in report.samples.items()},
        answers={named(name): answers for name, answers in report.answers.items()},
    )

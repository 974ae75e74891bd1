"""A real OpenSSH server on loopback, with keys and a configuration of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from edgekit.bench.devices.ssh import SshHost


@dataclass(frozen=True)
class Sshd:
    """Where it listens, the client's configuration, and its process."""

    host: SshHost
    config_file: Path
    process: psutil.Process

    def drop(self) -> None:
        """Cut every connection."""
        for child in self.process.children(recursive=True):
            if child.name().startswith("sshd"):
                child.kill()


@contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """Run the server; skip where there is none."""
    server = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if server is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH's server is not installed (Debian: apt-get install openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself up; the service's script makes it
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    settings = [
        "ListenAddress 127.0.0.1", f"Port {port}", f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/authorized",
        "PidFile none", "StrictModes no", "UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
        "Subsystem sftp internal-sftp",
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(settings) + "\n")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([server, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    client = [
        "Host *", f"IdentityFile {folder}/user", "IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known",
        "StrictHostKeyChecking accept-new", "LogLevel ERROR",
    ]  # fmt: skip
    (folder / "config").write_text("\n".join(client) + "\n")
    try:
        _wait_for(port, process, folder)
        yield Sshd(SshHost("127.0.0.1", getpass.getuser(), port), folder / "config", psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip(f"OpenSSH's server does not run here: {(folder / 'sshd.log').read_text()[-300:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("OpenSSH's server does not listen")

"""A scripted Android phone behind adb's real protocol: the real adb client and server talk to it over TCP.

It answers as adbd does (packages/modules/adb: protocol.txt, SYNC.TXT, shell_protocol.h): connections, streams, the
"shell,v2" and "sync:" services. Lines of shell run here, in a folder that stands for the phone's /data/local/tmp.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

A_CNXN, A_OPEN, A_OKAY, A_CLSE, A_WRTE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
_BANNER = b"device::ro.product.name=scripted;ro.product.model=Scripted;ro.product.device=scripted;features=shell_v2,cmd"
_PHONE_FOLDER = "/data/local/tmp"
_PROPERTIES = {
    "ro.product.model": "Scripted Phone 1", "ro.build.version.release": "14", "ro.soc.model": "SM0000",
}  # fmt: skip
# what TensorFlow Lite's tool prints, around calls that LiteRT really makes here
_TOOL = """#!{python}
import os, statistics, sys, time
begin = time.perf_counter()
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
print("INFO: STARTING!")
for name, value in options.items():
    print("INFO: " + name + ": [" + value + "]")
from ai_edge_litert.interpreter import Interpreter
start = time.perf_counter()
try:
    interpreter = Interpreter(options["graph"], num_threads=int(options["num_threads"]))
    interpreter.allocate_tensors()
except ValueError as e:
    print("ERROR: Failed to load model " + options["graph"], file=sys.stderr)
    print("ERROR: Benchmarking failed.", file=sys.stderr)
    sys.exit(1)
init = time.perf_counter() - start
print("INFO: Replacing 3 out of 3 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for the whole graph.")
print("INFO: The input model file size (MB): %g" % (os.path.getsize(options["graph"]) / 1e6))
print("INFO: Initialized session in %gms." % (1e3 * init))

def run(least, seconds):
    print("INFO: Running benchmark for at least %d iterations and at least %g seconds but terminate if exceeding 150 seconds." % (least, seconds))
    took, begun = [], time.perf_counter()
    while len(took) < least or time.perf_counter() - begun < seconds:
        start = time.perf_counter_ns()
        interpreter.invoke()
        took.append((time.perf_counter_ns() - start) // 1000)
    mean, deviation = statistics.mean(took), round(statistics.pstdev(took))
    if len(took) == 1:
        print("INFO: count=1 curr=%d" % took[0])
    else:
        print("INFO: count=%d first=%d curr=%d min=%d max=%d avg=%g std=%d" % (len(took), took[0], took[-1], min(took), max(took), mean, deviation))
    print()
    return took[0], mean

first, warm = run(int(options["warmup_runs"]), float(options["warmup_min_secs"]))
_, mean = run(int(options["num_runs"]), float(options["min_secs"]))
print("INFO: Inference timings in us: Init: %d, First inference: %d, Warmup (avg): %g, Inference (avg): %g" % (1e6 * init, first, warm, mean))
print("INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.")
print("INFO: Memory footprint delta from the start of the tool (MB): init=2.25 overall=3.5")
"""  # noqa: E501


def write_tool(path: Path) -> Path:
    """Write a program that speaks as `benchmark_model` does, and times LiteRT of this machine."""
    path.write_text(_TOOL.replace("{python}", sys.executable))
    return path


class Phone:
    """The phone; it serves until it is unplugged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        (folder / "bin").mkdir(parents=True)
        (folder / "tmp").mkdir()
        cases = "".join(f"  {name}) echo '{value}';;\n" for name, value in _PROPERTIES.items())
        (folder / "bin" / "getprop").write_text(f"#!/bin/sh\ncase $1 in\n{cases}esac\n")
        (folder / "bin" / "getprop").chmod(0o755)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listening.getsockname()[1]}"  # as adb names it
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def unplug(self) -> None:
        """Be gone."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def left_over(self) -> list[str]:
        """Return what lies in its folder for temporary files."""
        return sorted(path.name for path in (self.folder / "tmp").iterdir())

    def run(self, line: str) -> subprocess.Popen[bytes]:
        """Start a line of shell as the phone's shell would."""
        self.lines.append(line)
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        here = line.replace(_PHONE_FOLDER, str(self.folder / "tmp"))
        return subprocess.Popen(
            ["sh", "-c", here], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={**os.environ, "PATH": path}
        )

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._connections.append(connection)
                threading.Thread(target=_Transport(self, connection).serve, daemon=True).start()


class _Transport:
    """A connection of an adb server, with its streams."""

    def __init__(self, phone: Phone, connection: socket.socket) -> None:
        self._phone, self._connection = phone, connection
        self._writing = threading.Lock()
        self._streams: dict[int, _Stream] = {}
        self._count = 0

    def serve(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                command, first, second, length, _, magic = struct.unpack("<6I", self._exactly(24))
                assert magic == command ^ 0xFFFFFFFF
                content = self._exactly(length)
                if command == A_CNXN:
                    self.send(A_CNXN, 0x01000000, 256 * 1024, _BANNER)
                elif command == A_OPEN:
                    self._open(first, content.rstrip(b"\0").decode())
                elif second in self._streams:
                    self._streams[second].take(command, content)

    def send(self, command: int, first: int, second: int, content: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(content), sum(content), command ^ 0xFFFFFFFF)
        with self._writing, suppress(OSError):
            self._connection.sendall(head + content)

    def _open(self, theirs: int, service: str) -> None:
        self._count += 1
        kind, _, line = service.partition(":")
        if not kind.startswith("shell") and kind != "sync":
            self.send(A_CLSE, 0, theirs)
            return
        stream = _Stream(self, self._count, theirs)
        self._streams[self._count] = stream
        self.send(A_OKAY, self._count, theirs)
        target = (lambda: _shell(self._phone, stream, line)) if kind != "sync" else (lambda: _sync(self._phone, stream))
        threading.Thread(target=target, daemon=True).start()

    def _exactly(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            more = self._connection.recv(count - len(content))
            if not more:
                raise EOFError
            content += more
        return content


class _Stream:
    """One service's stream: what is written waits for the other side's word that it came."""

    def __init__(self, transport: _Transport, ours: int, theirs: int) -> None:
        self._transport, self._ours, self._theirs = transport, ours, theirs
        self._came = threading.Condition()
        self._inbox = b""
        self._ready = False
        self._closed = False

    def take(self, command: int, content: bytes) -> None:
        with self._came:
            if command == A_WRTE:
                self._inbox += content
                self._transport.send(A_OKAY, self._ours, self._theirs)
            elif command == A_OKAY:
                self._ready = True
            elif command == A_CLSE:
                self._closed = True
            self._came.notify_all()

    def read(self, count: int) -> bytes:
        with self._came:
            self._came.wait_for(lambda: len(self._inbox) >= count or self._closed, 60)
            if len(self._inbox) < count:
                raise EOFError
            content, self._inbox = self._inbox[:count], self._inbox[count:]
            return content

    def write(self, content: bytes) -> None:
        with self._came:
            self._ready = False
            self._transport.send(A_WRTE, self._ours, self._theirs, content)
            self._came.wait_for(lambda: self._ready or self._closed, 60)

    def close(self) -> None:
        self._transport.send(A_CLSE, self._ours, self._theirs)


def _shell(phone: Phone, stream: _Stream, line: str) -> None:
    process = phone.run(line)
    assert process.stdout is not None
    with process.stdout as output:
        while content := output.read1(4096):
            stream.write(struct.pack("<BI", 1, len(content)) + content)
    code = process.wait()
    stream.write(struct.pack("<BIB", 3, 1, code % 256))
    stream.close()


def _sync(phone: Phone, stream: _Stream) -> None:
    with suppress(EOFError):
        while True:
            kind, length = struct.unpack("<4sI", stream.read(8))
            if kind == b"QUIT":
                break
            text = stream.read(length).decode()
            if kind == b"STAT":
                stream.write(struct.pack("<4s3I", b"STAT", 0, 0, 0))
            elif kind == b"SEND":
                path, _, mode = text.rpartition(",")
                target = Path(path.replace(_PHONE_FOLDER, str(phone.folder / "tmp")))
                with target.open("wb") as file:
                    while True:
                        part, size = struct.unpack("<4sI", stream.read(8))
                        if part == b"DONE":
                            break
                        file.write(stream.read(size))
                target.chmod(int(mode) & 0o777)
                stream.write(struct.pack("<4sI", b"OKAY", 0))
    stream.close()


@contextmanager
def plugged_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    """Connect a phone to an adb server of its own; skip where adb is not installed."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed (Debian: apt-get install adb)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("ADB_LOCAL_TRANSPORT_MAX_PORT", "5553")  # look for no emulators
    monkeypatch.setenv("HOME", str(folder))  # where adb keeps its key
    folder.mkdir(parents=True, exist_ok=True)
    phone = Phone(folder / "phone")
    try:
        said = subprocess.run(["adb", "connect", phone.serial], capture_output=True, text=True, timeout=60)
        assert "connected to" in said.stdout, said
        yield phone
    finally:
        phone.unplug()
        subprocess.run(["adb", "kill-server"], capture_output=True, timeout=60)

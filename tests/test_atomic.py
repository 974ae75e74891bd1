"""Whole or nothing, on real disks: crashes, full disks, missing rights, things in the way."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.atomic import (
    WriteError,
    atomic_folder,
    atomic_path,
    write_bytes,
    write_json,
    write_text,
)
from edgekit.errors import EXIT_LOAD

OrdinaryUser = Callable[[], AbstractContextManager[None]]


class CrashError(Exception):
    """Something that goes wrong in the middle of a write."""


def names(folder: Path) -> list[str]:
    """Return all names in a folder, hidden ones too: no temporary file may stay behind."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "x.txt"
    write_text(target, "größe\n")
    assert target.read_bytes() == "größe\n".encode()
    write_text(target, "second")
    assert target.read_text() == "second"
    assert names(target.parent) == ["x.txt"]


def test_json_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"class": "Übung", "size_bytes": [1, None]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"class": "Übung", "size_bytes": [1, None]}
    assert "Übung" in text and text.endswith("\n")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=st.binary(max_size=50), new=st.binary(max_size=50), crash_at=st.none() | st.integers(0, 50))
def test_either_old_or_new(tmp_path: Path, old: bytes, new: bytes, crash_at: int | None) -> None:
    target = tmp_path / "x.bin"
    write_bytes(target, old)
    try:
        with atomic_path(target) as temporary:
            temporary.write_bytes(new[:crash_at])
            if crash_at is not None:
                raise CrashError
    except CrashError:
        assert target.read_bytes() == old
    else:
        assert target.read_bytes() == new
    assert names(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("error", [CrashError, KeyboardInterrupt])
def test_a_crash_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_path(tmp_path / "x.bin") as temporary:
        temporary.write_bytes(b"half")
        raise error
    with pytest.raises(error), atomic_folder(tmp_path / "run") as fresh:
        (fresh / "half").write_bytes(b"half")
        raise error
    assert names(tmp_path) == []


def test_the_temporary_file_keeps_the_suffix_and_long_names_work(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 240 + ".safetensors")  # 252 bytes; a file system takes 255
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".safetensors" and temporary.parent == tmp_path
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_rights_are_those_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "link.txt").symlink_to(tmp_path / "disk" / "file.txt")
    for content in ("first", "second"):
        write_text(tmp_path / "link.txt", content)
        with atomic_folder(tmp_path / "latest", overwrite=True) as fresh:
            (fresh / "x").write_text(content)
        assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "latest").is_symlink()
        assert (tmp_path / "disk" / "file.txt").read_text() == content
        assert (tmp_path / "disk" / "run" / "x").read_text() == content
    assert names(tmp_path / "disk") == ["file.txt", "run"]


def test_a_folder_or_device_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("x.json", "pipe"):
        with pytest.raises(WriteError, match="not a regular file"):
            write_bytes(tmp_path / name, b"x")
    assert (tmp_path / "x.json").is_dir() and (tmp_path / "pipe").is_fifo()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match=r"Not a directory|File exists"):
        write_bytes(tmp_path / "file" / "x.json", b"x")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_error_about_another_file_is_not_called_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x.bin") as temporary:
        temporary.write_bytes((tmp_path / "input.bin").read_bytes())
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "run"):
        (tmp_path / "input.bin").read_bytes()
    assert names(tmp_path) == []


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x.bin", b"old")
    program = (
        "import sys, time; from pathlib import Path; from edgekit.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'ne'); print('half', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path / "x.bin"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "x.bin").read_bytes() == b"old"


def test_a_full_disk(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x.bin", b"old")
    with atomic_folder(tmp_path / "run") as fresh:
        (fresh / "old").touch()
    # the kernel refuses to let a file grow over the limit, as it does where a disk is full
    program = """
import resource, sys
from pathlib import Path
from edgekit.atomic import WriteError, _swap, atomic_folder, write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
root = Path(sys.argv[1])
for attempt in (lambda: write_bytes(root / "x.bin", bytes(1_000_000)), lambda: folder()):
    def folder():
        with atomic_folder(root / "run", overwrite=True) as fresh:
            (fresh / "a").write_bytes(bytes(10))
            (fresh / "b").write_bytes(bytes(1_000_000))
    try:
        attempt()
    except WriteError as e:
        print(e.exit_code, e)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and done.stderr == ""
    for line, name in zip(lines, ("x.bin", "run"), strict=True):
        assert line.startswith(f"{EXIT_LOAD} cannot write {tmp_path / name}: ") and "has changed" in line
    assert (tmp_path / "x.bin").read_bytes() == b"old"
    assert names(tmp_path / "run") == ["old"] and names(tmp_path) == ["run", "x.bin"]


def test_a_read_only_folder(open_tmp: Path, without_root: OrdinaryUser) -> None:
    locked = open_tmp / "locked"
    locked.mkdir()
    (locked / "x.bin").write_bytes(b"old")
    locked.chmod(0o555)
    with without_root():
        with pytest.raises(WriteError, match="Permission denied"):
            write_bytes(locked / "x.bin", b"new")
        with pytest.raises(WriteError, match="Permission denied"), atomic_folder(locked / "run"):
            pytest.fail("the block must not run")
        with pytest.raises(WriteError, match="Permission denied"), atomic_folder(locked / "deep" / "run"):
            pytest.fail("the block must not run")
    assert (locked / "x.bin").read_bytes() == b"old" and names(locked) == ["x.bin"]


def test_writers_do_not_mix(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgekit.atomic import write_bytes\n"
        "for _ in range(50): write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 5000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "x.bin", letter]) for letter in "ab"]
    seen: set[bytes] = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "x.bin").exists():
            seen.add((tmp_path / "x.bin").read_bytes())
        time.sleep(0.001)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen and seen <= {b"a" * 5000, b"b" * 5000}
    assert names(tmp_path) == ["x.bin"]

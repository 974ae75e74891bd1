"""Tensors in files: written whole or not at all, and as readable as any other file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from edgekit.models.weights import read_safetensors, write_safetensors


def test_written_tensors_are_read_again_with_their_header_and_the_usual_permissions(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5)}
    write_safetensors(tmp_path / "w.safetensors", tensors, {"of": "a net"})
    found, metadata = read_safetensors(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert json.loads(metadata["edgekit"]) == {"of": "a net"}
    (tmp_path / "plain").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", "plain"}


def test_a_full_disk_is_one_clear_error_and_the_old_file_stays(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk; it holds for the process, so one of its own is made."""
    target = tmp_path / "w.safetensors"
    write_safetensors(target, {"a": torch.zeros(4)}, {})
    before = target.read_bytes()
    code = f"""
import resource, signal, torch
from pathlib import Path
from edgekit.atomic import WriteError
from edgekit.models.weights import write_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_safetensors(Path({str(target)!r}), {{"a": torch.zeros(100_000)}}, {{}})
except WriteError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "Nothing that was there has changed" in done.stdout
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]

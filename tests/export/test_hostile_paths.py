"""Bundles whose paths are a trap: what is no plain file is one clear line, no traceback and no hang."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgekit.export.manifest import MANIFEST_FILE
from edgekit.export.verify.bundle import verify_bundle
from tests.export.manifests_for_tests import NO_SHA, PICTURES, RECORD, write_clip, write_manifest


@pytest.mark.parametrize("path", ["a\0b.onnx", "ring.onnx", "ring.onnx/model.onnx", "x" * 300 + ".onnx"])
def test_an_impossible_path_in_the_manifest_is_a_failed_check(tmp_path: Path, path: str) -> None:
    write_manifest(tmp_path, PICTURES, files=[{**RECORD, "path": path}], statistics={path: NO_SHA})
    (tmp_path / "ring.onnx").symlink_to("ring.onnx")
    checks = [check for check in verify_bundle(tmp_path) if check.subject != "golden.npz"]
    assert [(check.check, check.passed) for check in checks] == [("sha256", False), ("path", False)]
    for check in checks:
        assert "is no path of a file" in check.detail and (check.subject + check.detail).isprintable()


def limited(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with little memory and time, so that a file without end is noticed."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))\n"
        "from edgekit.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def a_picture(folder: Path) -> Path:
    folder.mkdir()
    Image.new("RGB", (50, 40), "red").save(folder / "red.png")
    return folder


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def tower_elsewhere(bundle: Path) -> None:
    shutil.move(bundle / "image", bundle.parent / "elsewhere")
    (bundle / "image").symlink_to(bundle.parent / "elsewhere")


TRAPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (lambda f: pipe(f / "image" / MANIFEST_FILE), "is no regular file"),
    "a device": (lambda f: link(f / "image" / MANIFEST_FILE, "/dev/zero"), "is a link out of its folder"),
    "links in a ring": (lambda f: link(f / "image" / MANIFEST_FILE, MANIFEST_FILE), "leads nowhere"),
    "without end": (lambda f: os.truncate(f / "image" / MANIFEST_FILE, 2**40), "more than any such file"),
    "a tower elsewhere": (tower_elsewhere, "outside the bundle"),
}


@pytest.mark.parametrize("command", ["verify", "search"])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_in_a_tower_is_one_line(tmp_path: Path, command: str, trap: str) -> None:
    bundle = write_clip(tmp_path / "clip")
    spring, said = TRAPS[trap]
    spring(bundle)
    pictures = a_picture(tmp_path / "pictures")
    done = limited("verify", bundle, "-q", "--json") if command == "verify" else limited(
        "search", pictures, "a star", "--model", bundle
    )  # fmt: skip
    assert done.returncode in (1, 3) and "Traceback" not in done.stderr, done.stderr
    if command == "verify":
        (tower,) = (c for c in json.loads(done.stdout)["checks"] if c["subject"] == "image")
        assert not tower["passed"] and said in tower["detail"]
    else:
        assert said in done.stderr


def test_a_pipe_in_the_place_of_a_model_does_not_stop_a_search(tmp_path: Path) -> None:
    bundle = write_clip(tmp_path / "clip")
    os.mkfifo(bundle / "image" / "model.fp32.onnx")
    pictures = a_picture(tmp_path / "pictures")
    done = limited("search", pictures, "a star", "--model", bundle)
    assert done.returncode == 3 and "no regular file" in done.stderr

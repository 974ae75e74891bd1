"""The script from a CLIP to a phone, as it stands in `examples/`, at a small size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.export.clip.bundle import read_clip_record
from edgekit.export.manifest import read_manifest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "clip_to_phone.sh"
SMALL = {
    "labelled=600, unlabelled=2400, val=600": "labelled=60, unlabelled=100, val=36",
    "{5:-6}": "{5:-1}",
    "--epochs 10": "--epochs 1 --views 1",
    "--format onnx,tflite,coreml": "--format onnx --precision fp32",
    "--budget 30": "--budget 1",
}


def test_the_script_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 15


@pytest.mark.long
def test_a_clip_goes_all_the_way(tmp_path: Path) -> None:
    script = SCRIPT.read_text()
    for large, small in SMALL.items():
        assert large in script
        script = script.replace(large, small)
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh"], input=script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    text = tmp_path / "bundles" / "clip" / "text" / "manifest.json"
    student = read_manifest(tmp_path / "bundles" / "xxs")
    assert student.teacher is not None
    assert student.teacher["fingerprint"] == json.loads(text.read_text())["training"]["fingerprint"]
    assert read_clip_record(tmp_path / "bundles" / "clip").embed_dim == student.model["embed_dim"]
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert len(rows) == 4 and all(row["status"] == "ok" for row in rows)  # teacher, student, and a file of each
    said = done.stdout + done.stderr
    assert said.count(": verified") == 2 and len(re.findall(r"36 pictures searched, 36 of them embedded", said)) == 2

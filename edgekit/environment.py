"""What works here: each part of edgekit tried for real, and what to install for the rest.

The trials themselves are `edgekit.probes`, run in child processes (the caller sees to that): importing a broken library
can end a process, and importing all of them together is one of the things that break. Nothing here imports anything
outside the standard library.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

Status = Literal["works", "not installed", "broken"]

_CPU_INFO = Path("/proc/cpuinfo")
INT8_FEATURES: Mapping[str, tuple[str, ...]] = {
    # name -> how Linux or macOS spells it
    "avx2": ("avx2",),
    "avx_vnni": ("avx_vnni",),
    "avx512_vnni": ("avx512_vnni",),
    "amx_int8": ("amx_int8",),
    "dotprod": ("asimddp", "FEAT_DotProd"),
    "i8mm": ("i8mm", "FEAT_I8MM"),
}
"""Processor instructions that INT8 kernels use."""


@dataclass(frozen=True)
class Part:
    """One thing that edgekit can do.

    Attributes:
        purpose: what it is for.
        extra: the extra that brings its packages; "" for the core.
        packages: distributions that it needs.
    """

    purpose: str
    extra: str
    packages: tuple[str, ...]


PARTS: Mapping[str, Part] = {
    "core": Part("commands, pictures, contracts", "", ("click", "numpy", "pillow", "pydantic", "pyyaml", "rich")),
    "train": Part(
        "distill",
        "train",
        ("torch", "torchvision", "timm", "open_clip_torch", "accelerate", "safetensors", "matplotlib"),
    ),
    "run onnx": Part("verify, bench .onnx", "onnx", ("onnxruntime",)),
    "export onnx": Part("export .onnx, inspect it", "onnx", ("torch", "onnx", "onnxruntime", "onnxscript")),
    "run tflite": Part("verify, bench, inspect .tflite", "tflite", ("ai-edge-litert",)),
    "export tflite": Part("export .tflite", "tflite", ("torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")),
    "coreml": Part("export, verify, inspect .mlpackage", "coreml", ("torch", "torchvision", "coremltools")),
    "tensorflow": Part("a second opinion on .tflite", "tensorflow", ("tensorflow",)),
    "video": Part("clips", "video", ("av",)),
    "text": Part("text teachers and students", "text", ("transformers", "tokenizers")),
    "report": Part("HTML report, plots", "report", ("jinja2", "matplotlib")),
    "tensorboard": Part("live curves", "tensorboard", ("tensorboard",)),
}


@dataclass(frozen=True)
class Finding:
    """How a part came out.

    Attributes:
        part: its name in `PARTS`.
        purpose: what it is for.
        status: works, not installed, or broken (installed, but the trial failed).
        versions: of its packages; None for an absent one.
        detail: what was tried, or what went wrong.
        fix: the command or advice that makes it work; "" where it does.
    """

    part: str
    purpose: str
    status: Status
    versions: Mapping[str, str | None] = field(default_factory=dict)
    detail: str = ""
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


def version_of(package: str) -> str | None:
    """Return the version of an installed distribution, None where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def try_part(name: str, run_probe: Callable[[str], str]) -> Finding:
    """Look whether a part's packages are here, and if so run its probe.

    Args:
        name: of the part.
        run_probe: runs the part's trial in a child process and returns its line; raises where it fails.
    """
    part = PARTS[name]
    versions = {package: version_of(package) for package in part.packages}
    missing = [package for package, found in versions.items() if found is None]
    target = f"edgekit[{part.extra}]" if part.extra else "edgekit"
    if missing:
        fix = f"pip install '{target}'"
        return Finding(name, part.purpose, "not installed", versions, f"missing: {', '.join(missing)}", fix)
    try:
        return Finding(name, part.purpose, "works", versions, run_probe(name))
    except Exception as e:  # a probe fails in as many ways as libraries do; the child reports them all alike
        fix = f"pip install --upgrade --force-reinstall '{target}'"
        return Finding(name, part.purpose, "broken", versions, str(e).splitlines()[0][:400], fix)


def known_conflicts(versions: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return what is known to go wrong with such versions, each with the way out; empty where nothing is.

    Args:
        versions: distribution -> version, None or absent where it is not installed.
    """
    found = []
    torch, vision = versions.get("torch"), versions.get("torchvision")
    if torch and vision:
        if _is_cuda(torch) is not None and _is_cuda(vision) is not None and _is_cuda(torch) != _is_cuda(vision):
            found.append(
                f"torch {torch} and torchvision {vision} are builds for different devices: importing torchvision fails "
                "with 'operator torchvision::nms does not exist'. Reinstall both from one index."
            )
        if _minor(torch) and _minor(vision) and _minor(torch)[1] + 15 != _minor(vision)[1]:
            found.append(
                f"torchvision {vision} is not made for torch {torch}; their minor versions differ by 15 "
                f"(torch 2.14, torchvision 0.29). pip install --upgrade 'edgekit[train]'"
            )
    if torch and versions.get("litert-torch") and _minor(torch) != (2, 14):
        found.append(
            f"litert-torch {versions['litert-torch']} needs torch >=2.14,<2.15; here is {torch}. "
            "pip install 'edgekit[tflite]'"
        )
    if versions.get("tensorflow") and versions.get("coremltools"):
        found.append(
            "TensorFlow is installed beside coremltools: importing coremltools before torchvision crashes the process. "
            "Keep TensorFlow in an environment of its own."
        )
    return tuple(found)


def all_versions() -> dict[str, str | None]:
    """Return the versions of every package that a part needs."""
    return {package: version_of(package) for part in PARTS.values() for package in part.packages}


def int8_features() -> tuple[str, ...] | None:
    """Return the names in `INT8_FEATURES` that this processor has; None where the system does not tell."""
    if sys.platform == "darwin":
        flags = _macos_flags()
    else:
        try:
            text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
        flags = set(lines[0].split()) if lines else set()
    if not flags:
        return None
    return tuple(name for name, spellings in INT8_FEATURES.items() if flags & set(spellings))


def _macos_flags() -> set[str]:
    try:
        answer = subprocess.run(["sysctl", "hw.optional"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return set()
    return {
        key.rpartition(".")[2].replace("avx2_0", "avx2")
        for key, _, value in (line.partition(":") for line in answer.splitlines())
        if value.strip() == "1"
    }


def _is_cuda(version: str) -> bool | None:
    """Whether a torch build is for CUDA; None where its version does not say."""
    local = version.partition("+")[2]
    if local.startswith("cu"):
        return True
    return False if local == "cpu" else None


def _minor(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else ()


def interpreter() -> str:
    """Return the interpreter's version and place in a few words."""
    return f"Python {platform.python_version()}, {sys.prefix}"

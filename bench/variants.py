"""The ways in which this machine can run a file: other execution providers, and on a Mac Core ML's compute units."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgekit.bench.candidates import LIBRARIES, Candidate
from edgekit.bench.worker import Opening
from edgekit.export.runtimes import on_macos

PROVIDERS: Mapping[str, str] = {"CoreMLExecutionProvider": "Core ML", "XnnpackExecutionProvider": "XNNPACK"}
"""ONNX Runtime's providers that a phone or a Mac has, beside the CPU's own."""
COMPUTE_UNITS = ("CPU", "GPU", "Neural Engine")


def local_variants(found: Sequence[Candidate]) -> list[Candidate]:
    """Return every candidate in each way that this machine can run it; the usual way first."""
    providers = _providers() if any(_is_usable(one, "onnx") for one in found) else ()
    possible: list[Candidate] = []
    for candidate in found:
        if _is_usable(candidate, "coreml") and on_macos():
            possible += by_unit(candidate)
            continue
        possible.append(candidate)
        if _is_usable(candidate, "onnx"):
            possible += [_with_provider(candidate, provider) for provider in providers]
    return possible


def by_unit(candidate: Candidate) -> list[Candidate]:
    """Return a package once for each of Core ML's compute units."""
    path = str(candidate.path and candidate.path.absolute())
    return [
        replace(
            candidate,
            name=f"{candidate.name} ({unit})",
            accelerator=unit,
            timed=True,
            opening=Opening(
                "edgekit.bench.openers:core_ml", (path, unit), ("coremltools", "edgekit.export.coreml.session")
            ),
        )
        for unit in COMPUTE_UNITS
    ]


def _with_provider(candidate: Candidate, provider: str) -> Candidate:
    assert candidate.opening is not None
    path, threads = candidate.opening.arguments
    return replace(
        candidate,
        name=f"{candidate.name} ({PROVIDERS[provider]})",
        accelerator=provider,
        opening=Opening("edgekit.bench.openers:onnx_provider", (path, threads, provider), LIBRARIES["onnx"]),
    )


def _is_usable(candidate: Candidate, form: str) -> bool:
    return candidate.kind == "artifact" and candidate.problem is None and candidate.format == form


def _providers() -> tuple[str, ...]:
    """Return those of `PROVIDERS` that this build of ONNX Runtime has."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ()  # opening a file says what is missing
    import onnxruntime

    return tuple(name for name in PROVIDERS if name in onnxruntime.get_available_providers())

"""Verify the bundle of a CLIP: both towers' bundles, and that they belong together. Knows no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.export.clip.bundle import CLIP_RECORD, TOWERS, check_tower, read_clip_record
from edgekit.export.verify.bundle import verify_bundle
from edgekit.export.verify.check import Check


def verify_clip(bundle: Path, threads: int = 1) -> list[Check]:
    """Check both towers as `verify_bundle` does, and their manifests against the record.

    Raises:
        LoadError: there is no readable record.
    """
    record = read_clip_record(bundle)
    checks = []
    for name in TOWERS:
        try:
            manifest = check_tower(bundle, name, record)
            dimension = manifest.model.get("embed_dim")
            detail = f"as in {CLIP_RECORD}; {dimension} dimensions"
            checks.append(Check(name, "tower", dimension == record.embed_dim, detail))
            found = verify_bundle(bundle / name, (), threads)
        except EdgekitError as e:
            checks.append(Check(name, "tower", False, str(e)))
            continue
        checks += [replace(check, subject=f"{name}/{check.subject}") for check in found]
    return checks

"""Damaged bundles whose manifest vouches for the damage: runtimes really see it, and the command lives on."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from whole_path_for_tests import WholePath

from edgekit.errors import EdgekitError
from edgekit.export.manifest import GOLDEN_FILE, MANIFEST_FILE, sha256_of
from edgekit.export.runtimes import size_bytes
from edgekit.export.verify.bundle import verify_bundle
from edgekit.export.verify.check import Check
from tests.damage_for_tests import damaged

QUICK = 12


def vouched_bundle(source: Path, bundle: Path, seeds: Sequence[int]) -> dict[int, str]:
    """Make a bundle of damaged copies of another's files, whose manifest agrees; return their names by seed."""
    manifest = json.loads((source / MANIFEST_FILE).read_text())
    # packages are slow to read, so that one in ten is enough; the rest goes round ONNX and TFLite
    packages = [r for r in manifest["files"] if r["format"] == "coreml"]
    others = [r for r in manifest["files"] if r["format"] != "coreml"]
    bundle.mkdir()
    shutil.copy(source / GOLDEN_FILE, bundle)
    records = {}
    for seed in seeds:
        record = packages[seed // 10 % len(packages)] if seed % 10 == 9 else others[seed % len(others)]
        (bundle / str(seed)).mkdir()
        broken = damaged(source / record["path"], bundle / str(seed), seed)
        facts = {"path": f"{seed}/{broken.name}", "sha256": sha256_of(broken), "size_bytes": size_bytes(broken)}
        records[seed] = record | facts
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest | {"files": list(records.values())}))
    return {seed: record["path"] for seed, record in records.items()}


def verified(source: Path, bundle: Path, seeds: Sequence[int]) -> dict[int, list[Check]]:
    """Verify damaged copies of files; whatever is wrong must be told by the checks, each in one printable line."""
    names = vouched_bundle(source, bundle, seeds)
    checks = verify_bundle(bundle)
    for check in checks:
        assert check.detail.isprintable() and check.detail, check
        assert "Traceback" not in check.detail
    shutil.rmtree(bundle)
    found = {seed: [check for check in checks if check.subject == name] for seed, name in names.items()}
    assert all(found.values())
    return found


def verify_copies(source: Path, folder: Path, seeds: range) -> dict[int, list[Check]]:
    halves = (seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :])
    with ThreadPoolExecutor(2) as pool:  # each waits for its child processes
        first, second = pool.map(lambda half: verified(source, folder / f"from-{half[0]}", half), halves)
    return first | second


def is_flagged(checks: Sequence[Check]) -> bool:
    return any(not check.passed for check in checks)


def test_a_dozen_damaged_artifacts_do_not_stop_verify(whole_path: WholePath, tmp_path: Path) -> None:
    results = verify_copies(whole_path.bundle, tmp_path, range(QUICK))
    assert all(is_flagged(results[seed]) for seed in range(QUICK) if seed % 5 in (0, 4)), "cut, or of another type"


@pytest.mark.parametrize(
    "copies", [pytest.param(60, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)]
)
def test_many_damaged_artifacts_do_not_stop_verify(whole_path: WholePath, tmp_path: Path, copies: int) -> None:
    """No crash, no hang (a child is stopped after two minutes), no traceback. A flipped low bit may change nothing."""
    results = verify_copies(whole_path.bundle, tmp_path, range(copies))
    for seed, checks in results.items():
        if seed % 5 == 0 or seed % 5 == 4:
            assert is_flagged(checks), f"seed {seed}: cut, or of another type"
    assert sum(map(is_flagged, results.values())) > copies // 2
    assert not any("no answer within" in check.detail for checks in results.values() for check in checks), "a hang"


def break_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        path = bundle / MANIFEST_FILE
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def zip_the_package(bundle: Path) -> None:
    """Replace a package by an archive that unpacks to a gigabyte of zeros."""
    package = bundle / "model.fp32.mlpackage"
    shutil.rmtree(package)
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("Manifest.json", "w") as member:
        for _ in range(1024):
            member.write(bytes(2**20))
    break_manifest(
        lambda c: next(r for r in c["files"] if r["path"] == package.name).update(
            sha256=sha256_of(package), size_bytes=size_bytes(package)
        )
    )(bundle)


BREAKS: dict[str, Callable[[Path], None]] = {
    "files of no list": break_manifest(lambda c: c.update(files={})),
    "a thousand files": break_manifest(lambda c: c.update(files=c["files"][:1] * 1000)),
    "a picture size of a planet": break_manifest(lambda c: c["input"]["preprocess"].update(image_size=10**9)),
    "classes of numbers": break_manifest(lambda c: c.update(classes=[1, 2])),
    "outputs of another model": break_manifest(lambda c: c.update(outputs=["boxes"])),
    "escape codes in a name": break_manifest(lambda c: c["files"][0].update(path="\x1b]0;owned\x07.onnx")),
    "a zip bomb for a package": zip_the_package,
    "a folder for a file": lambda bundle: ((bundle / GOLDEN_FILE).unlink(), (bundle / GOLDEN_FILE).mkdir())[1],
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_hostile_bundle_is_a_failed_check_or_one_line(whole_path: WholePath, tmp_path: Path, name: str) -> None:
    bundle = Path(shutil.copytree(whole_path.bundle, tmp_path / "bundle"))
    BREAKS[name](bundle)
    try:
        checks = verify_bundle(bundle, only=["model.fp32.mlpackage"] if "package" in name else [])
    except EdgekitError as e:
        assert str(e).isprintable()
    else:
        assert is_flagged(checks)
        assert all((check.subject + check.detail).isprintable() for check in checks)

"""What a report says of a bundle: parity, what the files really are, what they take and give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.bench.page import Cell, Column, PageTable, Row, Section
from edgekit.export.audit.record import Audit
from edgekit.export.manifest import AnyManifest, FileRecord, Manifest
from edgekit.interval import Interval


@dataclass(frozen=True)
class Bundle:
    """A bundle of artifacts.

    Attributes:
        name: of the folder.
        manifest: its manifest.
        audits: path in the bundle -> what the file really is, or why it could not be read.
    """

    name: str
    manifest: AnyManifest
    audits: Mapping[str, Audit | str] = field(default_factory=dict)


def bundle_sections(bundle: Bundle) -> list[Section]:
    """Return the sections of a bundle."""
    manifest = bundle.manifest
    parity = PageTable(
        tuple(Column(name, kind) for name, kind in _PARITY),
        tuple(Row(_parity_cells(record)) for record in manifest.files),
    )
    sections = [
        Section(
            f"Parity with PyTorch: {bundle.name}",
            parity,
            notes=("As measured when the files were made, on pictures that took no part in calibration.",),
        )
    ]
    if bundle.audits:
        rows = tuple(Row(_audit_cells(record, bundle.audits.get(record.path))) for record in manifest.files)
        sections.append(
            Section(
                f"What the files really are: {bundle.name}",
                PageTable(tuple(Column(name, kind) for name, kind in _AUDIT), rows),
                notes=("Read from the files themselves: stored weights, and where the multiply-accumulates happen.",),
            )
        )
    sections.append(Section(f"Contract: {bundle.name}", facts=tuple(_contract(manifest))))
    return sections


_PARITY = (
    ("file", ""),
    ("precision", "text"),
    ("same class %", ""),
    ("SNR dB", ""),
    ("cosine", ""),
    ("max abs", ""),
    ("pictures", ""),
    ("MB", ""),
    ("recipe", "prose"),
    ("runtime", "text"),
)
_AUDIT = (
    ("file", ""),
    ("says", "text"),
    ("is", "text"),
    ("MB", ""),
    ("weights", "prose"),
    ("multiply-accumulates", "prose"),
    ("notes", "prose"),
)


def _parity_cells(record: FileRecord) -> tuple[Cell, ...]:
    parity, runtime = record.parity, record.runtime
    agreement = parity.get("agreement")
    share = "–"
    if isinstance(agreement, Mapping):
        try:
            interval = Interval(**agreement)
            share = f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        except (TypeError, ValueError):
            share = "?"
    return (
        Cell(record.path),
        Cell(record.precision),
        Cell(share),
        Cell(_number(parity.get("snr_db"), ".1f")),
        Cell(_number(parity.get("cosine"), ".5f")),
        Cell(_number(parity.get("max_abs"), ".2g")),
        Cell(_number(parity.get("images"), "d")),
        Cell(f"{record.size_bytes / 1e6:.2f}"),
        Cell(record.recipe),
        Cell(" ".join(str(runtime.get(name, "")) for name in ("runtime", "version", "provider")).strip() or "–"),
    )


def _number(value: object, form: str) -> str:
    """Format a number of a manifest, which anyone may have written."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (form == "d" and not isinstance(value, int)):
        return "–"
    return format(value, form)


def _audit_cells(record: FileRecord, audit: Audit | str | None) -> tuple[Cell, ...]:
    if audit is None or isinstance(audit, str):
        reason = Cell(audit or "not read", "failed")
        return (Cell(record.path), Cell(record.precision), Cell("?"), Cell("–"), Cell("–"), Cell("–"), reason)
    weights = ", ".join(f"{group.elements / 1e6:.2f} M {group.dtype}" for group in audit.weights)
    total = audit.macs or 1
    macs = ", ".join(f"{100 * count / total:.0f} % {dtype}" for dtype, count in audit.macs_by_dtype().items())
    return (
        Cell(record.path),
        Cell(record.precision),
        Cell(audit.precision),
        Cell(f"{audit.size_bytes / 1e6:.2f}"),
        Cell(weights or "–"),
        Cell(f"{audit.macs / 1e6:.1f} M: {macs}" if audit.macs else "–"),
        Cell("; ".join(audit.notes) or "–"),
    )


def _contract(manifest: AnyManifest) -> list[tuple[str, str]]:
    facts = [(name, fact(value)) for name, value in manifest.model.items() if isinstance(value, (str, int, float))]
    if isinstance(manifest, Manifest):
        taken = manifest.input
        facts.append(("takes", f"{taken.dtype} {taken.colour_order} in {list(taken.range)}, {dict(taken.layout)}"))
        facts.append(("preparation", ", ".join(f"{name} {value}" for name, value in taken.preprocess.items())))
    classes = ", ".join(manifest.classes[:100]) + (" …" if len(manifest.classes) > 100 else "")
    facts += [("gives", ", ".join(manifest.outputs)), (f"{len(manifest.classes)} classes", classes)]
    facts.append(
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items() if version))
    )
    return facts


def fact(value: object) -> str:
    """Return a value of a file of facts in words: few digits, and of a path the last part alone."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text.rstrip("/").rsplit("/", 1)[-1] if text.startswith(("/", "~", ".")) else text

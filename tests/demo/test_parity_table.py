"""The table of parity: which files are exported together."""

from __future__ import annotations

from pathlib import Path

from edgekit.demo.parity_table import REQUIRED, TableConfig, _wanted
from edgekit.export.precisions import PRECISIONS
from edgekit.export.runtimes import FORMATS


def test_formats_of_the_same_precisions_are_exported_together() -> None:
    assert _wanted(TableConfig(Path("work"))) == {PRECISIONS: FORMATS}
    asked = _wanted(TableConfig(Path("work"), required_only=True))
    assert {
        (form, precision) for precisions, forms in asked.items() for form in forms for precision in precisions
    } == set(REQUIRED)
    assert len(asked) < len(FORMATS)

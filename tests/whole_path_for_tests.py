"""A small run of the whole path, made once for all tests that need real artifacts of a trained student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.demo.run import DemoConfig, run_demo
from edgekit.terminal import Terminal


@dataclass(frozen=True)
class WholePath:
    """Where everything is."""

    folder: Path
    epochs: int
    image_size: int

    @property
    def run(self) -> Path:
        """The distilled student's run folder."""
        return self.folder / "student"

    @property
    def bundle(self) -> Path:
        """All formats in fp32 and int8."""
        return self.folder / "bundle"

    @property
    def drawings(self) -> Path:
        """The data."""
        return self.folder / "drawings"


def make_whole_path(folder: Path) -> WholePath:
    """Run the demo at a size that takes a minute or two; a folder that it has filled is taken as it is."""
    config = DemoConfig(
        labelled=240, unlabelled=960, val=120, teacher_epochs=16, student_epochs=6, views=2, bench_budget_s=4.0
    )
    if not (folder / "RESULTS.md").is_file():
        run_demo(folder, config, Terminal(verbosity=-1), overwrite=True)
    return WholePath(folder, config.student_epochs, config.image_size)

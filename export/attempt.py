"""One file of an export: converted, opened again, compared with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.export.audit.audit import audit, check_precision
from edgekit.export.exporters import Conversion, write_file
from edgekit.export.golden import Golden
from edgekit.export.manifest import PortRecord
from edgekit.export.parity import GATES, Parity, Precision, compare_outputs, failures
from edgekit.export.ports import ports_of
from edgekit.export.precisions import in_format
from edgekit.export.runtimes import SUFFIX_OF, Format, open_session
from edgekit.export.session import FloatArray, Outputs, Session, run_batched
from edgekit.export.verify.file import golden_parity
from edgekit.preprocess import to_input


@dataclass(frozen=True)
class Attempt:
    """One file: made and compared, or why not; where `auto` chose it, `choice` says among what and why."""

    name: str
    format: Format
    precision: Precision
    recipe: str = ""
    size_bytes: int = 0
    parity: Parity | None = None
    runtime: Mapping[str, Any] | None = None
    inputs: tuple[PortRecord, ...] = ()
    outputs: tuple[PortRecord, ...] = ()
    problems: tuple[str, ...] = ()
    choice: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        ports = {name: [port.model_dump() for port in vars(self)[name]] for name in ("inputs", "outputs")}
        parity = self.parity.to_dict() if self.parity else None
        return {**vars(self), **ports, "parity": parity, "passed": not self.problems}


class Workshop:
    """Makes the files of one export in the conversion's work folder, each once.

    Attributes:
        conversion: what is converted.
        comparison: validation pictures (N, 3, H, W) and PyTorch's outputs for them.
        golden: what `verify` will ask of the files; None where they go to no bundle.
        found: what each file said of the comparison pictures, by its name.
    """

    def __init__(
        self, conversion: Conversion, comparison: tuple[FloatArray, Outputs], golden: Golden | None = None
    ) -> None:
        self.conversion = conversion
        self.comparison = comparison
        self.golden = golden
        self.found: dict[str, Outputs] = {}
        self._made: dict[str, Attempt] = {}

    def path(self, attempt: Attempt) -> Path:
        """Return where a file is until it is moved to the bundle."""
        return self.conversion.work / attempt.name

    def make(self, form: Format, precision: Precision) -> Attempt:
        """Make one file, open it again and compare; whatever goes wrong is among its problems."""
        precision = in_format(form, precision)
        name = f"model.{precision}{SUFFIX_OF[form]}"
        if name not in self._made:
            self._made[name] = self._attempt(name, form, precision)
        return self._made[name]

    def _attempt(self, name: str, form: Format, precision: Precision) -> Attempt:
        made = self.conversion.work / name
        images, expected = self.comparison
        try:
            recipe = write_file(self.conversion, form, precision, made)
            session = open_session(made)
            self.found[name] = run_batched(session, images)
            parity = compare_outputs(expected, self.found[name])
            facts = audit(made)
            problems = failures(parity, GATES[precision]) + check_precision(facts, precision)
            problems = problems or self._golden_problems(session, precision)
            info = asdict(session.info)
            return Attempt(name, form, precision, recipe, facts.size_bytes, parity, info, *ports_of(facts), problems)
        except EdgekitError as e:
            return Attempt(name, form, precision, problems=(str(e),))
        except Exception as e:  # converters raise their own types; one format's failure must not take the others along
            reason = str(e).strip().splitlines()[-1][:300] if str(e).strip() else ""
            return Attempt(name, form, precision, problems=(f"{type(e).__name__}: {reason}",))

    def _golden_problems(self, session: Session, precision: Precision) -> tuple[str, ...]:
        """Return what `verify` would object to: no file may be called proven that it refuses."""
        if self.golden is None:
            return ()
        found = run_batched(session, to_input(self.golden.pixels))
        return golden_problems(found, self.golden.outputs, self.conversion.model.outputs, precision)


def golden_problems(found: Outputs, golden: Outputs, outputs: Sequence[str], precision: Precision) -> tuple[str, ...]:
    """Return what `verify` would object to in what a file said of the golden inputs."""
    _, problems = golden_parity(found, golden, outputs, GATES[precision])
    return tuple(f"golden vectors: {problem}" for problem in problems)

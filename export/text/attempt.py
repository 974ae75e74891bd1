"""One file of a text export: converted, opened again, compared with PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgekit.errors import EdgekitError, first_line
from edgekit.export.attempt import Attempt, golden_problems
from edgekit.export.audit.audit import audit, check_precision
from edgekit.export.parity import GATES, Precision, compare_outputs, failures
from edgekit.export.ports import ports_of
from edgekit.export.runtimes import SUFFIX_OF, Format
from edgekit.export.session import Outputs
from edgekit.export.text.convert import TEXT_EXPORTERS, TextConversion
from edgekit.export.text.golden import TextGolden
from edgekit.export.text.session import TextSession, open_text_session, run_texts
from edgekit.interval import wilson
from edgekit.models.text_tokenizer import Ids
from edgekit.terminal import Terminal, human_bytes
from edgekit.text_data import TextSplit

MOST_LOST = 0.01
"""Share of the texts by which a file may be right less often than PyTorch."""
_FEW = 2
"""Texts that may always be lost: of 50 texts one is 2 points."""


@dataclass(frozen=True)
class TextComparison:
    """Texts, their ids, and what PyTorch says of them; labels count where the outputs hold logits."""

    texts: TextSplit
    ids: Ids
    expected: Outputs
    label: str = ""
    """Of the files on the terminal, in front of their names."""
    golden: TextGolden | None = None
    """What `verify` will ask of the files; None where they go to no bundle."""
    found: dict[str, Outputs] = field(default_factory=dict)
    """What each file said, by its name."""

    def right(self, outputs: Outputs) -> int:
        """Return how many texts get the class of their label."""
        return int((outputs["logits"].argmax(axis=1) == self.texts.labels).sum())


def attempt_text(
    conversion: TextConversion,
    form: Format,
    precision: Precision,
    bundle: Path,
    comparison: TextComparison,
    terminal: Terminal,
) -> Attempt:
    """Make one file, open it again and compare; it reaches its final name only if it passes."""
    name = f"model.{precision}{SUFFIX_OF[form]}"
    if conversion.dynamic and form != "onnx":
        terminal.warn(
            f"{name}: --dynamic-batch is not for {form}; it takes one text of {conversion.model.max_length} ids"
        )
    made = conversion.work / name
    try:
        recipe = TEXT_EXPORTERS[form](conversion, precision, made)
        session = open_text_session(made)
        found = comparison.found[name] = run_texts(session, comparison.ids)
        parity = compare_outputs(comparison.expected, found)
        facts = audit(made)
        problems = (
            *failures(parity, GATES[precision]),
            *check_precision(facts, precision),
            *_lost(comparison, found),
        ) or _golden_problems(session, comparison, conversion.model.outputs, precision)
        info = asdict(session.info)
        attempt = Attempt(name, form, precision, recipe, facts.size_bytes, parity, info, *ports_of(facts), problems)
        if not problems:
            shutil.move(str(made), bundle / name)
    except EdgekitError as e:
        attempt = Attempt(name, form, precision, problems=(str(e),))
    except Exception as e:  # converters raise their own types; one format's failure must not take the others along
        attempt = Attempt(name, form, precision, problems=(f"{type(e).__name__}: {first_line(e)[:300]}",))
        terminal.detail(f"{name}: {e!r}")
    if attempt.problems:
        terminal.say(f"{comparison.label}{name}  FAILED: {'; '.join(attempt.problems)}")
    else:
        terminal.say(f"{comparison.label}{name}  {human_bytes(attempt.size_bytes)}{_accuracy(comparison, found)}")
    return attempt


def _golden_problems(
    session: TextSession, comparison: TextComparison, outputs: Sequence[str], precision: Precision
) -> tuple[str, ...]:
    """Return what `verify` would object to: no file may be called proven that it refuses."""
    if comparison.golden is None:
        return ()
    found = run_texts(session, comparison.golden.ids)
    return golden_problems(found, comparison.golden.outputs, outputs, precision)


def _accuracy(comparison: TextComparison, found: Outputs) -> str:
    if "logits" not in found:
        return ""
    right = wilson(comparison.right(found), len(comparison.ids))
    return f"  {100 * right.value:.2f} % accuracy (95 %: {100 * right.low:.1f} to {100 * right.high:.1f})"


def _lost(comparison: TextComparison, found: Outputs) -> tuple[str, ...]:
    """Say so if a file is right less often than PyTorch by more than `MOST_LOST`."""
    if "logits" not in found:
        return ()
    before, after, count = comparison.right(comparison.expected), comparison.right(found), len(comparison.ids)
    if before - after <= max(_FEW, MOST_LOST * count):
        return ()
    return (f"accuracy falls from {100 * before / count:.2f} to {100 * after / count:.2f} %",)

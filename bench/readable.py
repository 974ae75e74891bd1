"""Pictures that cannot be read are left out of an accuracy, as training leaves them out, as long as they are few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from edgekit.errors import DataError
from edgekit.export.session import FloatArray
from edgekit.listing import Kind, name_some

MAX_BROKEN = 0.01
"""Largest share of unreadable pictures that an accuracy is told without; that of trainings, too."""
_Item = TypeVar("_Item")


@dataclass
class LeftOut:
    """What could not be read so far, of so many pictures.

    Attributes:
        total: all pictures.
        kind: what they are called.
        reasons: why, by position.
    """

    total: int
    kind: Kind = "pictures"
    reasons: dict[int, str] = field(default_factory=dict)

    def readable(self, items: Sequence[_Item], at: int, load: Callable[[Sequence[_Item]], FloatArray]) -> list[_Item]:
        """Return those of `items`, which begin at position `at`, that `load` reads; remember the others.

        Raises:
            DataError: more than `MAX_BROKEN` of all cannot be read.
        """
        kept = []
        for position, item in enumerate(items, at):
            reason = _reason(item, load)
            if reason is None:
                kept.append(item)
            else:
                self.reasons[position] = reason
        if len(self.reasons) > MAX_BROKEN * self.total:
            raise DataError(
                f"{len(self.reasons)} of {self.total} {self.kind} or more cannot be read, and {100 * MAX_BROKEN:g} % "
                f"are tolerated: {name_some(list(self.reasons.values()))}. Repair or remove them"
            )
        return kept

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the accuracy must know."""
        if not self.reasons:
            return ()
        return (f"{len(self.reasons)} {self.kind} are left out: {name_some(list(self.reasons.values()))}.",)


def _reason(item: _Item, load: Callable[[Sequence[_Item]], FloatArray]) -> str | None:
    try:
        load([item])
    except DataError as e:
        return str(e)
    return None

"""What is needed to rebuild a student from its checkpoint. Knows no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgekit.preprocess import Preprocess


@dataclass(frozen=True)
class StudentSpec:
    """The student's architecture and contract.

    Attributes:
        arch: timm name of the backbone, e.g. "mobilevit_xxs".
        embed_dim: dimension of the projection, that of the teacher's embedding (512 for CLIP ViT-B/32).
        classes: class names in the order of the logits.
        preprocess: how a picture becomes the student's input.
        frames: frames per clip; 1 for still images.
    """

    arch: str
    embed_dim: int
    classes: tuple[str, ...]
    preprocess: Preprocess
    frames: int = 1

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.preprocess.image_size

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StudentSpec:
        """Build from the mapping that `to_dict` made."""
        fields = dict(values)
        fields["classes"] = tuple(fields["classes"])
        fields["preprocess"] = Preprocess.from_dict(fields["preprocess"])
        return cls(**fields)

"""What is needed to rebuild a student from its checkpoint. Knows no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgekit.errors import LoadError
from edgekit.preprocess import Preprocess

MAX_EMBED_DIM = 65_536  # a spec out of an untrusted file must not ask for all the memory
MAX_FRAMES = 4096


@dataclass(frozen=True)
class StudentSpec:
    """The student's architecture and contract.

    Attributes:
        arch: timm name of the backbone, e.g. "mobilevit_xxs".
        embed_dim: dimension of the projection, that of the teacher's embedding (512 for CLIP ViT-B/32).
        classes: class names in the order of the logits.
        preprocess: how a picture becomes the student's input.
        frames: frames per clip; 1 for still images.
        positions: whether a clip's frames are told apart by their place (`edgekit.models.temporal`); else only what
            they show counts, in any order.
        widths: (path in the backbone, hidden channels, units or heads) of each place that was cut to fewer than
            `arch` has (`edgekit.models.widths`).
    """

    arch: str
    embed_dim: int
    classes: tuple[str, ...]
    preprocess: Preprocess
    frames: int = 1
    positions: bool = False
    widths: tuple[tuple[str, int], ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one picture (3, S, S), or of one clip (F, 3, S, S)."""
        picture = (3, self.image_size, self.image_size)
        return picture if self.frames == 1 else (self.frames, *picture)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.preprocess.image_size

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        values = asdict(self)
        if not self.widths:  # as files from before it are, and readers of then expect them
            del values["widths"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StudentSpec:
        """Build from the mapping that `to_dict` made.

        Raises:
            LoadError: a value is missing, unknown or impossible; the mapping also comes out of files that others wrote.
        """
        try:
            fields = dict(values)
            arch, classes = fields["arch"], fields["classes"]
            if not (isinstance(arch, str) and isinstance(classes, list | tuple) and classes):
                raise ValueError(f"arch {arch!r}, classes {classes!r}")
            if not all(isinstance(name, str) for name in classes):
                raise ValueError(f"classes {classes!r}")
            fields["classes"] = tuple(classes)
            fields["widths"] = tuple(_width(entry) for entry in fields.get("widths", ()))
            fields["preprocess"] = Preprocess.from_dict(fields["preprocess"])
            spec = cls(**fields)
            if not (0 < int(spec.embed_dim) <= MAX_EMBED_DIM and 0 < int(spec.frames) <= MAX_FRAMES):
                raise ValueError(f"embed_dim {spec.embed_dim}, frames {spec.frames}")
            if not isinstance(spec.positions, bool) or (spec.positions and spec.frames == 1):
                raise ValueError(f"positions {spec.positions!r} with frames {spec.frames}")
        except (KeyError, TypeError, ValueError, LoadError) as e:
            raise LoadError(f"not the spec of a student: {e!r:.200}") from e
        return spec


def _width(entry: Any) -> tuple[str, int]:
    """Return a path and its width.

    Raises:
        ValueError: it is something else.
    """
    path, width = entry
    if not isinstance(path, str) or isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width {entry!r}")
    return path, width

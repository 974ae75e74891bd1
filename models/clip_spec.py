"""What is needed to rebuild a CLIP from its checkpoint. Knows no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgekit.preprocess import Preprocess

ContrastiveLoss = Literal["infonce", "sigmoid"]
ClipFamily = Literal["clip", "memory", "open_clip"]


@dataclass(frozen=True)
class ClipSpec:
    """Both towers' architecture and the picture's contract.

    Attributes:
        vision: timm name of the image tower; "patches" for the memory family, the architecture for open_clip.
        embed_dim: dimension of the shared embedding space.
        text_width: channels of the text transformer; of both towers in the memory family.
        text_layers: its blocks.
        text_heads: its attention heads; divides `text_width`.
        context_length: ids per text.
        vocab_size: ids of the tokenizer.
        preprocess: how a picture becomes the image tower's input.
        loss: what it is trained with: "infonce" (CLIP) or "sigmoid" (SigLIP), which also has a bias.
        family: whose towers these are.
        memory_slots: learned vectors that both towers read; memory family only.
        patch_size: side of a patch in pixels; memory family only.
    """

    vision: str
    embed_dim: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int
    vocab_size: int
    preprocess: Preprocess
    loss: ContrastiveLoss = "infonce"
    family: ClipFamily = "clip"
    memory_slots: int = 0
    patch_size: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClipSpec:
        """Build from the mapping that `to_dict` made."""
        return cls(**{**values, "preprocess": Preprocess.from_dict(values["preprocess"])})

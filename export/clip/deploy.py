"""A CLIP's two towers as they are deployed: each a file of its own, with unit rows of the shared space as output."""

from __future__ import annotations

from torch import Tensor

from edgekit.export.deploy import DeployedPictures
from edgekit.export.text.deploy import DeployedTexts
from edgekit.models.clip import Clip

OUTPUTS = ("embedding",)


class ImageTower(DeployedPictures):
    """images (B, 3, H, W) float32 RGB in [0, 1] → "embedding", unit rows (B, embed_dim); normalisation is inside."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip.only("image")
        self.outputs, self.rows, self.image_size = OUTPUTS, 1, clip.spec.preprocess.image_size

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to unit rows (B, embed_dim)."""
        return (self.clip.encode_image(images),)


class CaptionTower(DeployedTexts):
    """ids (B, L) int32 → "embedding", unit rows (B, embed_dim); what is padded behind the end mark changes nothing."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip.only("text")
        self.outputs, self.max_length = OUTPUTS, clip.spec.context_length

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        """Map ids (B, L) to unit rows (B, embed_dim)."""
        return (self.clip.encode_text(ids),)

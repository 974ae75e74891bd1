"""A CLIP to train: an image tower and a text tower that meet in one embedding space.

Radford et al. 2021 (arXiv 2103.00020), §2.4. The towers here are a timm net and a causal transformer; `memory_clip` and
`open_clip_towers` bring others. What comes out of training is a teacher for `distill`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import LoadError, UsageError, first_line
from edgekit.models.clip_run import CLIP_FILE, clip_file
from edgekit.models.clip_spec import ClipFamily, ClipSpec, ContrastiveLoss
from edgekit.models.student import create_backbone
from edgekit.models.text_tower import TextTower
from edgekit.models.tokenizer import Tokenizer, tokenizer_from_dict
from edgekit.models.weights import fill, read_checkpoint, write_safetensors

__all__ = [
    "CLIP_FILE",
    "Clip",
    "ClipFamily",
    "ClipOutput",
    "ClipSpec",
    "ContrastiveLoss",
    "Encode",
    "Through",
    "Tower",
    "create_clip",
    "load_clip",
    "save_clip",
]

SCHEMA_VERSION = 1
Encode = Callable[[Tensor], Tensor]
Through = Callable[[Encode, Tensor], Tensor]
"""How a batch goes through a tower: at once, or in chunks (`edgekit.compress.clip.gradcache`)."""
Tower = Literal["image", "text"]
_INITIAL_SCALE: Mapping[ContrastiveLoss, float] = {"infonce": 1 / 0.07, "sigmoid": 10.0}
_MAX_SCALE = 100.0
_SIGMOID_BIAS = -10.0
_SHORTEST = 1e-6
"""No embedding is divided by less: float16, in which a tower may be deployed, has no 1e-12, torch's default."""


class ClipOutput(NamedTuple):
    """What the losses take: unit rows (B, embed_dim) of images and texts, the cosines' factor, and the bias if any."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None


class Clip(nn.Module):
    """Image tower, text tower, and the learned temperature between them.

    `logit_scale` is the logarithm of the factor on the cosines; it starts at ln(1/0.07) and the factor never exceeds
    100 (§2.5). For the sigmoid loss it starts at ln 10, beside a bias of −10 (arXiv 2303.15343, §3.2).

    A family with other towers overrides `_build`, `_embed_image`, `_embed_text`, `image_tower` and `_OWN`.
    """

    _OWN: ClassVar[Mapping[Tower, tuple[str, ...]]] = {"image": ("vision", "vision_projection"), "text": ("text",)}
    """What each tower needs and the other does not, as dotted names."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        self.spec = spec
        self.frozen_vision = False
        self.register_buffer("mean", torch.tensor(spec.preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.preprocess.std).view(1, 3, 1, 1), persistent=False)
        self._build(spec)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(_INITIAL_SCALE[spec.loss])))
        self.logit_bias = nn.Parameter(torch.tensor(_SIGMOID_BIAS)) if spec.loss == "sigmoid" else None

    def _build(self, spec: ClipSpec) -> None:
        check_heads(spec)
        self.vision = create_backbone(spec.vision, spec.preprocess.image_size)
        self.vision_projection = nn.Linear(_features(self.vision, spec), spec.embed_dim, bias=False)
        self.text = TextTower(spec)

    def _embed_image(self, normalised: Tensor) -> Tensor:
        """Map normalised pictures (B, 3, H, W) to raw embeddings (B, embed_dim)."""
        embedding: Tensor = self.vision_projection(self.vision(normalised))
        return embedding

    def _embed_text(self, tokens: Tensor) -> Tensor:
        """Map ids (B, L) int64 to raw embeddings (B, embed_dim)."""
        embedding: Tensor = self.text(tokens)
        return embedding

    @property
    def image_tower(self) -> nn.Module:
        """The part that turns a picture into features, which may start pretrained and stay frozen."""
        return self.vision

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float in [0, 1] to unit rows (B, embed_dim)."""
        return F.normalize(self._embed_image((images - self.mean) / self.std), dim=-1, eps=_SHORTEST)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map ids (B, L) of any integer type, L ≤ context_length, to unit rows (B, embed_dim)."""
        return F.normalize(self._embed_text(tokens), dim=-1, eps=_SHORTEST)

    def only(self, tower: Tower) -> Clip:
        """Return a copy with one tower, in eval mode: what is deployed. The other's `encode_…` fails."""
        left = copy.deepcopy(self).eval()
        for path in self._OWN["text" if tower == "image" else "image"]:
            parent, _, name = path.rpartition(".")
            owner = left.get_submodule(parent)
            if hasattr(owner, name):
                delattr(owner, name)
        return left

    def scale(self) -> Tensor:
        """Return the factor on the cosines, a scalar in (0, 100]."""
        return self.logit_scale.clamp(max=math.log(_MAX_SCALE)).exp()

    def forward(self, images: Tensor, tokens: Tensor, through: Through | None = None) -> ClipOutput:
        """Encode images (B, 3, H, W) in [0, 1] and ids (B, L) of their texts; `through` may do it in chunks."""
        if through is None:
            return ClipOutput(self.encode_image(images), self.encode_text(tokens), self.scale(), self.logit_bias)
        image, text = through(self.encode_image, images), through(self.encode_text, tokens)
        return ClipOutput(image, text, self.scale(), self.logit_bias)

    def freeze_vision(self) -> None:
        """Train everything but the image tower, whose batch norms keep their statistics too (LiT, arXiv 2111.07991)."""
        self.frozen_vision = True
        self.image_tower.requires_grad_(False)
        self.train(self.training)

    def checkpoint_blocks(self) -> None:
        """Keep no activations inside the towers' blocks; they are computed again on the way back (arXiv 1604.06174).

        Raises:
            UsageError: the image tower does not offer it.
        """
        try:
            self.image_tower.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError, TypeError) as e:
            raise UsageError(
                f"the image tower {self.spec.vision} has no gradient checkpointing; use --chunk-size to save memory"
            ) from e
        if isinstance(text := getattr(self, "text", None), TextTower):
            text.checkpointing = True

    def train(self, mode: bool = True) -> Clip:
        """Switch modes; a frozen image tower stays in eval mode."""
        super().train(mode)
        if self.frozen_vision:
            self.image_tower.eval()
        return self


def create_clip(spec: ClipSpec) -> Clip:
    """Build the untrained CLIP of a spec, whatever its family.

    Raises:
        UsageError: its towers cannot be built so.
    """
    if spec.family == "memory":
        from edgekit.models.memory_clip import MemoryClip

        return MemoryClip(spec)
    if spec.family == "open_clip":
        from edgekit.models.open_clip_towers import OpenClip

        return OpenClip(spec)
    return Clip(spec)


def check_heads(spec: ClipSpec) -> None:
    """Raise if the attention heads do not divide the width."""
    if spec.text_width % spec.text_heads:
        raise UsageError(f"text_width {spec.text_width} is not a multiple of text_heads {spec.text_heads}")


def _features(backbone: nn.Module, spec: ClipSpec) -> int:
    """Run one blank picture through the image tower and return its feature count."""
    size = spec.preprocess.image_size
    try:
        with torch.no_grad():
            shape = tuple(backbone.eval()(torch.zeros(1, 3, size, size)).shape)
    except (RuntimeError, AssertionError) as e:
        raise UsageError(f"the image tower {spec.vision} does not take {size} px pictures: {first_line(e)}") from e
    backbone.train()
    if len(shape) != 2:
        raise UsageError(f"the image tower {spec.vision} gives features of shape {shape}, not (B, features)")
    return int(shape[1])


def save_clip(path: Path, clip: Clip, tokenizer: Tokenizer, weights: nn.Module | None = None) -> None:
    """Write a CLIP and its tokenizer as one safetensors file, whole or not at all.

    `weights` (e.g. the EMA copy) replaces the model's own tensors if given.
    """
    state = (weights or clip).state_dict()
    # what is stored is what `scale()` uses, so that a reader may take the exponential alone
    state["logit_scale"] = state["logit_scale"].clamp(max=math.log(_MAX_SCALE))
    header = {"schema_version": SCHEMA_VERSION, "clip": clip.spec.to_dict(), "tokenizer": tokenizer.to_dict()}
    write_safetensors(path, state, header)


def load_clip(run: Path) -> tuple[Clip, Tokenizer]:
    """Rebuild the CLIP, in eval mode, and the tokenizer of a run folder or checkpoint file.

    Raises:
        LoadError: no checkpoint, a damaged one, one of a newer edgekit, or a tokenizer that is not the model's.
    """
    path = clip_file(run)
    if not path.is_file():
        raise LoadError(f"{run} holds no CLIP: expected a run folder with {CLIP_FILE}, or such a file")
    tensors, header = read_checkpoint(path, "CLIP", ("clip", "tokenizer"), SCHEMA_VERSION)
    try:
        spec = ClipSpec.from_dict(header["clip"])
        tokenizer = tokenizer_from_dict(header["tokenizer"])
    except (KeyError, TypeError, ValueError) as e:
        raise LoadError(f"{path} is not an edgekit CLIP: its metadata holds no valid spec ({e})") from e
    check_tokenizer(path, spec, tokenizer)
    try:
        clip = create_clip(spec)
    except (RuntimeError, UsageError) as e:
        raise LoadError(f"{path} names towers that cannot be built here: {first_line(e)}") from e
    fill(clip, tensors, path, spec.vision)
    return clip.eval(), tokenizer


def check_tokenizer(path: Path, spec: ClipSpec, tokenizer: Tokenizer) -> None:
    """Raise if a tokenizer's ids are not those that the text tower was built for.

    Raises:
        LoadError: another vocabulary or length.
    """
    if (tokenizer.context_length, tokenizer.vocab_size) != (spec.context_length, spec.vocab_size):
        raise LoadError(
            f"{path} carries another model's tokenizer: {tokenizer.vocab_size} ids × {tokenizer.context_length}, the "
            f"model takes {spec.vocab_size} × {spec.context_length}"
        )

"""A small CLIP to train: a timm image tower and a causal text transformer that meet in one embedding space.

Radford et al. 2021 (arXiv 2103.00020), §2.4. What comes out of its training is a teacher for `distill`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit import atomic
from edgekit.errors import LoadError, UsageError
from edgekit.models.student import create_backbone
from edgekit.models.tokenizer import Tokenizer, tokenizer_from_dict
from edgekit.models.weights import read_safetensors
from edgekit.preprocess import Preprocess

SCHEMA_VERSION = 1
CLIP_FILE = "clip.safetensors"
ContrastiveLoss = Literal["infonce", "sigmoid"]
_INITIAL_SCALE: Mapping[ContrastiveLoss, float] = {"infonce": 1 / 0.07, "sigmoid": 10.0}
_MAX_SCALE = 100.0
_SIGMOID_BIAS = -10.0


@dataclass(frozen=True)
class ClipSpec:
    """Both towers' architecture and the picture's contract.

    Attributes:
        vision: timm name of the image tower.
        embed_dim: dimension of the shared embedding space.
        text_width: channels of the text transformer.
        text_layers: its blocks.
        text_heads: its attention heads; divides `text_width`.
        context_length: ids per text.
        vocab_size: ids of the tokenizer.
        preprocess: how a picture becomes the image tower's input.
        loss: what it is trained with: "infonce" (CLIP) or "sigmoid" (SigLIP), which also has a bias.
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

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClipSpec:
        """Build from the mapping that `to_dict` made."""
        return cls(**{**values, "preprocess": Preprocess.from_dict(values["preprocess"])})


class _Block(nn.Module):
    """Pre-LayerNorm transformer block: x + attention(norm(x)), then x + mlp(norm(x)); causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, width / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        fed: Tensor = x + self.mlp(self.norm_mlp(x))
        return fed


class TextTower(nn.Module):
    """Token ids (B, L) int64 → causal transformer → the features at each text's end mark → (B, embed_dim)."""

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        width = spec.text_width
        self.token = nn.Embedding(spec.vocab_size, width)
        self.position = nn.Parameter(torch.empty(spec.context_length, width))
        self.blocks = nn.Sequential(*(_Block(width, spec.text_heads) for _ in range(spec.text_layers)))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, spec.embed_dim, bias=False)
        self._initialise(width, spec.text_layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ids (B, L) int64 to raw embeddings (B, embed_dim)."""
        # Causal attention never looks past the end mark, so columns that are padding in every text change nothing.
        ends = tokens.argmax(dim=1)  # the end mark is the highest id
        x = self.blocks(self.token(tokens) + self.position[: tokens.shape[1]])
        pooled = x[torch.arange(len(x), device=x.device), ends]
        embedding: Tensor = self.projection(self.norm(pooled))
        return embedding

    def _initialise(self, width: int, layers: int) -> None:
        """Initialise as CLIP does (§2.5; its code's `initialize_parameters`): residual writers shrink with depth."""
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writer = name.endswith(("out.weight", "mlp.2.weight"))
                narrow = (2 * width) ** -0.5 if "mlp.0" in name else width**-0.5
                nn.init.normal_(parameter, std=narrow * (2 * layers) ** -0.5 if writer else narrow)
        nn.init.normal_(self.projection.weight, std=width**-0.5)


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
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ClipSpec) -> None:
        super().__init__()
        _check(spec)
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.preprocess.std).view(1, 3, 1, 1), persistent=False)
        self.vision = create_backbone(spec.vision, spec.preprocess.image_size)
        self.vision_projection = nn.Linear(_features(self.vision, spec), spec.embed_dim, bias=False)
        self.text = TextTower(spec)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(_INITIAL_SCALE[spec.loss])))
        self.logit_bias = nn.Parameter(torch.tensor(_SIGMOID_BIAS)) if spec.loss == "sigmoid" else None

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float in [0, 1] to unit rows (B, embed_dim)."""
        return F.normalize(self.vision_projection(self.vision((images - self.mean) / self.std)), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map ids (B, L) int64, L ≤ context_length, to unit rows (B, embed_dim)."""
        return F.normalize(self.text(tokens), dim=-1)

    def scale(self) -> Tensor:
        """Return the factor on the cosines, a scalar in (0, 100]."""
        return self.logit_scale.clamp(max=math.log(_MAX_SCALE)).exp()

    def forward(self, images: Tensor, tokens: Tensor) -> ClipOutput:
        """Encode images (B, 3, H, W) in [0, 1] and ids (B, L) of their texts."""
        return ClipOutput(self.encode_image(images), self.encode_text(tokens), self.scale(), self.logit_bias)


def _check(spec: ClipSpec) -> None:
    if spec.text_width % spec.text_heads:
        raise UsageError(f"text_width {spec.text_width} is not a multiple of text_heads {spec.text_heads}")


def _features(backbone: nn.Module, spec: ClipSpec) -> int:
    """Run one blank picture through the image tower and return its feature count."""
    size = spec.preprocess.image_size
    try:
        with torch.no_grad():
            shape = tuple(backbone.eval()(torch.zeros(1, 3, size, size)).shape)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        raise UsageError(f"the image tower {spec.vision} does not take {size} px pictures: {reason}") from e
    backbone.train()
    if len(shape) != 2:
        raise UsageError(f"the image tower {spec.vision} gives features of shape {shape}, not (B, features)")
    return int(shape[1])


def save_clip(path: Path, clip: Clip, tokenizer: Tokenizer, weights: nn.Module | None = None) -> None:
    """Write a CLIP and its tokenizer as one safetensors file, whole or not at all.

    `weights` (e.g. the EMA copy) replaces the model's own tensors if given.
    """
    state = (weights or clip).state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # what is stored is what `scale()` uses, so that a reader may take the exponential alone
    tensors["logit_scale"] = tensors["logit_scale"].clamp(max=math.log(_MAX_SCALE))
    header = {"schema_version": SCHEMA_VERSION, "clip": clip.spec.to_dict(), "tokenizer": tokenizer.to_dict()}
    atomic.write_bytes(path, save(tensors, metadata={"edgekit": json.dumps(header)}))


def load_clip(run: Path) -> tuple[Clip, Tokenizer]:
    """Rebuild the CLIP, in eval mode, and the tokenizer of a run folder or checkpoint file.

    Raises:
        LoadError: no checkpoint, a damaged one, one of a newer edgekit, or a tokenizer that is not the model's.
    """
    path = run / CLIP_FILE if run.is_dir() else run
    if not path.is_file():
        raise LoadError(f"{run} holds no CLIP: expected a run folder with {CLIP_FILE}, or such a file")
    tensors, metadata = read_safetensors(path)
    try:
        header = json.loads(metadata["edgekit"])
        if (version := header["schema_version"]) > SCHEMA_VERSION:
            raise LoadError(
                f"{path} was written by a newer edgekit (schema {version}, not {SCHEMA_VERSION}); update it"
            )
        spec = ClipSpec.from_dict(header["clip"])
        tokenizer = tokenizer_from_dict(header["tokenizer"])
    except (KeyError, TypeError, ValueError) as e:
        raise LoadError(f"{path} is not an edgekit CLIP: its metadata holds no valid spec ({e})") from e
    if (tokenizer.context_length, tokenizer.vocab_size) != (spec.context_length, spec.vocab_size):
        raise LoadError(
            f"{path} carries another model's tokenizer: {tokenizer.vocab_size} ids × {tokenizer.context_length}, the "
            f"model takes {spec.vocab_size} × {spec.context_length}"
        )
    clip = Clip(spec)
    try:
        clip.load_state_dict(tensors)
    except RuntimeError as e:
        reason = " ".join(str(e).split())[:200]
        raise LoadError(f"{path} does not fit the architecture it names, {spec.vision}: {reason}") from e
    return clip.eval(), tokenizer

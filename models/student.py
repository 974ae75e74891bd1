"""The student: a timm image backbone, a projection to the teacher's embedding space, and a classifier on top of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgekit.models.int8_student  # noqa: F401  makes its nets known to timm
from edgekit.errors import LoadError, UsageError, did_you_mean, first_line
from edgekit.models.freezing import early_weights
from edgekit.models.spec import StudentSpec
from edgekit.models.temporal import ClipHead, TemporalAttentionPool
from edgekit.models.weights import read_state_dict
from edgekit.models.widths import narrow
from edgekit.preprocess import Interpolation, Preprocess


class StudentOutput(NamedTuple):
    """What a student gives for a batch: the raw embedding (B, embed_dim) and class logits (B, num_classes)."""

    embedding: Tensor
    logits: Tensor


class Student(nn.Module):
    """images (B, 3, H, W) in [0, 1] → normalise → backbone → projection (embedding) → classifier (logits).

    The embedding is not normalised here: losses and exporters do that where they need unit rows. The classifier
    reads the embedding, so distilling the embedding also trains what the classifier sees.

    With `spec.frames` > 1 it takes clips (B, F, 3, H, W): every frame goes through backbone and projection, attention
    pools them to the clip's embedding, and the classifier has a hidden layer (`edgekit.models.temporal`).

    Attributes:
        dropout: share of the embedding's values that the classifier does not see while training, in [0, 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dropout = 0.0
        self.register_buffer("mean", torch.tensor(spec.preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.preprocess.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = create_backbone(spec.arch, spec.image_size)
        narrow(self.backbone, dict(spec.widths))
        self.projection = nn.Linear(_feature_dim(self.backbone, spec), spec.embed_dim)
        self.pool: TemporalAttentionPool | None = None
        if spec.frames > 1:
            self.pool = TemporalAttentionPool(spec.embed_dim, spec.frames, positions=spec.positions)
            self.classifier: nn.Module = ClipHead(spec.embed_dim, spec.num_classes)
        else:
            self.classifier = nn.Linear(spec.embed_dim, spec.num_classes)
        self._frozen: tuple[nn.Module, ...] = ()

    def forward(self, images: Tensor) -> StudentOutput:
        """Map images (B, 3, H, W), or clips (B, F, 3, H, W), in [0, 1] to raw embeddings and logits, a row each."""
        return self.from_frames(images if self.pool is None else images.flatten(0, 1))

    def from_frames(self, images: Tensor) -> StudentOutput:
        """Map pictures, or the frames (B·F, 3, H, W) of clips one clip after the other, to a row for each of B."""
        embedding: Tensor = self.projection(self.backbone(self._normalised(images)))
        if self.pool is not None:
            embedding = self.pool(embedding.view(-1, self.spec.frames, self.spec.embed_dim))
        read = F.dropout(embedding, self.dropout) if self.dropout and self.training else embedding
        return StudentOutput(embedding, self.classifier(read))

    def _normalised(self, images: Tensor) -> Tensor:
        """Map pixels to what the backbone takes. MobileViT takes pixels; runtimes would compute x - 0 and x / 1."""
        contract = self.spec.preprocess
        if not any(contract.mean) and all(deviation == 1.0 for deviation in contract.std):
            return images
        return (images - self.mean) / self.std

    def freeze(self, stages: int) -> int:
        """Hold the first `stages` stages of the backbone, the stem being the first; return how many weights that are.

        Their batch norms keep their statistics, too: those of a few pictures are worse than the ones they come with.

        Raises:
            UsageError: the backbone has not that many stages, or timm does not say which they are.
        """
        names = early_weights(self.backbone, stages, self.spec.arch)
        weights = [self.backbone.get_parameter(name) for name in names]
        for weight in weights:
            weight.requires_grad_(False)
        # a weight of the net itself, as a class token, has no dot, and the net itself goes on training
        holders = dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name)
        self._frozen = tuple(self.backbone.get_submodule(holder) for holder in holders)
        self.train(self.training)
        return sum(weight.numel() for weight in weights)

    def freeze_backbone(self) -> None:
        """Hold the whole backbone, the statistics of its batch norms included; what comes after it goes on training."""
        self.backbone.requires_grad_(False)
        self._frozen = (*self._frozen, self.backbone)
        self.train(self.training)

    def train(self, mode: bool = True) -> Student:
        """Switch training mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def check_arch(arch: str) -> str:
    """Return `arch`, a timm name with or without the tag of its weights, if timm knows it.

    Raises:
        UsageError: with the nearest name that timm has.
    """
    base = arch.partition(".")[0]
    if not timm.is_model(base):
        raise UsageError(f"--student '{arch}' is not a timm model; {did_you_mean(base, timm.list_models())}")
    if "." in arch:
        tagged = timm.list_pretrained(f"{base}.*")
        if arch not in tagged:
            hint = did_you_mean(arch, tagged) if tagged else f"none are known, give --student {base}"
            raise UsageError(f"--student '{arch}' names weights that timm does not have; {hint}")
    return arch


def has_fixed_size(arch: str) -> bool:
    """Return whether `arch` is built for one input size, as vision transformers with position embeddings are."""
    config = timm.get_pretrained_cfg(arch.partition(".")[0])
    return config is not None and bool(config.fixed_input_size)


def student_preprocess(arch: str, image_size: int) -> Preprocess:
    """Return the preprocessing that timm states for `arch` (and the tag of its weights), at `image_size` pixels."""
    config = timm.get_pretrained_cfg(check_arch(arch))
    mean, std = (config.mean, config.std) if config is not None else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    crop_pct = config.crop_pct if config is not None else 0.9
    linear = config is not None and config.interpolation == "bilinear"
    interpolation: Interpolation = "bilinear" if linear else "bicubic"
    return Preprocess(image_size, round(image_size / crop_pct), interpolation, tuple(mean), tuple(std))


def create_backbone(arch: str, image_size: int, *, pretrained: bool = False) -> nn.Module:
    """Build the headless timm backbone: images → pooled features (B, features).

    Args:
        arch: timm name; its tag ("resnet50.a2_in1k") says which weights `pretrained` takes.
        image_size: side of the input in pixels; nets with a fixed input are built for it.
        pretrained: take timm's weights from the hub, else random ones.

    Raises:
        UsageError: unknown architecture, or it cannot take this image size.
        LoadError: pretrained weights were asked for and cannot be had.
    """
    check_arch(arch)
    base = arch.partition(".")[0]
    options: dict[str, Any] = {"img_size": image_size} if has_fixed_size(base) else {}
    with warnings.catch_warnings():
        # timm 1.0 maps its own deprecated aliases with a warning; the name still builds the right net
        warnings.filterwarnings("ignore", message="Mapping deprecated model name", category=UserWarning)
        try:
            backbone: nn.Module = timm.create_model(base, num_classes=0, **options)
        except (AssertionError, ValueError, TypeError, RuntimeError) as e:
            reason = first_line(e)
            raise UsageError(f"--student {arch} cannot be built for --image-size {image_size}: {reason}") from e
        if not pretrained:
            return backbone
        try:
            loaded: nn.Module = timm.create_model(arch, pretrained=True, num_classes=0, **options)
        except Exception as e:  # the hub client raises many types, none of them public
            raise LoadError(
                f"the pretrained weights of '{arch}' could not be fetched from the hub ({type(e).__name__}). "
                f"Check the network, pass local ones with --student-weights FILE, or train from scratch with "
                f"--student {base}"
            ) from e
    return loaded


def _feature_dim(backbone: nn.Module, spec: StudentSpec) -> int:
    """Run one blank picture through: the feature count, and whether the net can take this image size at all."""
    reduction = max((int(info["reduction"]) for info in getattr(backbone, "feature_info", [])), default=1)
    if spec.image_size < reduction:
        raise UsageError(
            f"--image-size {spec.image_size} is too small for {spec.arch}: it halves the picture down by "
            f"{reduction}, so at least {reduction} pixels are needed"
        )
    was_training = backbone.training
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, spec.image_size, spec.image_size))
    except (RuntimeError, AssertionError) as e:
        raise UsageError(f"--image-size {spec.image_size} does not work with {spec.arch}: {first_line(e)}") from e
    finally:
        backbone.train(was_training)
    if features.ndim != 2:
        raise UsageError(f"--student {spec.arch} gives features of shape {tuple(features.shape)}, not (B, features)")
    return int(features.shape[1])


def build_student(spec: StudentSpec, *, weights: Path | None = None, pretrained: str | None = None) -> Student:
    """Build a student; its backbone starts from scratch, from `weights`, or from timm's hub weights.

    Args:
        spec: what to build.
        weights: local file, see `load_backbone`.
        pretrained: timm name of `spec.arch` with the tag of the hub weights, "mobilevit_xxs.cvnets_in1k".

    Raises:
        UsageError: unknown architecture or unusable image size.
        LoadError: the weights cannot be read, or belong to another architecture.
    """
    student = Student(spec)
    if pretrained is not None:
        student.backbone = create_backbone(pretrained, spec.image_size, pretrained=True)
    if weights is not None:
        load_backbone(student.backbone, weights, spec.arch)
    return student


def load_backbone(backbone: nn.Module, weights: Path, arch: str) -> None:
    """Load backbone weights from a local safetensors or `.pt` file; its classifier, if any, is left out.

    Raises:
        LoadError: unreadable, or fewer than 95 % of the backbone's tensors are in the file.
    """
    given = read_state_dict(weights)
    prefixes = ("backbone.", "module.backbone.", "module.", "model.", "")
    own = backbone.state_dict()
    best: dict[str, Tensor] = {}
    for prefix in prefixes:
        stripped = {name[len(prefix) :]: tensor for name, tensor in given.items() if name.startswith(prefix)}
        match = {n: t for n, t in stripped.items() if n in own and own[n].shape == t.shape}
        best = max(best, match, key=len)
    if len(best) < 0.95 * len(own):
        raise LoadError(
            f"{weights} holds the weights of another architecture: {len(best)} of the {len(own)} tensors of {arch} "
            f"match by name and shape. Give weights of {arch}, or the --student they belong to"
        )
    backbone.load_state_dict(best, strict=False)

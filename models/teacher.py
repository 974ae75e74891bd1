"""Frozen teachers: any open_clip model, a CLIP that edgekit trained, or any embedding model in ONNX."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.cores import usable_cores
from edgekit.errors import LoadError, MissingExtraError, UsageError, did_you_mean, first_line
from edgekit.models.clip import load_clip
from edgekit.models.prompts import class_embeddings
from edgekit.preprocess import Interpolation, Preprocess


class Teacher(Protocol):
    """A frozen embedding model.

    Attributes:
        name: as the user gave it, for tables and records.
        embed_dim: dimension of the embedding.
        preprocess: geometry that its pictures go through; normalisation happens inside the call.
        parameters: number of weights, None where it cannot be told.
    """

    name: str
    embed_dim: int
    preprocess: Preprocess
    parameters: int | None

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) float in [0, 1] to unit rows (B, embed_dim)."""
        ...

    def class_scores(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        """Return scaled class weights (C, embed_dim) from prompts, so that logits = embedding · weightsᵀ.

        None where the teacher has no text encoder.
        """
        ...

    def fingerprint(self) -> str:
        """Return a hash of the weights: two teachers share one only if they embed alike."""
        ...


@runtime_checkable
class TextTeacher(Teacher, Protocol):
    """A teacher that also reads texts."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Map N texts to unit rows (N, embed_dim)."""
        ...


class OpenClipTeacher:
    """A CLIP by open_clip: `ARCH:TAG` (weights from the hub), `ARCH:FILE`, or `ARCH:random` (untrained)."""

    def __init__(self, name: str, device: torch.device) -> None:
        import open_clip

        arch, _, source = name.partition(":")
        models = open_clip.list_models()
        if arch not in models:
            raise UsageError(
                f"--teacher '{name}': '{arch}' is neither a file nor an open_clip architecture; "
                f"{did_you_mean(arch, models)}"
            )
        self.model: Any = _open_clip_model(arch, source, device)
        try:
            self.tokenizer = open_clip.get_tokenizer(arch)
        except Exception as e:  # a tokenizer of the hub, whose client raises many types
            raise LoadError(f"--teacher {name}: its tokenizer cannot be loaded ({first_line(e)[:160]})") from e
        self.name, self._device = name, device
        visual: Any = self.model.visual
        size = visual.image_size[0] if isinstance(visual.image_size, tuple | list) else visual.image_size
        mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
        config = getattr(visual, "preprocess_cfg", {})  # SigLIP's "squash" is taken as the crop it nearly is
        interpolation: Interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
        self.preprocess = Preprocess(int(size), int(size), interpolation, tuple(mean), tuple(std))
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.parameters: int | None = sum(p.numel() for p in self.model.parameters())
        self.embed_dim = int(self(torch.zeros(1, 3, int(size), int(size))).shape[1])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        normalised = (images.to(self._device) - self._mean) / self._std
        embedding: Tensor = self.model.encode_image(normalised, normalize=True)
        return embedding.float()

    @torch.no_grad()
    def class_scores(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        weights = class_embeddings(self._encode, self.tokenizer, classes, templates)
        scaled: Tensor = weights * self.model.logit_scale.exp().float()
        return scaled

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Map N texts to unit rows (N, embed_dim)."""
        return self._encode(self.tokenizer(list(texts)))

    def _encode(self, tokens: Tensor) -> Tensor:
        text: Tensor = self.model.encode_text(tokens.to(self._device), normalize=True)
        return text.float()

    def fingerprint(self) -> str:
        from open_clip.transformer import QuickGELU

        weights = weights_hash(self.model)
        quick = any(isinstance(module, QuickGELU) for module in self.model.modules())
        # an activation has no weights, and yet the same weights embed differently by another one
        return hashlib.sha256(f"{weights} quick_gelu".encode()).hexdigest() if quick else weights


def _without_text(text: str) -> Callable[[logging.LogRecord], bool]:
    """Return a log filter that holds back the records with `text` in them."""
    return lambda record: text not in record.getMessage()


def _open_clip_model(arch: str, source: str, device: torch.device) -> nn.Module:
    import open_clip

    if not source:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        raise UsageError(
            f"--teacher {arch} names no weights: give {arch}:TAG (one of {', '.join(tags) or 'none known'}), "
            f"{arch}:FILE, or {arch}:random"
        )
    if source == "random":
        torch.manual_seed(0)
        # open_clip warns on the root logger that there are no weights, which is what was asked for
        expected = _without_text("No pretrained weights loaded")
        logging.getLogger().addFilter(expected)
        try:
            model = open_clip.create_model(arch, pretrained=None, device=device)
        finally:
            logging.getLogger().removeFilter(expected)
    else:
        tags = open_clip.list_pretrained_tags_by_model(arch)
        is_file = Path(source).is_file()
        if not is_file and source not in tags:
            raise UsageError(
                f"--teacher {arch}:{source}: no such file, and not a tag of open_clip's {arch}; "
                f"{did_you_mean(source, [*tags, 'random'])}"
            )
        # OpenAI's weights and others were trained with another activation than the architecture's name stands for;
        # open_clip 3.3 only warns, and computes other embeddings
        quick = bool((open_clip.get_pretrained_cfg(arch, source) or {}).get("quick_gelu", False)) and not is_file
        try:
            model = open_clip.create_model(
                arch, pretrained=source, device=device, weights_only=True, force_quick_gelu=quick
            )
        except Exception as e:  # hub clients and unpicklers raise many types, none of them public
            what = (
                "could not be read"
                if is_file
                else "could not be fetched from the hub; check the network, or give a local file"
            )
            raise LoadError(f"--teacher {arch}:{source} {what} ({type(e).__name__}: {first_line(e)[:160]})") from e
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


class ClipTeacher:
    """A CLIP that edgekit trained: a run folder, or its `clip.safetensors`."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.model, self.tokenizer = load_clip(path / "clip.safetensors" if path.is_dir() else path)
        self.model.to(device).eval().requires_grad_(False)
        self.name, self._device = str(path), device
        self.preprocess = self.model.spec.preprocess
        self.embed_dim = self.model.spec.embed_dim
        self.parameters: int | None = sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.model.encode_image(images.to(self._device))
        return embedding

    @torch.no_grad()
    def class_scores(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        weights = class_embeddings(self._encode, self.tokenizer, classes, templates)
        return weights * self.model.logit_scale.exp()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Map N texts to unit rows (N, embed_dim)."""
        return self._encode(torch.from_numpy(self.tokenizer(texts)))

    def _encode(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens.to(self._device))

    def fingerprint(self) -> str:
        return weights_hash(self.model)


class OnnxTeacher:
    """An embedding model in ONNX: one image input (B, 3, H, W) float in [0, 1], first output (B, embed_dim)."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as e:
            raise MissingExtraError("onnxruntime", "onnx", f"--teacher {path}") from e
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads or usable_cores()  # by itself it takes, and pins, every core
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's exception types are private
            raise LoadError(f"--teacher {path} is not an ONNX model that runs here: {first_line(e)[:200]}") from e
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        image, shape = inputs[0], inputs[0].shape
        square = len(shape) == 4 and shape[1] == 3 and isinstance(shape[2], int) and shape[2] == shape[3]
        if len(inputs) != 1 or image.type != "tensor(float)" or not square:
            raise LoadError(
                f"--teacher {path}: it has {len(inputs)} input(s), the first is '{image.name}' {shape} of "
                f"{image.type}; expected one of (batch, 3, size, size), tensor(float)"
            )
        self._input, self._fixed_batch = image.name, shape[0] if isinstance(shape[0], int) else None
        self.name, self._path = str(path), path
        # the model normalises itself; 224 → 256 is the resize that ImageNet models are evaluated with
        self.preprocess = Preprocess(shape[2], round(shape[2] / 0.875), "bilinear")
        self.parameters: int | None = None
        self._output = outputs[0].name
        try:
            rows = self(torch.zeros(1, 3, shape[2], shape[2]))
        except Exception as e:  # onnxruntime's exception types are private
            raise LoadError(f"--teacher {path} fails on a blank picture: {first_line(e)[:200]}") from e
        if rows.ndim != 2:
            raise LoadError(
                f"--teacher {path}: its output '{self._output}' is {tuple(rows.shape)} for one picture; "
                f"expected (batch, embed_dim)"
            )
        self.embed_dim = int(rows.shape[1])

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.detach().cpu().numpy().astype(np.float32)
        count, step = len(pixels), self._fixed_batch or len(pixels)
        if count % step:  # a fixed batch is filled up with blank pictures
            pixels = np.concatenate([pixels, np.zeros((step - count % step, *pixels.shape[1:]), np.float32)])
        rows = [
            self._session.run([self._output], {self._input: pixels[i : i + step]})[0]
            for i in range(0, len(pixels), step)
        ]
        return F.normalize(torch.from_numpy(np.concatenate(rows)[:count]).float(), dim=1)

    def class_scores(self, classes: Sequence[str], templates: Sequence[str]) -> Tensor | None:
        return None

    def fingerprint(self) -> str:
        return hashlib.sha256(self._path.read_bytes()).hexdigest()


def load_teacher(name: str, device: torch.device, *, threads: int = 0) -> Teacher:
    """Return the frozen teacher that `name` stands for.

    Args:
        name: `FILE.onnx`; a run folder or `.safetensors` of a CLIP or a classifier that edgekit trained; or
            open_clip's `ARCH:TAG`, `ARCH:FILE`, `ARCH:random`.
        device: where it runs (ONNX teachers stay on the CPU).
        threads: of an ONNX teacher; 0 takes all that this process may use. PyTorch's are set by the caller.

    Raises:
        UsageError: the name stands for nothing; the nearest known name is given.
        LoadError: it cannot be loaded.
    """
    path = Path(name)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise LoadError(f"--teacher {name} is not there; give the path of an ONNX file")
        return OnnxTeacher(path, threads)
    from edgekit.models.image_classifier import ClassifierTeacher, holds_classifier

    if holds_classifier(path):
        return ClassifierTeacher(path, device)
    if path.suffix == ".safetensors" or path.is_dir():
        return ClipTeacher(path, device)
    return OpenClipTeacher(name, device)


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 over the names, shapes and bytes of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
            if tensor.ndim
            else str(tensor.item()).encode()
        )
    return digest.hexdigest()

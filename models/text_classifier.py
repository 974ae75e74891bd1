"""The text classifier: token ids in, features and class logits out; and its checkpoint, which holds the tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgekit.errors import LoadError, UsageError, first_line
from edgekit.models.text_encoder import EncoderConfig, PieceEmbedding, ScratchEncoder
from edgekit.models.text_run import TEXT_FILE
from edgekit.models.text_tokenizer import Ids, TextTokenizer, TrainedBpe, text_tokenizer_from_dict
from edgekit.models.weights import fill, read_checkpoint, write_safetensors

SCHEMA_VERSION = 1
SCRATCH = "edgekit-text"


class TextOutput(NamedTuple):
    """What a text classifier gives for a batch: features (B, D) and class logits (B, C)."""

    embedding: Tensor
    logits: Tensor


@dataclass(frozen=True)
class TextSpec:
    """What is needed to rebuild a text classifier, beside its tokenizer.

    Attributes:
        arch: `SCRATCH`, or the name that Hugging Face knows the encoder's family by ("bert").
        classes: class names in the order of the logits.
        vocab_size: ids that the encoder knows.
        max_length: ids per text.
        encoder: `EncoderConfig` or the encoder's Hugging Face config, as a mapping.
        padding: id of positions that do not count.
    """

    arch: str
    classes: tuple[str, ...]
    vocab_size: int
    max_length: int
    encoder: Mapping[str, Any]
    padding: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextSpec:
        """Build from the mapping that `to_dict` made.

        Raises:
            LoadError: a value is missing, unknown or impossible; the mapping also comes out of files that others wrote.
        """
        try:
            fields = dict(values)
            classes = fields["classes"]
            if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
                raise ValueError(f"classes {classes!r:.80}")
            if not isinstance(fields["arch"], str) or not isinstance(fields["encoder"], dict):
                raise ValueError(f"arch {fields['arch']!r:.80}")
            numbers = {name: int(fields[name]) for name in ("vocab_size", "max_length", "padding")}
            return cls(**{**fields, **numbers, "classes": tuple(classes)})
        except (KeyError, TypeError, ValueError) as e:
            raise LoadError(f"not the spec of a text classifier: {e!r:.200}") from e


class TextClassifier(nn.Module):
    """ids (B, L) → encoder → features (embedding) → dropout, linear (logits)."""

    def __init__(self, spec: TextSpec, encoder: nn.Module, features: int, dropout: float) -> None:
        super().__init__()
        self.spec, self.encoder, self.features = spec, encoder, features
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, len(spec.classes))

    def forward(self, ids: Tensor) -> TextOutput:
        """Map ids (B, L) int32 or int64, L ≤ max_length, to features (B, D) and logits (B, C)."""
        features = self.encoder(ids)
        return TextOutput(features, self.classifier(self.drop(features)))

    def deployed(self) -> TextClassifier:
        """Return a copy for deployment that gives the same: vectors of pieces and of their n-grams added up."""
        copied = copy.deepcopy(self).eval().requires_grad_(False)
        encoder = copied.encoder
        if isinstance(encoder, ScratchEncoder) and isinstance(encoder.embedding, PieceEmbedding):
            encoder.embedding = encoder.embedding.folded()
        return copied


def build_text_classifier(spec: TextSpec, tokenizer: TextTokenizer) -> TextClassifier:
    """Return an untrained classifier.

    Raises:
        UsageError: tokenizer and spec are not of one model, or the size is impossible.
        LoadError: the encoder's config is none that is known here.
        MissingExtraError: a Hugging Face encoder without transformers.
    """
    if (tokenizer.vocab_size, tokenizer.max_length) != (spec.vocab_size, spec.max_length):
        raise UsageError(
            f"a tokenizer of another model: {tokenizer.vocab_size} ids × {tokenizer.max_length} per text, the model "
            f"takes {spec.vocab_size} × {spec.max_length}"
        )
    if spec.arch == SCRATCH:
        if not isinstance(tokenizer, TrainedBpe):
            raise UsageError(f"{SCRATCH} takes a tokenizer trained by edgekit, not {type(tokenizer).__name__}")
        config = EncoderConfig.from_dict(dict(spec.encoder))
        encoder = ScratchEncoder(tokenizer.pieces(), spec.max_length, config, spec.padding)
        return TextClassifier(spec, encoder, encoder.features, config.dropout)
    from edgekit.models.text_huggingface import HuggingFaceEncoder

    named = HuggingFaceEncoder(spec.arch, spec.encoder, spec.padding)
    return TextClassifier(spec, named, named.features, 0.1)


def save_text_classifier(
    path: Path, model: TextClassifier, tokenizer: TextTokenizer, weights: nn.Module | None = None
) -> None:
    """Write a classifier and its tokenizer as one safetensors file, whole or not at all.

    `weights` (e.g. the EMA copy) replaces the model's own tensors if given.
    """
    header = {"schema_version": SCHEMA_VERSION, "text": model.spec.to_dict(), "tokenizer": tokenizer.to_dict()}
    write_safetensors(path, (weights or model).state_dict(), header)


def text_file(run: Path) -> Path:
    """Return the checkpoint that `run`, a run folder or a checkpoint file, stands for.

    Raises:
        LoadError: there is none.
    """
    path = run / TEXT_FILE if run.is_dir() else run
    if not path.is_file():
        raise LoadError(f"{run} holds no text classifier: expected a run folder with {TEXT_FILE}, or such a file")
    return path


def load_text_classifier(run: Path) -> tuple[TextClassifier, TextTokenizer]:
    """Rebuild the classifier, in eval mode, and the tokenizer of a run folder or checkpoint file.

    Raises:
        LoadError: no checkpoint, a damaged one, one of a newer edgekit, or a tokenizer that is not the model's.
    """
    path = text_file(run)
    tensors, header = read_checkpoint(path, "text classifier", ("text", "tokenizer"), SCHEMA_VERSION)
    try:
        tokenizer = text_tokenizer_from_dict(header["tokenizer"])
        model = build_text_classifier(TextSpec.from_dict(header["text"]), tokenizer)
    except (LoadError, UsageError) as e:
        raise LoadError(f"{path} names a text classifier that cannot be built here: {first_line(e)}") from e
    fill(model, tensors, path, model.spec.arch)
    return model.eval(), tokenizer


@torch.no_grad()
def predict(model: TextClassifier, ids: Ids, batch: int = 128) -> TextOutput:
    """Run ids (N, L) int32 through a model in eval mode, with no more padding than needed; outputs on the CPU."""
    device = model.classifier.weight.device
    outputs = []
    for at in range(0, len(ids), batch):
        part = ids[at : at + batch]
        length = max(1, int((part != model.spec.padding).sum(axis=1).max()))
        output = model(torch.from_numpy(part[:, :length]).to(device))
        outputs.append((output.embedding.float().cpu(), output.logits.float().cpu()))
    embeddings, logits = zip(*outputs, strict=True)
    return TextOutput(torch.cat(embeddings), torch.cat(logits))

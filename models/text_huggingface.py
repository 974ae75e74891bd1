"""Hugging Face encoders as the features of a text classifier: by hub name, or from a local folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import LoadError, MissingExtraError, UsageError, first_line
from edgekit.models.text_classifier import TextClassifier, TextSpec, build_text_classifier
from edgekit.models.text_tokenizer_huggingface import HuggingFaceTokenizer

_HIDDEN = -1e4
"""Score of a position that does not count; it fits into float16."""


class HuggingFaceEncoder(nn.Module):
    """Ids to features (B, features): the mean of the last hidden states over the positions that count.

    Args:
        arch: the family's name in transformers ("bert").
        config: its configuration.
        padding: id that does not count.

    Raises:
        MissingExtraError: transformers is not installed.
        LoadError: the family or its configuration is not known here.
    """

    def __init__(self, arch: str, config: Mapping[str, Any], padding: int) -> None:
        super().__init__()
        transformers = _transformers()
        try:
            named = transformers.AutoConfig.for_model(arch, **{k: v for k, v in config.items() if k != "model_type"})
            # eager attention: plain products, which every converter knows
            model: nn.Module = transformers.AutoModel.from_config(named, attn_implementation="eager")
        except Exception as e:  # transformers raises many types, by family
            raise LoadError(f"the encoder '{arch}' cannot be built here: {first_line(e)[:200]}") from e
        self.model, self.padding = model, padding
        self.features = int(named.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, L) to features (B, features)."""
        counts = (ids != self.padding).float()
        # a mask of four dimensions is taken as it is; out of one of two, transformers 5 builds one by operations that
        # not every converter knows
        mask = ((1 - counts) * _HIDDEN)[:, None, None, :]
        hidden: Tensor = self.model(input_ids=ids.to(torch.int64), attention_mask=mask).last_hidden_state
        weights = counts.to(hidden.dtype)[:, :, None]
        # every text has its marks, so no sum is 0
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def pretrained_classifier(
    name: str, classes: tuple[str, ...], max_length: int
) -> tuple[TextClassifier, HuggingFaceTokenizer]:
    """Return a classifier on a pretrained encoder, its last layer untrained, and the encoder's tokenizer.

    Args:
        name: hub name, or a local folder as `save_pretrained` writes it (config.json, weights, tokenizer.json).
        classes: class names.
        max_length: ids per text at most; the encoder's own limit may be less.

    Raises:
        MissingExtraError: transformers is not installed.
        LoadError: there is no such encoder, or it cannot be read or fetched.
        UsageError: it has no padding, or its tokenizer has ids that it does not know.
    """
    transformers = _transformers()
    local = Path(name).is_dir()
    where = "in that folder" if local else "as a folder, in the cache, or at the hub"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=local)
        model = transformers.AutoModel.from_pretrained(name, local_files_only=local, attn_implementation="eager")
    except Exception as e:  # OSError, ValueError and the hub client's own types
        raise LoadError(
            f"--encoder {name}: no encoder and tokenizer are {where} ({first_line(e)[:160]}). Give a folder that "
            f"save_pretrained wrote, or leave --encoder out to train a small one from scratch"
        ) from e
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.pad_token_id is None:
        raise UsageError(f"--encoder {name} has no {'tokenizer.json' if backend is None else 'padding token'}")
    longest = min(max_length, int(tokenizer.model_max_length), _positions(model.config, int(tokenizer.pad_token_id)))
    cut = HuggingFaceTokenizer(backend.to_str(), longest, int(tokenizer.pad_token_id))
    known = int(model.config.vocab_size)
    if cut.vocab_size > known:
        raise UsageError(
            f"--encoder {name} has the tokenizer of another model: {cut.vocab_size} ids, the encoder knows {known}"
        )
    config = model.config.to_diff_dict()
    spec = TextSpec(
        model.config.model_type, classes, cut.vocab_size, longest, {**config, "vocab_size": known}, cut.padding
    )
    classifier = build_text_classifier(spec, cut)
    encoder = classifier.encoder
    assert isinstance(encoder, HuggingFaceEncoder)
    encoder.model.load_state_dict(model.state_dict())
    return classifier, cut


def _positions(config: Any, padding: int) -> int:
    """Return how many positions an encoder has; RoBERTa's begin after the padding id."""
    positions = int(getattr(config, "max_position_embeddings", 1 << 30))
    return positions - padding - 1 if "roberta" in config.model_type else positions


def _transformers() -> Any:
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)  # torchao 0.18, which transformers loads, does what torch 2.14 warns of
    try:
        import transformers
    except ImportError as e:
        raise MissingExtraError("transformers", "text", "A Hugging Face encoder") from e
    finally:
        logger.setLevel(level)
    transformers.utils.logging.disable_progress_bar()  # of the weights that are read: they take no time
    return transformers

"""Prompts: class words, template checks, and the ensemble against a naive loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import UsageError
from edgekit.models.prompts import TEMPLATES, check_templates, class_embeddings, class_words
from edgekit.models.tokenizer import clip_tokenizer
from tests.tolerances import FP32_EXACT

TABLE = torch.randn(49408, 12, generator=torch.Generator().manual_seed(0))


def encode(tokens: Tensor) -> Tensor:
    return F.normalize(TABLE[tokens].sum(1), dim=-1)


@pytest.mark.parametrize(
    ("name", "words"), [("using_laptop", "using laptop"), ("a-b__c", "a b c"), ("star", "star"), (" x_", "x")]
)
def test_folder_names_become_words(name: str, words: str) -> None:
    assert class_words(name) == words


def test_class_embeddings_are_the_mean_over_templates() -> None:
    classes = ["using_laptop", "star", "crescent_moon"]
    tokenizer = clip_tokenizer(16)
    rows = class_embeddings(encode, tokenizer, classes)
    assert rows.shape == (3, 12)
    for row, words in zip(rows, ["using laptop", "star", "crescent moon"], strict=True):
        units = [encode(torch.from_numpy(tokenizer([t.format(words)])))[0] for t in TEMPLATES]
        mean = torch.stack(units).mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), atol=FP32_EXACT, rtol=0)


def test_many_classes_go_through_in_pieces() -> None:
    classes = [f"class {number}" for number in range(100)]  # 700 prompts
    rows = class_embeddings(encode, clip_tokenizer(16), classes)
    torch.testing.assert_close(rows[77:78], class_embeddings(encode, clip_tokenizer(16), classes[77:78]))


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{} and {}"], ["{} {0}"], ["a {} {x}"]])
def test_bad_templates_are_named(templates: list[str]) -> None:
    with pytest.raises(UsageError, match="template"):
        check_templates(templates)

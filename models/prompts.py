"""Class names to classifier weights: prompts, a text encoder, and the mean over templates (CLIP §3.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.errors import UsageError
from edgekit.models.tokenizer import Tokens

# The seven that a forward search over OpenAI's 80 ImageNet templates kept (CLIP's Prompt_Engineering notebook).
TEMPLATES: tuple[str, ...] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def class_words(name: str) -> str:
    """Return a folder's class name as words: "using_laptop" becomes "using laptop"."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates if each has exactly one "{}" for the class.

    Raises:
        UsageError: naming the one that has not.
    """
    if not templates:
        raise UsageError("no prompt templates given; give at least one, such as 'a photo of a {}.'")
    for template in templates:
        if template.count("{}") != 1 or template.replace("{}", "").count("{"):
            raise UsageError(f"prompt template '{template}' must hold exactly one {{}}, the place of the class name")
    return tuple(templates)


@torch.no_grad()
def class_embeddings(
    encode_text: Callable[[Tensor], Tensor],
    tokenizer: Callable[[list[str]], Tensor | Tokens],
    classes: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """Embed each class as the normalised mean of its prompts' unit embeddings: (num_classes, embed_dim) unit rows.

    `tokenizer` maps texts to ids (N, L) int64, `encode_text` maps those to unit rows (N, embed_dim). An image's class
    scores are its embedding's cosines with these rows, times the model's scale.

    Raises:
        UsageError: a template without its one "{}".
    """
    checked = check_templates(templates)
    prompts = [template.replace("{}", class_words(name)) for name in classes for template in checked]
    tokens = torch.as_tensor(tokenizer(prompts))
    rows = torch.cat([encode_text(part) for part in torch.split(tokens, 256)]).float()
    per_class = F.normalize(rows, dim=-1).view(len(classes), len(checked), -1)
    return F.normalize(per_class.mean(dim=1), dim=-1)

"""The linear probe against scikit-learn's logistic regression on the same embeddings."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.store.probe import ClassHead, fit_probe
from tests.tolerances import FP32_EXACT


def clusters(per_class: int, classes: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return unit embeddings (N, 2 views, 32) around random class centres, and labels (N,)."""
    centres = F.normalize(torch.randn(classes, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(classes).repeat_interleave(per_class)
    drawn = torch.randn(len(labels), 2, 32, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centres[labels][:, None] + noise * drawn, dim=-1), labels


def accuracy(head: ClassHead, embeddings: Tensor, labels: Tensor) -> float:
    return float((head(embeddings).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("noise", [0.15, 0.35])
def test_as_accurate_as_scikit_learn(noise: float) -> None:
    train, labels = clusters(60, 6, noise, seed=1)
    val, val_labels = clusters(100, 6, noise, seed=2)
    head = fit_probe(train, labels, 6)
    best = max(
        float(
            LogisticRegression(C=c, max_iter=500)
            .fit(train.flatten(0, 1).numpy(), labels.repeat_interleave(2).numpy())
            .score(val[:, 0].numpy(), val_labels.numpy())
        )
        for c in (1.0, 10.0, 100.0)
    )
    reached = accuracy(head, val[:, 0], val_labels)
    assert reached > 1 / 6 + 0.2
    assert reached >= best - 0.02, f"probe {reached:.4f}, scikit-learn's best {best:.4f}"
    assert head.source == "linear probe"


def test_the_optimum_is_that_of_the_penalised_loss() -> None:
    """At the minimum the gradient of cross-entropy + λ·‖W‖² vanishes for one of the penalties that are tried."""
    train, labels = clusters(30, 4, 0.3, seed=3)
    head = fit_probe(train, labels, 4)
    rows, targets = train.flatten(0, 1), labels.repeat_interleave(2)
    weight = head.weight.clone().requires_grad_()
    F.cross_entropy(rows @ weight.T + head.bias, targets).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    residuals = [float((weight.grad + 2 * p * head.weight).abs().max()) for p in (3e-4, 1e-4, 3e-5, 1e-5)]
    assert min(residuals) < 2e-4, residuals


def test_unlabelled_pictures_change_nothing() -> None:
    train, labels = clusters(20, 3, 0.3, seed=4)
    extra = torch.cat([train, -train[:10]])
    with_extra = fit_probe(extra, torch.cat([labels, torch.full((10,), -1)]), 3)
    assert torch.allclose(with_extra.weight, fit_probe(train, labels, 3).weight)


def test_a_handful_of_pictures_is_enough_to_fit() -> None:
    train, labels = clusters(1, 3, 0.1, seed=5)
    assert accuracy(fit_probe(train[:, :1], labels, 3), train[:, 0], labels) == 1


def test_scores_are_linear_in_the_embedding() -> None:
    head = ClassHead(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0.5, 0.0]), "prompts")
    assert torch.allclose(head(torch.tensor([[2.0, 1.0]])), torch.tensor([[4.5, 5.0]]), atol=FP32_EXACT)
    assert head(torch.ones(1, 2, dtype=torch.float16)).dtype == torch.float32

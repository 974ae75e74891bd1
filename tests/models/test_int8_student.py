"""The students made for 8 bits: timm knows them, they start soundly, and they are as large as the plain ones."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from edgekit.errors import UsageError
from edgekit.models.complexity import measure_complexity
from edgekit.models.int8_student import PooledAttention
from edgekit.models.spec import StudentSpec
from edgekit.models.student import build_student, check_arch, student_preprocess
from edgekit.models.widths import narrow, places

ARCHS = ("mobilevit_xxs_int8", "mobilevit_xs_int8", "mobilevit_s_int8")


def attentions(net: nn.Module) -> list[PooledAttention]:
    return [module for module in net.modules() if isinstance(module, PooledAttention)]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_student_like_any_other(arch: str) -> None:
    plain = arch.removesuffix("_int8")
    assert check_arch(arch) == arch
    assert student_preprocess(arch, 128) == student_preprocess(plain, 128)
    student = build_student(StudentSpec(arch, 24, ("cat", "dog"), student_preprocess(arch, 96))).eval()
    with torch.no_grad():
        output = student(torch.rand(2, 3, 96, 96))
    assert output.embedding.shape == (2, 24) and output.logits.shape == (2, 2)
    assert not torch.allclose(output.embedding[0], output.embedding[1])
    assert student.freeze(2) > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_as_large_as_the_plain_one(arch: str) -> None:
    made, plain = (timm.create_model(name, num_classes=0) for name in (arch, arch.removesuffix("_int8")))
    weights, before = (sum(p.numel() for p in net.parameters()) for net in (made, plain))
    assert abs(weights / before - 1) < 0.02
    assert len(attentions(made)) == 9 and not [m for m in made.modules() if isinstance(m, nn.LayerNorm)]
    smooth = {name.split(".")[1] for name, module in made.named_modules() if isinstance(module, nn.SiLU)}
    assert smooth == {"3", "4", "bn"}, "the small maps, and the last convolution"
    ours, theirs = (measure_complexity(net, 256).macs for net in (made, plain))
    assert ours < theirs


def test_keys_have_the_resolution_of_the_last_stage() -> None:
    net = timm.create_model("mobilevit_xxs_int8", num_classes=0).eval()
    seen: list[tuple[int, ...]] = []
    for attention in attentions(net):
        attention.k.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape[2:])))
    with torch.no_grad():
        net(torch.rand(1, 3, 256, 256))
        assert set(seen) == {(8, 8)}
        seen.clear()
        net(torch.rand(1, 3, 100, 100))  # 13 x 13, 7 x 7 and 4 x 4: what does not fill a window is left out
    assert set(seen) == {(3, 3), (4, 4)}


def test_attention_starts_with_scores_of_deviation_one() -> None:
    torch.manual_seed(0)
    net = timm.create_model("mobilevit_xxs_int8", num_classes=0).train()
    attention = attentions(net.requires_grad_(False))[0]
    x = torch.randn(8, 64, 16, 16)
    assert attention.heads == 2
    pooled = attention.reduce.conv(x)
    torch.testing.assert_close(pooled, nn.functional.avg_pool2d(x, 4))
    q, k = (part.flatten(2).unflatten(1, (2, 32)) for part in (attention.q(x), attention.k(attention.reduce(x))))
    scores = torch.einsum("bhdn,bhdm->bhnm", q, k)
    assert math.isclose(scores.std().item(), 1.0, rel_tol=0.1)


def test_a_window_that_sees_itself_alone() -> None:
    """At 32 px the last stage is one pixel, whose attention is its own value."""
    attention = PooledAttention(8, 2, 1).eval()
    x = torch.randn(3, 8, 1, 1)
    torch.testing.assert_close(attention(x), attention.proj(attention.v(x)))


def test_against_the_formula() -> None:
    torch.manual_seed(0)
    attention, x = PooledAttention(12, 3, 2).eval(), torch.randn(2, 12, 4, 6)
    small = attention.reduce(x)
    q, k, v = attention.q(x).flatten(2), attention.k(small).flatten(2), attention.v(small).flatten(2)
    mixed = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(q[:, rows].transpose(1, 2) @ k[:, rows], dim=-1)
        mixed.append((weights @ v[:, rows].transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(mixed, dim=1).reshape(x.shape)))


def test_its_bottlenecks_can_be_pruned() -> None:
    net, plain = (timm.create_model(name, num_classes=0) for name in ("mobilevit_xxs_int8", "mobilevit_xxs"))
    found = places(net)
    assert found == [place for place in places(plain) if place.kind == "channels"]
    narrow(net, {found[0].path: 16})
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 320)


def test_there_are_no_pretrained_weights() -> None:
    with pytest.raises(UsageError, match="names weights that timm does not have"):
        check_arch("mobilevit_xxs_int8.cvnets_in1k")

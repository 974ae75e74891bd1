"""Faster ways of computing the same layers: equal results and gradients, the same names, and really other kernels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from edgekit.compress.training.fast_layers import (
    FastLinear,
    FastMobileVitBlock,
    FastMobileVitV2Block,
    has_onednn,
    use_fast_layers,
)
from edgekit.compress.training.loop import fit
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student, build_student, student_preprocess
from tests.sides_for_tests import CONFIG, Sides, new_run
from tests.tolerances import FP32_EXACT

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this PyTorch has no oneDNN")


def student(arch: str, image_size: int) -> Student:
    torch.manual_seed(0)
    spec = StudentSpec(arch, 32, ("a", "b", "c"), student_preprocess(arch, image_size))
    return build_student(spec).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("mobilevit_xxs", 64),
        ("mobilevit_xxs", 96),  # the last map is 3 × 3: it is stretched to whole patches
        ("mobilevitv2_050", 64),
        ("mobilevitv2_050", 96),
    ],
)
def test_a_student_computes_the_same_forward_and_backward(arch: str, size: int) -> None:
    plain = student(arch, size)
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    assert [*fast.state_dict()] == [*plain.state_dict()]
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    results = []
    for model in (plain, fast):
        output = model(images.to(memory_format=torch.channels_last))
        (output.logits.square().sum() + output.embedding.sum()).backward()
        results.append((output, [p.grad for p in model.parameters()]))
    (a, gradients), (b, others) = results
    assert torch.allclose(a.logits, b.logits, atol=FP32_EXACT)
    assert torch.allclose(a.embedding, b.embedding, atol=FP32_EXACT)
    largest = max(float(g.abs().max()) for g in gradients if g is not None)
    for one, other in zip(gradients, others, strict=True):
        assert one is not None and other is not None
        assert float((one - other).abs().max()) < 10 * FP32_EXACT * largest


def test_what_is_known_is_replaced_and_nothing_else() -> None:
    class Own(nn.Linear):
        pass

    model = student("mobilevit_xxs", 64)
    model.add_module("own", Own(2, 2))
    use_fast_layers(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(FastMobileVitBlock) == 3 and MobileVitBlock not in kinds
    assert (nn.Linear not in kinds) == has_onednn()
    assert type(model.own) is Own
    second = student("mobilevitv2_050", 64)
    use_fast_layers(second)
    kinds = [type(module) for module in second.modules()]
    assert kinds.count(FastMobileVitV2Block) == 3 and MobileVitV2Block not in kinds


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 7), (0, 7)])
def test_a_linear_layer_has_the_gradients_of_the_plain_one(shape: tuple[int, ...], *, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(7, 4, bias=bias)
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    assert isinstance(fast, FastLinear)
    x = torch.randn(shape)
    found = []
    for layer in (plain, fast):
        given = x.clone().requires_grad_()
        y = layer(given)
        (y.sin()).sum().backward()
        found.append([y, given.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=FP32_EXACT)


@needs_onednn
def test_only_what_asks_for_a_gradient_gets_one() -> None:
    layer = nn.Linear(3, 2)
    use_fast_layers(layer)
    layer.weight.requires_grad_(False)
    x = torch.randn(4, 3)
    layer(x).sum().backward()
    assert x.grad is None and layer.weight.grad is None
    assert layer.bias.grad is not None
    with torch.no_grad():
        assert not layer(x).requires_grad


@needs_onednn
def test_half_precision_goes_the_plain_way() -> None:
    layer = nn.Linear(8, 4)
    use_fast_layers(layer)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64


def operators(call: nn.Module, x: Tensor) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call(x)
    return {event.key for event in found.key_averages()}


@needs_onednn
@pytest.mark.filterwarnings("ignore")  # the profiler's own, of clocks and missing GPUs
def test_the_products_are_those_of_onednn() -> None:
    layer = nn.Linear(8, 4)
    x = torch.randn(3, 8)
    assert "aten::addmm" in operators(layer, x)
    use_fast_layers(layer)
    assert "mkldnn::_linear_pointwise" in operators(layer, x)
    assert "aten::addmm" not in operators(layer, x)


@needs_onednn
def test_the_training_loop_uses_them(tmp_path: Path) -> None:
    task, seen = Sides(), set()
    for module in task.model.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.add(type(module)))
    fit(task, CONFIG, new_run(tmp_path / "run"))
    assert FastLinear in seen
    # who prunes the net or rounds it afterwards knows layers by their classes
    assert {type(module) for module in task.model.modules()} == {type(module) for module in Sides().model.modules()}
    assert torch.isfinite(F.softmax(task.model(torch.zeros(2, 10)), 1)).all()

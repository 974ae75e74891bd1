"""Rewrites are exact: the rewritten net computes what the given one does, and the given one stays as it was."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor, nn

from edgekit.export.rewrites import REWRITES, Target, rewrite
from edgekit.export.rewrites.batchnorm import fold_batch_norms
from edgekit.export.rewrites.mobilevit import move_to_tokens
from edgekit.export.rewrites.tokens import to_map, to_patches, to_rows
from tests.export.nets_for_tests import TwoHeads, pictures, randomised
from tests.tolerances import FP32_EXACT

TARGETS = get_args(Target)
V1 = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")
V2 = ("mobilevitv2_050", "mobilevitv2_075", "mobilevitv2_100")
INT8 = ("mobilevit_xxs_int8", "mobilevit_s_int8")


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).detach().item()


@pytest.mark.parametrize("arch", V1 + V2 + INT8)
def test_every_target_computes_the_same(arch: str) -> None:
    model = randomised(arch)
    inputs = [pictures(3, 64), pictures(1, 96)]  # 96 leaves a 3x3 map in the last stage: timm resizes it bilinearly
    wanted = [model(x) for x in inputs]
    for target in TARGETS:
        fast, _ = rewrite(model, target)
        for x, y in zip(inputs, wanted, strict=True):
            error = relative_error(fast(x), y)
            assert error <= FP32_EXACT, f"{target} at {tuple(x.shape)}: {error:.1e}"


@pytest.mark.parametrize("arch", ["mobilevit_xxs", "mobilevitv2_050", "mobilevit_xxs_int8"])
@pytest.mark.parametrize("size", [128, 160, 256])
def test_deployment_sizes(arch: str, size: int) -> None:
    model, x = randomised(arch), pictures(1, size)
    fast, _ = rewrite(model, "onnx")
    assert relative_error(fast(x), model(x)) <= FP32_EXACT


@pytest.mark.parametrize("arch", ["mobilevit_xxs", "mobilevitv2_050"])
@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_each_rewrite_alone_is_exact(arch: str, target: Target) -> None:
    """Apply the rewrites one after another: a wrong one is named, not only found at the end."""
    holder, x = nn.Sequential(randomised(arch)), pictures(1, 64)
    wanted = holder(x)
    for step in REWRITES[target]:
        step.apply(holder)
        found = holder(x)
        assert relative_error(found, wanted) <= FP32_EXACT, step.name
        wanted = found


@pytest.mark.parametrize("target", TARGETS)
def test_the_given_model_is_not_changed(target: Target) -> None:
    model = TwoHeads("mobilevit_xxs").train()
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]
    fast, _ = rewrite(model, target)
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and not fast.training
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fast.parameters()}
    assert not shared


def test_report_names_what_was_done_and_why_not() -> None:
    _, v1 = rewrite(randomised("mobilevit_xxs"), "onnx")
    assert {"batch-norm", "tokens", "norm-affine", "rms-norm", "attention-node", "silu-node"} <= set(v1.applied)
    assert dict(v1.skipped).keys() == {"tokens-v2", "pooled-attention", "pool-before-keys"}
    _, v2 = rewrite(randomised("mobilevitv2_050"), "tflite")
    assert "pool-before-keys" in v2.applied
    assert "GroupNorm" in dict(v2.skipped)["rms-norm"], "the mean of a token is seen by v2's norm"


def test_a_backbone_inside_another_net_is_found() -> None:
    model, x = TwoHeads("mobilevit_xxs"), pictures(2, 64)
    fast, report = rewrite(model, "onnx")
    assert "tokens" in report.applied
    assert not any(isinstance(module, MobileVitBlock) for module in fast.modules())
    for found, wanted in zip(fast(x), model.eval()(x), strict=True):
        assert relative_error(found, wanted) <= FP32_EXACT


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3_small_050", "tf_mobilenetv3_small_minimal_100"])
def test_other_nets_get_the_generic_rewrites_only(arch: str) -> None:
    model, x = randomised(arch), pictures(1, 64)
    for target in TARGETS:
        fast, report = rewrite(model, target)
        assert set(report.applied) <= {"batch-norm", "silu-node"}
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
        assert relative_error(fast(x), model(x)) <= FP32_EXACT


class TwoReaders(nn.Module):
    """A convolution that is read before its norm too: folding would change the other reader."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = y + self.norm(y)
        return z


class UsedTwice(nn.Module):
    """A convolution with two norms: each would need its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.second(self.conv(self.first(self.conv(x))))
        return z


class Undecided(nn.Module):
    """Control flow that depends on the data: the order of calls cannot be proven."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return self.norm(y) if y.mean() > 0 else y


@pytest.mark.parametrize("net", [TwoReaders, UsedTwice, Undecided])
def test_unproven_norms_are_left(net: type[nn.Module]) -> None:
    model = net().eval()
    assert fold_batch_norms(model) == 0


def test_batch_norm_without_statistics_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert fold_batch_norms(model) == 0


def test_a_block_of_another_form_is_left_and_said() -> None:
    model = randomised("mobilevit_xxs")
    for block in model.modules():
        if isinstance(block, MobileVitBlock):
            block.transformer[0].ls1 = nn.Hardtanh()  # not a form that the algebra covers
    fast, report = rewrite(model, "tflite")
    assert any(isinstance(module, MobileVitBlock) for module in fast.modules())
    assert "tokens" in dict(report.skipped)
    x = pictures(1, 64)
    assert relative_error(fast(x), model(x)) <= FP32_EXACT


def test_a_block_may_be_the_whole_net() -> None:
    block = next(m for m in randomised("mobilevitv2_050").modules() if isinstance(m, MobileVitV2Block))
    x = torch.randn(2, block.conv_kxk.in_channels, 8, 8)
    fast, report = rewrite(block, "tflite")
    assert "tokens-v2" in report.applied
    assert relative_error(fast(x), block(x)) <= FP32_EXACT


@pytest.mark.parametrize("patch", [(2, 2), (2, 4), (1, 3)])
def test_unfold_is_timms_permutation(patch: tuple[int, int]) -> None:
    batch, channels, height, width = 2, 5, 4, 12
    (ph, pw), groups = patch, height * width // (patch[0] * patch[1])
    x = torch.randn(batch, channels, height, width)
    # timm.models.mobilevit.MobileVitBlock.forward, "Unfold"
    t = x.reshape(batch * channels * height // ph, ph, width // pw, pw).transpose(1, 2)
    t = t.reshape(batch, channels, groups, ph * pw).transpose(1, 3).reshape(-1, channels)
    tokens = to_patches(to_rows(x), batch, (height, width), patch)
    assert torch.equal(tokens, t)
    assert torch.equal(to_map(tokens, batch, (height, width), patch), x)


def test_rewritten_stream_has_no_mean() -> None:
    """The premise of LayerNorm → RMSNorm: centred writers keep every token's mean over channels at zero."""
    fast, _ = rewrite(randomised("mobilevit_xxs"), "tflite")
    means = []
    for module in fast.modules():
        if type(module).__name__ == "RMSNorm":
            module.register_forward_pre_hook(lambda _, args: means.append(args[0].mean(-1).abs().max().item()))
    fast(pictures(1, 64))
    assert len(means) == 21 and max(means) < FP32_EXACT


def test_tokens_need_folded_norms() -> None:
    assert move_to_tokens(nn.Sequential(randomised("mobilevit_xxs"))) == 0

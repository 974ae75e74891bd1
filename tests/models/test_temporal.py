"""Clip students: attention pooling against a naive formula, the order of frames, the count of weights, freezing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import LoadError, UsageError
from edgekit.models.checkpoint import load_student, save_student
from edgekit.models.complexity import count_parameters, measure_complexity
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student
from edgekit.models.temporal import ClipHead, TemporalAttentionPool, attention_heads
from edgekit.preprocess import Preprocess

CLASSES = tuple(f"class {number}" for number in range(15))


def clip_student(*, frames: int = 4, positions: bool = False, embed_dim: int = 32) -> Student:
    torch.manual_seed(0)
    return Student(StudentSpec("mobilevit_xxs", embed_dim, CLASSES, Preprocess(64, 64), frames, positions)).eval()


def lively_pool(*, positions: bool = False) -> TemporalAttentionPool:
    torch.manual_seed(0)
    pool = TemporalAttentionPool(128, 5, positions=positions)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return pool.double()


def naive(pool: TemporalAttentionPool, frames: Tensor) -> Tensor:
    """Attend with loops over samples, heads and frames."""
    width, heads = frames.shape[2], pool.heads
    size = width // heads
    query = pool.to_query.weight @ pool.query + pool.to_query.bias
    rows = []
    for sample in frames:
        seen = [pool.norm_frames(frame) for frame in sample]
        keys = [pool.to_key.weight @ x + pool.to_key.bias for x in seen]
        values = [pool.to_value.weight @ x + pool.to_value.bias for x in seen]
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = [math.exp(float(query[part] @ key[part]) / math.sqrt(size)) for key in keys]
            mixed.append(sum(s / sum(scores) * value[part] for s, value in zip(scores, values, strict=True)))
        rows.append(pool.norm_clip(pool.query + pool.out.weight @ torch.cat(mixed) + pool.out.bias))
    return torch.stack(rows)


@torch.no_grad()
def test_pooling_is_the_naive_formula() -> None:
    pool, frames = lively_pool(), torch.randn(3, 5, 128, dtype=torch.float64)
    assert pool.heads == 2
    torch.testing.assert_close(pool(frames), naive(pool, frames), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_pooling_is_that_of_torch() -> None:
    pool, frames = lively_pool(), torch.randn(3, 5, 128, dtype=torch.float64)
    reference = nn.MultiheadAttention(128, pool.heads, batch_first=True, dtype=torch.float64)
    layers = (pool.to_query, pool.to_key, pool.to_value)
    reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
    reference.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
    reference.out_proj.weight.copy_(pool.out.weight)
    reference.out_proj.bias.copy_(pool.out.bias)
    seen = pool.norm_frames(frames)
    mixed, _ = reference(pool.query.expand(3, 1, -1), seen, seen)
    torch.testing.assert_close(pool(frames), pool.norm_clip(pool.query + mixed[:, 0]), rtol=1e-10, atol=1e-10)
    assert count_parameters(reference) == 4 * (128 * 128 + 128)


@torch.no_grad()
def test_order_of_frames_counts_with_positions_only() -> None:
    frames = torch.randn(2, 5, 128, dtype=torch.float64)
    shuffled = frames[:, [3, 0, 4, 1, 2]]
    without, with_positions = lively_pool(), lively_pool(positions=True)
    torch.testing.assert_close(without(frames), without(shuffled), rtol=1e-12, atol=1e-12)
    assert (with_positions(frames) - with_positions(shuffled)).abs().max() > 0.01


@torch.no_grad()
def test_positions_start_without_effect() -> None:
    pool = TemporalAttentionPool(64, 3, positions=True)
    frames = torch.randn(2, 3, 64)
    before = pool(frames)
    pool.positions = None
    torch.testing.assert_close(pool(frames), before)


@torch.no_grad()
@pytest.mark.parametrize("positions", [False, True])
def test_pooling_starts_as_the_mean(positions: bool) -> None:
    pool, frames = lively_pool(positions=positions), 3 * torch.randn(3, 5, 128, dtype=torch.float64)
    before = pool(frames)
    pool.start_as_mean()
    mean = F.layer_norm(F.layer_norm(frames, (128,)).mean(1), (128,))
    torch.testing.assert_close(pool(frames), mean, rtol=1e-10, atol=1e-10)
    assert (before - mean).abs().max() > 0.1


def test_a_pooling_that_starts_as_the_mean_learns() -> None:
    pool = TemporalAttentionPool(128, 5)
    pool.start_as_mean()
    pool(torch.randn(3, 5, 128))[:, :7].sum().backward()  # type: ignore[no-untyped-call]
    still = {name for name, weight in pool.named_parameters() if weight.grad is None or not weight.grad.any()}
    # with a query of zero, its projection and the keys stand still for one step: what moves the query moves them next
    assert still <= {"to_query.weight", "to_key.weight", "to_key.bias"}


@torch.no_grad()
@pytest.mark.parametrize("classes", [2, 15, 128])
def test_a_head_with_a_hidden_layer_starts_as_a_linear_one(classes: int) -> None:
    torch.manual_seed(0)
    head, weight, bias = (
        ClipHead(512, classes).double(),
        torch.randn(classes, 512).double(),
        torch.randn(classes).double(),
    )
    rows = torch.randn(4, 512).double()
    head.start_as_linear(weight, bias)
    torch.testing.assert_close(head(rows), rows @ weight.T + bias, rtol=1e-8, atol=1e-8)
    assert count_parameters(head) == 512 * 256 + 256 + 256 * classes + classes


@torch.no_grad()
def test_a_head_passes_on_the_largest_directions_of_many_classes() -> None:
    torch.manual_seed(0)
    head = ClipHead(512, 400).double()
    left, right = torch.linalg.qr(torch.randn(400, 400))[0], torch.linalg.qr(torch.randn(512, 400))[0].T
    size = 0.9 ** torch.arange(400.0)
    weight = ((left * size) @ right).double()
    head.start_as_linear(weight, torch.zeros(400).double())
    rows = torch.randn(4, 512).double()
    assert (head(rows) - rows @ weight.T).norm() < 1e-4 * (rows @ weight.T).norm()


def test_gradients() -> None:
    pool = lively_pool()
    frames = torch.randn(2, 5, 128, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pool(x)[:, :4], (frames,), fast_mode=True)


@pytest.mark.parametrize(("width", "heads"), [(512, 8), (128, 2), (32, 1), (96, 1), (320, 5), (1000, 8), (600, 8)])
def test_heads_divide_the_width(width: int, heads: int) -> None:
    assert attention_heads(width) == heads and width % heads == 0


def test_the_weights_of_the_origin() -> None:
    student = Student(StudentSpec("mobilevit_xxs", 512, CLASSES, Preprocess(64, 64), frames=8))
    assert student.pool is not None
    parts = {
        "backbone": count_parameters(student.backbone),
        "projection": count_parameters(student.projection),
        "attention": sum(map(count_parameters, (student.pool.to_query, student.pool.to_key, student.pool.to_value)))
        + count_parameters(student.pool.out),
        "norms and query": count_parameters(student.pool.norm_frames)
        + count_parameters(student.pool.norm_clip)
        + student.pool.query.numel(),
        "head": count_parameters(student.classifier),
    }
    assert parts == {
        "backbone": 951_024,
        "projection": 164_352,
        "attention": 1_050_624,
        "norms and query": 2_560,
        "head": 131_328 + 3_855,
    }
    assert count_parameters(student) == 2_303_743


@torch.no_grad()
def test_clips_are_pooled_frame_by_frame() -> None:
    student, clips = clip_student(), torch.rand(2, 4, 3, 64, 64)
    output = student(clips)
    assert output.embedding.shape == (2, 32) and output.logits.shape == (2, 15)
    features = torch.stack([student.projection(student.backbone(clip - student.mean)) for clip in clips])
    assert student.pool is not None
    torch.testing.assert_close(output.embedding, student.pool(features), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student.from_frames(clips.flatten(0, 1)).logits, output.logits)


def test_checkpoint_keeps_frames_and_positions(tmp_path: Path) -> None:
    student = clip_student(positions=True)
    save_student(tmp_path / "student.safetensors", student)
    loaded = load_student(tmp_path)
    assert loaded.spec == student.spec and loaded.pool is not None and loaded.pool.positions is not None
    clips = torch.rand(1, 4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(clips).logits, student(clips).logits)


def test_complexity_is_of_a_whole_clip() -> None:
    one = Student(StudentSpec("mobilevit_xxs", 32, CLASSES, Preprocess(64, 64))).eval()
    still, clip = measure_complexity(one, 64).macs, measure_complexity(clip_student(), 64, 4).macs
    assert 4 * still < clip < 4.1 * still


def test_still_students_have_no_new_weights() -> None:
    student = Student(StudentSpec("mobilevit_xxs", 32, CLASSES, Preprocess(64, 64)))
    assert {name.split(".")[0] for name in student.state_dict()} == {"backbone", "projection", "classifier"}
    assert isinstance(student.classifier, nn.Linear)


def test_spec_refuses_positions_of_a_picture() -> None:
    values = StudentSpec("mobilevit_xxs", 32, CLASSES, Preprocess(64, 64)).to_dict()
    with pytest.raises(LoadError, match="positions"):
        StudentSpec.from_dict({**values, "positions": True})


def test_frozen_stages_keep_weights_and_statistics() -> None:
    student = clip_student().train()
    count = student.freeze(2)
    assert count == sum(p.numel() for p in student.parameters() if not p.requires_grad) > 0
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=0.1)
    F.cross_entropy(student.train()(torch.rand(2, 4, 3, 64, 64)).logits, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = student.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("backbone.stem", "backbone.stages.0")) for name in changed)
    assert any(name.startswith("backbone.stages.1") and "running_mean" in name for name in changed)


def test_a_frozen_backbone_stays_and_the_rest_learns() -> None:
    student = clip_student().train()
    student.freeze_backbone()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    F.cross_entropy(student.train()(torch.rand(2, 4, 3, 64, 64)).logits, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    after = student.state_dict()  # batch norms move in the forward pass
    assert all(torch.equal(after[name], before[name]) for name in before)
    learning = {name.partition(".")[0] for name, weight in student.named_parameters() if weight.grad is not None}
    assert learning == {"projection", "pool", "classifier"}


@pytest.mark.parametrize("arch", ["resnet18", "vit_tiny_patch16_224", "mobilevitv2_050"])
def test_freezing_other_backbones_freezes_a_part(arch: str) -> None:
    student = Student(StudentSpec(arch, 16, CLASSES, Preprocess(224 if "224" in arch else 64, 224)))
    count = student.freeze(2)
    assert 0 < count < count_parameters(student.backbone) / 2
    student.train()
    assert student.backbone.training


def test_freezing_more_than_there_is() -> None:
    with pytest.raises(UsageError, match="6 stages with its end; give 5 or fewer"):
        clip_student().freeze(6)


def test_dropout_hides_the_embedding_from_the_classifier_in_training_only() -> None:
    student = clip_student()
    clips = torch.rand(2, 4, 3, 64, 64)
    with torch.no_grad():
        plain = student(clips)
        student.dropout = 0.5
        torch.testing.assert_close(student(clips).logits, plain.logits)
        for module in student.modules():
            module.training = module is student  # dropout alone, batch norms as before
        dropped = student(clips)
    torch.testing.assert_close(dropped.embedding, plain.embedding)
    assert (dropped.logits - plain.logits).abs().max() > 1e-4

"""Teachers: a real open_clip model from a file, an ONNX model, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import EdgekitError, LoadError, UsageError
from edgekit.models.prompts import class_words
from edgekit.models.teacher import OnnxTeacher, OpenClipTeacher, Teacher, load_teacher, weights_hash
from tests.teachers_for_tests import TINY_ARCH, ColourNet, onnx_teacher, register_tiny_clip, tiny_clip_weights
from tests.tolerances import FP32_EXACT, FP32_EXPORT

CPU = torch.device("cpu")
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module")
def clip_file(folder: Path) -> Path:
    register_tiny_clip(folder / "archs")
    return tiny_clip_weights(folder / "clip.pt", seed=3)


@pytest.fixture(scope="module")
def clip(clip_file: Path) -> Teacher:
    return load_teacher(f"{TINY_ARCH}:{clip_file}", CPU)


@pytest.fixture(scope="module")
def onnx_file(folder: Path) -> Path:
    return onnx_teacher(folder / "teacher.onnx")


def refusal(kind: type[EdgekitError], name: str) -> str:
    with pytest.raises(kind) as caught:
        load_teacher(name, CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert "--teacher" in message
    return message


def test_open_clip_weights_of_a_file_are_the_ones_that_embed(clip: Teacher, clip_file: Path) -> None:
    import open_clip

    model = open_clip.create_model(TINY_ARCH, pretrained=str(clip_file)).eval()
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = F.normalize(model.encode_image((IMAGES - mean) / std), dim=1)
    assert torch.allclose(clip(IMAGES), expected, atol=FP32_EXACT)  # normalised inside, by CLIP's own mean and std
    assert (clip.embed_dim, clip.preprocess.image_size, clip.preprocess.resize) == (16, 32, 32)
    assert clip.preprocess.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert clip.parameters == sum(p.numel() for p in model.parameters())


def test_class_scores_come_from_the_prompts_of_all_templates(clip: Teacher) -> None:
    assert isinstance(clip, OpenClipTeacher)
    classes, templates = ("using_laptop", "dog"), ("a {}.", "a drawing of a {}.")
    weights = clip.class_scores(classes, templates)
    assert weights is not None
    for name, row in zip(classes, weights, strict=True):
        with torch.no_grad():
            tokens = clip.tokenizer([template.replace("{}", class_words(name)) for template in templates])
            texts = F.normalize(clip.model.encode_text(tokens), dim=1)
            expected = clip.model.logit_scale.exp() * F.normalize(texts.mean(0), dim=0)
        assert torch.allclose(row, expected, rtol=1e-4, atol=1e-4)
    other = clip.class_scores(classes, templates[:1])
    assert other is not None
    assert not torch.allclose(weights, other, atol=1e-2)


def test_a_fingerprint_is_of_the_weights_not_of_the_name(clip: Teacher, folder: Path, clip_file: Path) -> None:
    copy = folder / "copy.pt"
    copy.write_bytes(clip_file.read_bytes())
    assert load_teacher(f"{TINY_ARCH}:{copy}", CPU).fingerprint() == clip.fingerprint()
    other = load_teacher(f"{TINY_ARCH}:{tiny_clip_weights(folder / 'other.pt', seed=4)}", CPU)
    assert other.fingerprint() != clip.fingerprint()
    assert load_teacher(f"{TINY_ARCH}:random", CPU).fingerprint() != clip.fingerprint()


def test_a_tag_has_the_activation_that_its_weights_were_trained_with(
    clip: Teacher, clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip.pretrained import _PRETRAINED
    from open_clip.transformer import QuickGELU

    # the same file behind two tags, fetched as open_clip fetches tags: one says QuickGELU, as OpenAI's do
    monkeypatch.setenv("HOME", str(tmp_path))
    url = clip_file.as_uri()
    tags = {"plain": {"url": url}, "quick": {"url": url, "quick_gelu": True}}
    monkeypatch.setitem(_PRETRAINED, TINY_ARCH, tags)
    plain, quick = (load_teacher(f"{TINY_ARCH}:{tag}", CPU) for tag in tags)
    assert isinstance(plain, OpenClipTeacher) and isinstance(quick, OpenClipTeacher)
    assert [any(isinstance(m, QuickGELU) for m in one.model.modules()) for one in (plain, quick)] == [False, True]
    assert torch.equal(plain(IMAGES), clip(IMAGES))
    assert not torch.allclose(quick(IMAGES), plain(IMAGES), atol=1e-4)
    # so a store of the one must not be taken for a store of the other
    assert plain.fingerprint() == clip.fingerprint() != quick.fingerprint()


def test_random_weights_are_the_same_each_time(clip: Teacher) -> None:
    first, second = (load_teacher(f"{TINY_ARCH}:random", CPU) for _ in range(2))
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_a_teacher_is_frozen(clip: Teacher) -> None:
    assert isinstance(clip, OpenClipTeacher)
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert not clip(IMAGES.clone().requires_grad_()).requires_grad


def test_weights_hash_sees_names_shapes_and_values() -> None:
    net = nn.Linear(2, 3)
    before = weights_hash(net)
    with torch.no_grad():
        net.bias[1] += 1e-6
    assert weights_hash(net) != before
    assert weights_hash(nn.Sequential(net)) != weights_hash(net)


def test_an_onnx_teacher_embeds_as_the_model_it_came_from(onnx_file: Path) -> None:
    teacher = load_teacher(str(onnx_file), CPU, threads=1)
    with torch.no_grad():
        expected = ColourNet()(IMAGES)
    assert torch.allclose(teacher(IMAGES), expected, atol=FP32_EXPORT)
    assert torch.allclose(teacher(IMAGES).norm(dim=1), torch.ones(5), atol=FP32_EXACT)
    assert (teacher.embed_dim, teacher.preprocess.image_size) == (12, 32)
    assert teacher.preprocess.mean == (0.0, 0.0, 0.0)  # the model normalises by itself
    assert teacher.class_scores(["a"], ["{}"]) is None
    assert teacher.fingerprint() == load_teacher(str(onnx_file), CPU).fingerprint()


def test_an_onnx_teacher_with_a_fixed_batch_takes_any_number_of_pictures(folder: Path, onnx_file: Path) -> None:
    fixed = OnnxTeacher(onnx_teacher(folder / "fixed.onnx", batch=4), threads=1)
    free = OnnxTeacher(onnx_file, threads=1)
    for count in (1, 4, 5):
        assert torch.allclose(fixed(IMAGES[:count]), free(IMAGES[:count]), atol=FP32_EXACT)


class _Rows(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(3)


class _Integers(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def test_onnx_models_that_embed_nothing_are_refused(folder: Path) -> None:
    message = refusal(LoadError, str(onnx_teacher(folder / "rows.onnx", net=_Rows())))
    assert "(1, 3, 32)" in message
    integers = folder / "integers.onnx"
    program = torch.onnx.export(
        _Integers().eval(), (torch.zeros(2, 3, 8, 8, dtype=torch.uint8),), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(str(integers), external_data=False)
    assert "tensor(uint8)" in refusal(LoadError, str(integers))
    (folder / "broken.onnx").write_bytes(b"\x08\x07garbage")
    assert "broken.onnx is not an ONNX model" in refusal(LoadError, str(folder / "broken.onnx"))
    assert "is not there" in refusal(LoadError, str(folder / "missing.onnx"))


def test_unknown_architectures_and_tags_get_a_near_name() -> None:
    assert "did you mean 'ViT-B-32'?" in refusal(UsageError, "ViT-B-31x:openai")
    assert "did you mean 'openai'?" in refusal(UsageError, "ViT-B-32:opnai")
    assert "names no weights" in refusal(UsageError, "ViT-B-32")
    assert len(refusal(UsageError, "quite-something-else:openai")) < 1000  # open_clip knows hundreds


def test_weights_of_another_architecture_or_no_weights_are_refused(folder: Path, clip_file: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, folder / "linear.pt")
    (folder / "garbage.pt").write_bytes(np.random.default_rng(0).bytes(500))
    for name in ("linear.pt", "garbage.pt"):
        assert "could not be read" in refusal(LoadError, f"{TINY_ARCH}:{folder / name}")


@pytest.mark.slow
def test_the_real_vit_b_32_runs_with_random_weights() -> None:
    teacher = load_teacher("ViT-B-32:random", CPU)
    rows = teacher(torch.rand(2, 3, 224, 224))
    assert rows.shape == (2, teacher.embed_dim) == (2, 512)
    assert torch.allclose(rows.norm(dim=1), torch.ones(2), atol=FP32_EXACT)
    scores = teacher.class_scores(["cat", "dog"], ["a photo of a {}."])
    assert scores is not None
    assert scores.shape == (2, 512)
    assert teacher.parameters == 151_277_313

"""A clip student starts as the mean of a still student's frames, with class scores that are known already."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.store.probe import ClassHead
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.video.start import earlier_phase, start_from_scores, start_from_still, takes_stills
from edgekit.errors import UsageError
from edgekit.models.checkpoint import save_student
from edgekit.models.spec import StudentSpec
from edgekit.models.student import Student
from edgekit.preprocess import Preprocess

CLASSES = ("cold", "warm", "wet")
WIDTH, FRAMES = 16, 4


def student(frames: int = 1, classes: tuple[str, ...] = CLASSES, *, width: int = WIDTH, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student(StudentSpec("test_byobnet", width, classes, Preprocess(32, 32), frames)).eval()


def clips(count: int = 2, seed: int = 3) -> Tensor:
    return torch.rand(count, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def normed(rows: Tensor) -> Tensor:
    return F.layer_norm(rows, rows.shape[-1:])


@torch.no_grad()
def test_the_clip_is_the_mean_of_its_frames() -> None:
    still, clip = student(seed=1), student(FRAMES, ("left", "right"))
    assert takes_stills(clip, still) and not takes_stills(clip, clip) and not takes_stills(still, still)
    shown = clips()
    assert not start_from_still(clip, still, shown, "run")  # other classes
    frames = torch.stack([still(each).embedding for each in shown])
    torch.testing.assert_close(clip(shown).embedding, normed(normed(frames).mean(1)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_same_classes_keep_their_scores() -> None:
    still, clip = student(seed=1), student(FRAMES)
    shown = clips()
    assert start_from_still(clip, still, shown, "run")
    embedding = still(shown.flatten(0, 1)).embedding
    length = embedding.norm(dim=1).mean()
    mean = normed(normed(embedding.view(2, FRAMES, WIDTH)).mean(1)) / math.sqrt(WIDTH)
    torch.testing.assert_close(clip(shown).logits, still.classifier(length * mean), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_teachers_scores_are_those_of_the_unit_embedding() -> None:
    clip = student(FRAMES)
    generator = torch.Generator().manual_seed(5)
    head = ClassHead(3 * torch.randn(3, WIDTH, generator=generator), torch.randn(3, generator=generator), "prompts")
    start_from_scores(clip, head)
    output = clip(clips())
    unit = output.embedding / math.sqrt(WIDTH)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2), rtol=1e-3, atol=0)
    torch.testing.assert_close(output.logits, head(unit), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("still", "said"),
    [
        (student(width=8), "embedding 8, now 16"),
        (Student(StudentSpec("resnet18", 16, CLASSES, Preprocess(32, 32))), "arch"),
    ],
)
def test_another_still_student(still: Student, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        start_from_still(student(FRAMES), still, clips(), "run")


def test_what_a_run_may_start_from(tmp_path: Path) -> None:
    still, clip = RunFolder(tmp_path / "still"), RunFolder(tmp_path / "clip")
    for run, net in ((still, student()), (clip, student(FRAMES))):
        run.create({}, {})
        save_student(run.path / "student.safetensors", net)
        run.append_metrics({"kind": "epoch", "epoch": 1, "val_acc": 0.5, "best": True})
    assert len(earlier_phase(still.path, 1, False).history) == 1
    assert earlier_phase(still.path, FRAMES, True).history == []  # accuracies of pictures are not those of clips
    assert len(earlier_phase(clip.path, 2 * FRAMES, False).history) == 1
    with pytest.raises(UsageError, match="is of clips of 4 frames"):
        earlier_phase(clip.path, 1, False)
    with pytest.raises(UsageError, match="was trained with no --positions"):
        earlier_phase(clip.path, FRAMES, True)

"""Training a CLIP on drawings, in the one loop: deterministic batches, honest evaluation, a teacher at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.captions import load_captions
from edgekit.compress.clip.evaluation import embed_texts, unpadded
from edgekit.compress.clip.task import CLIP_DEMO, ClipData, ClipRecipe, ClipTask, build_clip
from edgekit.compress.pictures.pixels import decode_eval, decode_train
from edgekit.compress.recipe import AugmentConfig
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.data import load_dataset
from edgekit.demo.drawings import write_drawings
from edgekit.models.clip import load_clip
from edgekit.models.teacher import load_teacher
from tests.tolerances import FP32_EXACT

CPU = torch.device("cpu")


def recipe(**changes: object) -> ClipRecipe:
    fit_config = CLIP_DEMO.fit.model_copy(update={"epochs": 2, "batch_size": 20})
    return CLIP_DEMO.model_copy(update={"image_size": 32, "text_width": 32, "fit": fit_config, **changes})


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "drawings"
    return write_drawings(folder, labelled=12, unlabelled=84, val=36, size=40, seed=0).folder


def make_task(folder: Path, settings: ClipRecipe) -> ClipTask:
    captioned = load_captions(folder / "captions.csv")
    dataset = load_dataset(folder)
    clip, tokenizer = build_clip(settings, captioned.texts())
    train = decode_train(captioned.samples, settings.image_size)
    val = decode_eval(dataset.val, clip.spec.preprocess)
    return ClipTask(clip, tokenizer, settings, ClipData(train, captioned.captions, val, dataset.classes))


def test_batches_are_a_function_of_seed_and_epoch(drawings: Path) -> None:
    one, other = make_task(drawings, recipe()), make_task(drawings, recipe())
    assert one.steps_per_epoch == 5
    first, again, next_epoch = (list(task.batches(epoch, CPU)) for task, epoch in ((one, 1), (other, 1), (one, 2)))
    assert sum(one.batch_length(batch) for batch in first) == 96
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.tokens, b.tokens)
    assert not torch.equal(first[0].images, next_epoch[0].images)
    assert 0 <= float(first[0].images.min()) < float(first[0].images.max()) <= 1


def test_a_caption_stays_with_its_picture(drawings: Path) -> None:
    task = make_task(drawings, recipe(augment=AugmentConfig()))
    expected = {
        (pixels.tobytes(), tuple(task.tokenizer.encode(captions[0])))
        for pixels, captions in zip(task.data.train.pixels, task.data.captions, strict=True)
    }
    seen = set()
    for batch in task.batches(1, CPU):
        pixels = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        for picture, tokens in zip(pixels, batch.tokens.numpy(), strict=True):
            seen.add((picture.tobytes(), tuple(tokens[1 : tokens.argmax()].tolist())))
    assert seen == expected


def test_each_caption_of_a_picture_gets_its_turn(drawings: Path) -> None:
    task = make_task(drawings, recipe())
    captions = tuple((f"first {at}", f"second {at}") for at in range(96))
    data = ClipData(task.data.train, captions, task.data.val, task.data.classes)
    task = ClipTask(task.clip, task.tokenizer, task.recipe, data)
    known = {tuple(task.tokenizer.encode(c)): c.split()[0] for pair in captions for c in pair}
    counts = {"first": 0, "second": 0}
    for epoch in (1, 2):
        for batch in task.batches(epoch, CPU):
            for tokens in batch.tokens.numpy():
                counts[known[tuple(tokens[1 : tokens.argmax()].tolist())]] += 1
    assert counts["first"] + counts["second"] == 192
    assert min(counts.values()) > 60


def test_the_zero_shot_accuracy_is_that_of_a_naive_loop(drawings: Path) -> None:
    task = make_task(drawings, recipe())
    clip = task.clip.eval()
    with torch.no_grad():
        accuracy = task.evaluate(clip, CPU)["zeroshot_acc"]
        rows = []
        for name in task.data.classes:
            prompts = [template.format(name.replace("_", " ")) for template in task.data.templates]
            mean = clip.encode_text(torch.from_numpy(task.tokenizer(prompts))).mean(0)
            rows.append(mean / mean.norm())
        correct = 0
        for sample, pixels in zip(task.data.val.samples, task.data.val.pixels, strict=True):
            image = clip.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)[0]
            correct += int(np.argmax([float(image @ row) for row in rows])) == sample.label
    assert accuracy == pytest.approx(correct / 36)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_the_one_loop_trains_it_into_a_teacher(drawings: Path, tmp_path: Path, loss: str) -> None:
    task = make_task(drawings, recipe(loss=loss))
    run = RunFolder(tmp_path / "run")
    run.create(task.recipe.model_dump(mode="json"), {})
    result = fit(task, task.recipe.fit, run)
    assert result.rows[1]["loss"] < result.rows[0]["loss"]
    clip, tokenizer = load_clip(run.path)
    assert clip.spec.loss == loss
    assert tokenizer.vocab_size == clip.spec.vocab_size
    teacher = load_teacher(str(run.path), CPU)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), clip.encode_image(images).detach())
    weights = teacher.class_scores(task.data.classes, task.data.templates)
    assert weights is not None
    torch.testing.assert_close(weights.norm(dim=1), clip.scale().detach().expand(12))


def test_padding_costs_nothing_and_changes_nothing(drawings: Path) -> None:
    task = make_task(drawings, recipe())
    texts = ["a star", "a purple star on the left of a green disc", "a dog"]
    tokens = task.tokenizer(texts)
    assert unpadded(tokens).shape[1] == int((tokens > 0).sum(1).max()) < tokens.shape[1]
    padded = task.clip.eval().encode_text(torch.from_numpy(tokens))
    torch.testing.assert_close(embed_texts(task.clip, task.tokenizer, texts, CPU), padded, atol=FP32_EXACT, rtol=0)


def test_characters_are_a_tokenizer_too(drawings: Path) -> None:
    task = make_task(drawings, recipe(tokenizer="characters", context_length=77))
    assert task.clip.spec.vocab_size == 36
    assert float(task.loss(task.clip, next(task.batches(1, CPU)))["loss"].detach()) > 0


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(123)
    before = torch.rand(1)
    torch.manual_seed(123)
    one, _ = build_clip(recipe(), ["a star"])
    assert torch.equal(torch.rand(1), before)  # the caller's random state is untouched
    other, _ = build_clip(recipe(), ["a star"])
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)

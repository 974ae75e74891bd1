"""A CLIP trained from captioned tar shards sees the pairs that a folder of the same files gives it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgekit.captions import load_captions
from edgekit.cli.main import run
from edgekit.compress.clip.batches import ClipBatch, StoredPairs, StreamedPairs
from edgekit.compress.clip.recipe import CLIP_DEMO, build_clip
from edgekit.compress.pictures.decoding import stored_size
from edgekit.compress.pictures.pixels import decode_train
from edgekit.demo.drawings import write_drawings
from edgekit.errors import DataError
from edgekit.models.clip import CLIP_FILE
from edgekit.shards import load_shards

CPU = torch.device("cpu")
RECIPE = CLIP_DEMO.model_copy(
    update={"image_size": 32, "text_width": 32, "fit": CLIP_DEMO.fit.model_copy(update={"batch_size": 16, "seed": 3})}
)
SMALL = ("--model", "clip-demo", "--image-size", "32", "--batch-size", "16", "--device", "cpu", "-q")
Pair = tuple[str, Path, tuple[str, ...]]


def write_tar(path: Path, pairs: Iterable[Pair]) -> None:
    """Write pictures and captions as img2dataset does."""
    with tarfile.open(path, "w") as tar:
        for number, (key, picture, captions) in enumerate(pairs):
            files = {picture.suffix: picture.read_bytes(), ".json": json.dumps({"key": key}).encode()}
            if captions:
                files[".txt"] = "\n".join(captions).encode()
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{number:05d}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    folder = write_drawings(
        tmp_path_factory.mktemp("c") / "d", labelled=12, unlabelled=60, val=12, size=40, seed=0
    ).folder
    captioned = load_captions(folder / "captions.csv")
    both = zip(captioned.samples, captioned.captions, strict=True)
    return [(s.key, s.path, (*captions, "a drawing of something")) for s, captions in both]


@pytest.fixture(scope="module")
def shards(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        write_tar(folder / f"{number:03d}.tar", pairs[12 + number : len(pairs) : 3])
    write_tar(folder / "val-000.tar", pairs[:12])
    return folder


def rows(batch: ClipBatch) -> set[tuple[bytes, tuple[int, ...]]]:
    """Return what a batch holds, whatever its order and its padding."""
    tokens = [tuple(token for token in row if token) for row in batch.tokens.tolist()]
    return {(image.numpy().tobytes(), ids) for image, ids in zip(batch.images, tokens, strict=True)}


def test_each_step_has_the_pairs_that_a_folder_gives_it(pairs: list[Pair], shards: Path) -> None:
    clip, tokenizer = build_clip(RECIPE, (caption for _, _, captions in pairs for caption in captions))
    contract = clip.spec.preprocess
    dataset = load_shards(shards / "*.tar", labels=False)
    assert (len(dataset.train), len(dataset.val), dataset.classes) == (len(pairs) - 12, 12, ())
    files = load_captions(pairs[0][1].parents[len(Path(pairs[0][0]).parts) - 1] / "captions.csv")
    kept = files.take({key for key, _, _ in pairs[12:]})
    captions = [(*texts, "a drawing of something") for texts in kept.captions]
    store = decode_train(kept.samples, stored_size(contract))
    one = StoredPairs(store, captions, tokenizer, RECIPE, contract)
    other = StreamedPairs(dataset, tokenizer, RECIPE, contract)
    assert one.steps_per_epoch == other.steps_per_epoch > 2
    seen = set[tuple[int, ...]]()
    for epoch in (1, 2):
        for a, b in zip(one.batches(epoch, CPU), other.batches(epoch, CPU), strict=True):
            assert rows(a) == rows(b)
            seen |= {ids for _, ids in rows(b)}
    from_the_third = next(other.batches(2, CPU, 2))
    assert torch.equal(from_the_third.images, list(other.batches(2, CPU))[2].images)
    plain = tuple(token for token in tokenizer(["a drawing of something"])[0].tolist() if token)
    assert plain in seen and len(seen) > 20, "each caption has its turn"


def test_a_clip_is_trained_from_shards_and_judged_on_them(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = f"{shards}/{{000..002}}.tar"
    train = ("train", "clip", "--data", pattern, *SMALL, "--epochs", "2")
    assert run([*train, "-o", str(tmp_path / "one")]) == 0
    facts = json.loads((tmp_path / "one" / "run.json").read_text(encoding="utf-8"))
    assert facts["data"]["shards"] == 3 and facts["data"]["val_captions"] == 24
    assert facts["data"]["labelled"] == 2 * facts["data"]["train"]
    assert 0 <= facts["summary"]["mean_r1"] <= 1
    assert run([*train, "-o", str(tmp_path / "one"), "--resume", "auto"]) == 0  # it has ended: nothing is trained
    capsys.readouterr()
    assert run(["eval", "retrieval", str(tmp_path / "one"), "--data", pattern, "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["source"].endswith("the 12 validation pictures of the shards")
    assert judged["image_to_text"]["recall"]["1"]["value"] == pytest.approx(facts["summary"]["text_r1"])
    assert judged["text_to_image"]["queries"] == 24
    assert run(["eval", "retrieval", str(tmp_path / "one"), "--data", pattern, "--all"]) == 2
    assert run([*train, "-o", str(tmp_path / "two")]) == 0
    one, two = (load_file(tmp_path / name / CLIP_FILE) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_shards_that_are_no_pairs_are_refused(
    pairs: list[Pair], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mute = tmp_path / "mute"
    mute.mkdir()
    write_tar(mute / "000.tar", [(key, path, ()) for key, path, _ in pairs[12:]])
    write_tar(mute / "val.tar", [(key, path, ()) for key, path, _ in pairs[:12]])
    some = tmp_path / "some"
    some.mkdir()
    write_tar(some / "000.tar", [(key, path, () if n < 3 else said) for n, (key, path, said) in enumerate(pairs[12:])])
    write_tar(some / "val.tar", pairs[:12])
    for given, more, said in (
        (f"{mute}/*.tar", (), "no picture in the shards has a caption"),
        (f"{some}/*.tar", (), "has no caption (.txt)"),
        (f"{shards}/*.tar", ("--val-fraction", "0.2"), "shards are split already"),
        (f"{shards}/*.tar", ("--pictures", str(shards)), "shards hold their pictures"),
        (f"{shards}/{{000..009}}.tar", (), "7 of 10 shards are not there"),
    ):
        assert run(["train", "clip", "--data", given, *SMALL, *more, "-o", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
    dataset = load_shards(some / "*.tar", labels=False)
    clip, tokenizer = build_clip(RECIPE, ["a star"])
    with pytest.raises(DataError, match="more than --max-broken"):
        list(StreamedPairs(dataset, tokenizer, RECIPE, clip.spec.preprocess).batches(1, CPU))
    tolerant = StreamedPairs(dataset, tokenizer, RECIPE, clip.spec.preprocess, max_broken=0.1)
    assert sum(len(batch.images) for batch in tolerant.batches(1, CPU)) == len(pairs) - 12 - 3

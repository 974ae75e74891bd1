"""Retrieval against a naive double loop, against ties, and on real CLIP embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.bench.retrieval import retrieval_scores
from edgekit.bench.significance import ScoreError

Float64 = NDArray[np.float64]
Owners = NDArray[np.int64]


def naive_ranks(queries: Float64, gallery: Float64, right: NDArray[np.bool_]) -> list[int]:
    """Rank each query's best right item, one comparison at a time; a wrong item of equal score comes first."""
    ranks = []
    for query, is_right in zip(queries, right, strict=True):
        scores = [float(query @ item / np.linalg.norm(query) / np.linalg.norm(item)) for item in gallery]
        best = max(score for score, good in zip(scores, is_right, strict=True) if good)
        ranks.append(1 + sum(score >= best for score, good in zip(scores, is_right, strict=True) if not good))
    return ranks


def gallery(seed: int, images: int, extra: int, dim: int) -> tuple[Float64, Float64, Owners]:
    """Return image and caption embeddings that belong together loosely; every image has at least one caption."""
    random = np.random.default_rng(seed)
    owner = random.permutation(np.concatenate([np.arange(images), random.integers(0, images, extra)]))
    pictures = random.standard_normal((images, dim))
    return pictures, pictures[owner] + random.standard_normal((len(owner), dim)), owner


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 15), extra=st.integers(0, 30), dim=st.integers(2, 8))
def test_recall_and_median_rank_are_those_of_a_double_loop(seed: int, images: int, extra: int, dim: int) -> None:
    pictures, captions, owner = gallery(seed, images, extra, dim)
    scores = retrieval_scores(pictures, captions, owner)
    right = np.arange(images)[:, None] == owner
    for direction, ranks in (
        (scores.image_to_text, naive_ranks(pictures, captions, right)),
        (scores.text_to_image, naive_ranks(captions, pictures, right.T)),
    ):
        assert direction.queries == len(ranks)
        assert direction.median_rank == np.median(ranks)
        assert set(direction.recall) == {k for k in (1, 5, 10) if k <= direction.gallery}
        for k, share in direction.recall.items():
            assert share.value == pytest.approx(np.mean([rank <= k for rank in ranks]))
            assert 0 <= share.low <= share.value <= share.high <= 1


def test_a_model_that_maps_everything_to_one_point_finds_nothing() -> None:
    owner = np.repeat(np.arange(20), 5)
    scores = retrieval_scores(np.ones((20, 8)), np.ones((100, 8)), owner)
    assert [share.value for share in scores.image_to_text.recall.values()] == [0, 0, 0]
    assert [share.value for share in scores.text_to_image.recall.values()] == [0, 0, 0]
    assert scores.image_to_text.median_rank == 96  # behind all 95 wrong captions
    assert scores.text_to_image.median_rank == 20


def test_a_perfect_model_finds_everything_and_scale_does_not_matter() -> None:
    owner = np.repeat(np.arange(12), 3)
    pictures = np.eye(12) * np.arange(1, 13)[:, None]
    scores = retrieval_scores(pictures, np.eye(12)[owner], owner)
    assert scores.image_to_text.recall[1].value == scores.text_to_image.recall[1].value == 1.0
    assert scores.image_to_text.median_rank == scores.text_to_image.median_rank == 1
    assert scores.protocol.startswith("12 images, 36 captions (3 per image)")


def test_two_images_with_the_same_caption_count_against_the_model() -> None:
    pictures = np.eye(3)
    captions = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])  # image 1 is described like image 0
    scores = retrieval_scores(pictures, captions, [0, 1, 2], ks=(1, 2))
    assert scores.image_to_text.recall[1].value == pytest.approx(1 / 3)
    assert scores.image_to_text.recall[2].value == pytest.approx(2 / 3)


def test_captions_of_one_image_are_not_independent_queries() -> None:
    """Where an image's captions all hit or all miss, 5 captions are worth one query."""
    owner = np.repeat(np.arange(60), 5)
    pictures = np.eye(60)
    captions = np.eye(60)[owner]
    captions[owner < 20] = np.eye(60)[(owner[owner < 20] + 1) % 20]  # a third of the images: all captions wrong
    clustered = retrieval_scores(pictures, captions, owner).text_to_image.recall[1]
    alone = retrieval_scores(pictures, captions[::5], owner[::5]).text_to_image.recall[1]
    assert clustered.value == pytest.approx(alone.value) == pytest.approx(2 / 3)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.02)


def test_many_queries_are_ranked_in_pieces() -> None:
    pictures, captions, owner = gallery(0, 40, 2000, 6)
    scores = retrieval_scores(pictures, captions, owner)
    ranks = naive_ranks(captions, pictures, owner[:, None] == np.arange(40))
    assert scores.text_to_image.median_rank == np.median(ranks)
    assert scores.text_to_image.recall[1].value == pytest.approx(np.mean([rank == 1 for rank in ranks]))


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ([0, 1], "3 captions need as many image numbers"),
        ([0.0, 1.0, 1.0], "image numbers"),
        ([0, 1, 2], "belongs to image 2, but there are 2 images"),
        ([0, 1, -1], "belongs to image -1"),
        ([0, 0, 0], "1 images have no caption, the first is image 1"),
    ],
)
def test_captions_that_do_not_fit_the_images_are_named(owner: list[float], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        retrieval_scores(np.eye(2), np.ones((3, 2)), owner)


def test_embeddings_that_cannot_be_ranked_are_named() -> None:
    with pytest.raises(ScoreError, match="differ in dimension: 2 and 3"):
        retrieval_scores(np.eye(2), np.ones((2, 3)), [0, 1])
    with pytest.raises(ScoreError, match="caption embedding: 1 of 2 rows hold NaN"):
        retrieval_scores(np.eye(2), np.array([[1, 0], [np.nan, 1]]), [0, 1])
    with pytest.raises(ScoreError, match="image embedding 1 is all zeros"):
        retrieval_scores(np.array([[1.0, 0], [0, 0]]), np.eye(2), [0, 1])


@pytest.mark.realdata
def test_real_clip_on_a_hundred_flickr_images(real_data: Path) -> None:
    """OpenAI's ViT-B/32 on 100 images and 500 captions; a gallery this small flatters every model."""
    folder = real_data / "flickr8k_1k" / "clip_vitb32_100x5"
    files = json.loads((folder / "files.json").read_text())
    owner = np.array([files.index(caption["file"]) for caption in json.loads((folder / "captions.json").read_text())])
    pictures, captions = np.load(folder / "image_embeddings.npy"), np.load(folder / "text_embeddings.npy")
    scores = retrieval_scores(pictures, captions, owner)
    to_text, to_image = scores.image_to_text.recall, scores.text_to_image.recall
    assert [to_text[k].value for k in (1, 5, 10)] == pytest.approx([0.93, 1.0, 1.0])
    assert [to_image[k].value for k in (1, 5, 10)] == pytest.approx([0.832, 0.99, 0.998])
    right = np.arange(100)[:, None] == owner
    naive = naive_ranks(pictures.astype(np.float64), captions.astype(np.float64), right)
    assert to_text[1].value == pytest.approx(np.mean([rank == 1 for rank in naive]))
    assert scores.captions_per_image == (5, 5)

"""Retrieval between images and captions: recall at K and median rank, in both directions, with the protocol stated.

Recalls are comparable only for the same gallery (CLIP_benchmark#48), so its size always travels with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit.bench.metrics import Float64, unit_rows
from edgekit.bench.significance import ScoreError
from edgekit.interval import Interval, wilson
from edgekit.ranking import best_ranks


@dataclass(frozen=True)
class Direction:
    """One direction of retrieval.

    Attributes:
        queries: number of queries.
        gallery: number of items that each query is ranked against.
        recall: K -> share of queries with a right item among the first K, with interval.
        median_rank: median over queries of the rank of the best right item; 1 is best.
    """

    queries: int
    gallery: int
    recall: Mapping[int, Interval]
    median_rank: float


@dataclass(frozen=True)
class RetrievalScores:
    """Both directions, and the protocol.

    Attributes:
        image_to_text: an image finds any of its captions.
        text_to_image: a caption finds its image.
        images: images in the gallery.
        captions: captions in the gallery.
        captions_per_image: fewest and most captions of one image.
    """

    image_to_text: Direction
    text_to_image: Direction
    images: int
    captions: int
    captions_per_image: tuple[int, int]

    @property
    def protocol(self) -> str:
        """Return the sentence that must stand beside these numbers."""
        fewest, most = self.captions_per_image
        each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        return (
            f"{self.images} images, {self.captions} captions ({each} per image); every image is ranked against all "
            "captions (a hit is any of its own) and every caption against all images; ties count against the model"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping, the protocol in it."""
        directions = {"image_to_text": self.image_to_text, "text_to_image": self.text_to_image}
        return {
            "protocol": self.protocol,
            "images": self.images,
            "captions": self.captions,
            "captions_per_image": list(self.captions_per_image),
            **{name: asdict(direction) for name, direction in directions.items()},
        }


def retrieval_scores(
    images: ArrayLike, captions: ArrayLike, image_of_caption: ArrayLike, ks: Sequence[int] = (1, 5, 10)
) -> RetrievalScores:
    """Rank by cosine and count.

    Ties count against the model (`edgekit.ranking`).

    Args:
        images: (N, D) image embeddings; need not be unit rows.
        captions: (M, D) caption embeddings.
        image_of_caption: (M,) integers, the row of `images` that each caption describes; every image needs one.
        ks: the K of R@K; those larger than a gallery are left out for that gallery.

    Raises:
        ScoreError: shapes do not fit, a caption's image is not there, an image has no caption, or values not finite.
    """
    picture_rows, text_rows = unit_rows(images, "image embedding"), unit_rows(captions, "caption embedding")
    owner = _check_owner(image_of_caption, picture_rows, text_rows)
    per_image = np.bincount(owner, minlength=len(picture_rows))
    to_text = best_ranks(picture_rows, text_rows, np.arange(len(picture_rows)), owner)
    to_image = best_ranks(text_rows, picture_rows, owner, np.arange(len(picture_rows)))
    return RetrievalScores(
        image_to_text=_direction(to_text, len(text_rows), ks, np.arange(len(picture_rows))),
        text_to_image=_direction(to_image, len(picture_rows), ks, owner),
        images=len(picture_rows),
        captions=len(text_rows),
        captions_per_image=(int(per_image.min()), int(per_image.max())),
    )


def _direction(ranks: NDArray[np.int64], gallery: int, ks: Sequence[int], image: NDArray[np.int64]) -> Direction:
    recall = {k: _clustered_share(ranks <= k, image) for k in ks if k <= gallery}
    return Direction(len(ranks), gallery, recall, float(np.median(ranks)))


def _clustered_share(hits: NDArray[np.bool_], image: NDArray[np.int64]) -> Interval:
    """Return the share of hits with Wilson's interval at the effective number of queries.

    The captions of one image succeed and fail together, so 5 captions are worth fewer than 5 independent queries.
    The effective number is p(1-p) over the variance of p between images (Korn & Graubard, 1998, Surv Methodol 24),
    kept between the number of images and that of queries.
    """
    queries, images = len(hits), len(np.unique(image))
    share = float(hits.mean())
    if images == queries:
        return wilson(int(hits.sum()), queries)
    if images == 1:  # no variance between images to learn from
        return wilson(share, 1)
    residual = np.bincount(image, weights=hits - share)
    variance = images / (images - 1) * float(np.sum(residual**2)) / queries**2
    effective = share * (1 - share) / variance if variance > 0 else images
    effective = min(max(effective, images), queries)
    return wilson(share * effective, effective)


def _check_owner(image_of_caption: ArrayLike, images: Float64, captions: Float64) -> NDArray[np.int64]:
    owner = np.asarray(image_of_caption)
    if images.shape[1] != captions.shape[1]:
        raise ScoreError(f"image and caption embeddings differ in dimension: {images.shape[1]} and {captions.shape[1]}")
    if owner.shape != (len(captions),) or not np.issubdtype(owner.dtype, np.integer):
        raise ScoreError(f"{len(captions)} captions need as many image numbers, got {owner.dtype} {owner.shape}")
    outside = owner[(owner < 0) | (owner >= len(images))]
    if len(outside):
        raise ScoreError(f"a caption belongs to image {outside[0]}, but there are {len(images)} images")
    without = np.setdiff1d(np.arange(len(images)), owner)
    if len(without):
        raise ScoreError(f"{len(without)} images have no caption, the first is image {without[0]}")
    return owner.astype(np.int64)

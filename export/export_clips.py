"""Which clips set the INT8 ranges of a clip student's export, and which ones its files are compared on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from edgekit.clips import load_clips, read_clip
from edgekit.data import ImageDataset, Sample, content_hashes
from edgekit.export.calibration.statistics import check_no_overlap
from edgekit.export.export_pictures import ExportPictures, spread
from edgekit.export.golden import MAX_RAW_BYTES, RAW, Golden, reduced
from edgekit.export.session import FloatArray, Session, run_batched
from edgekit.images import rgb_of
from edgekit.preprocess import Preprocess, fit_pixels, to_input

GOLDEN_CLIPS = 4


@dataclass(frozen=True)
class ExportClips(ExportPictures):
    """Calibration clips from the training split, comparison clips from the validation split, frame by frame.

    `calibration` and `comparison` hold the frames (N·F, 3, S, S), one clip after the other.

    Attributes:
        frames: F.
    """

    frames: int = 1

    @classmethod
    def choose_clips(
        cls, dataset: ImageDataset, contract: Preprocess, frames: int, counts: tuple[int, int], seed: int
    ) -> ExportClips:
        """Choose and prepare clips; `counts` = (calibration, comparison) are in frames, of at least 8 clips each.

        Raises:
            DataError: a clip is in both splits, by content.
        """
        wanted = [max(8, count // frames) for count in counts]
        calibration, comparison = spread(dataset.train, wanted[0], seed), spread(dataset.val, wanted[1], seed)
        calibration_hashes, comparison_hashes = content_hashes(calibration), content_hashes(comparison)
        check_no_overlap(calibration_hashes, comparison_hashes)
        return cls(
            frames_of(calibration, frames, contract),
            frames_of(comparison, frames, contract),
            calibration_hashes,
            comparison_hashes,
            tuple(sample.path for sample in comparison),
            contract,
            frames,
        )

    def golden(self, reference: Session) -> Golden:
        """Return the first clips with the outputs of `reference`; the first frames of the first clip travel raw."""
        clips = min(GOLDEN_CLIPS, len(self.comparison_paths))
        pixels = self._pixels(range(clips * self.frames))
        raw = [_file(frame, self.contract) for frame in read_clip(self.comparison_paths[0], self.frames)[:RAW]]
        for number, file in enumerate(raw):
            pixels[number] = fit_pixels(rgb_of(file, f"golden frame {number}"), self.contract)
        return Golden(pixels, run_batched(reference, to_input(pixels)), tuple(raw))


def frames_of(samples: Sequence[Sample], frames: int, contract: Preprocess) -> FloatArray:
    """Return the frames (N·F, 3, S, S) float32 in [0, 1] of clips, one clip after the other.

    Raises:
        ClipError: one cannot be read.
    """
    pixels = load_clips([sample.path for sample in samples], frames, contract)
    return to_input(pixels.reshape(-1, *pixels.shape[2:]))


def _file(frame: Image.Image, contract: Preprocess) -> bytes:
    """Return a whole frame as a PNG file, which loses nothing, or a smaller one: a verifier needs no video decoder."""
    buffer = io.BytesIO()
    frame.save(buffer, format="PNG")
    whole = buffer.getvalue()
    return whole if len(whole) <= MAX_RAW_BYTES else reduced(frame, contract)

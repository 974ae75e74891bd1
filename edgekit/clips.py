"""Read any short video, or a folder of frames, as a few upright RGB pictures evenly spread in time; or say why not."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgekit.errors import DataError, MissingExtraError, first_line
from edgekit.images import IMAGE_SUFFIXES, ImageError, read_rgb
from edgekit.preprocess import Preprocess, fit_pixels

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})

MAX_SECONDS = 600.0
"""A clip shows one thing that happens; decoding an hour of film for eight pictures is a mistake."""

MAX_FRAMES = 60_000
"""Frames of a clip, 100 per second for 10 minutes: time stamps, too, come out of the file."""

MAX_FRAME_PIXELS = 8192 * 4320
_MOST_OF_IT = 0.9
"""A file that holds less than this share of the time that it declares was cut off."""

# Only the containers above, and only this file: a playlist would make FFmpeg open other files, or the network.
_OPEN_OPTIONS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm", "protocol_whitelist": "file"}


class ClipError(ImageError):
    """A clip cannot be read; the message names it and the reason."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a clip are shown.

    Attributes:
        times: (n,) seconds, rising.
        end: when the last one goes, in seconds.
    """

    times: NDArray[np.float64]
    end: float

    @classmethod
    def of(cls, stamps: Sequence[float]) -> Timeline:
        """Return the timeline of frames that come in the order of display; the last one stands as long as most do.

        The stamps of old AVI files swap neighbours, so they are sorted.

        Raises:
            ValueError: the clip has no length.
        """
        times = np.sort(np.array(stamps, np.float64))
        if times[-1] <= times[0]:
            raise ValueError(f"of no length: all of its {len(times)} frames are at {times[0]:g} s")
        return cls(times, float(times[-1] + np.median(np.diff(times))))

    def spread(self, count: int) -> NDArray[np.int64]:
        """Return the numbers (count,) of the frames that are on the screen in the middles of `count` equal spans.

        Time decides, not the count of frames: a frame that stands still for long is met as often as it is long. Of a
        clip with fewer frames some come more than once.
        """
        start = self.times[0]
        middles = start + (np.arange(count) + 0.5) / count * (self.end - start)
        numbers: NDArray[np.int64] = np.searchsorted(self.times, middles, side="right").astype(np.int64) - 1
        return np.clip(numbers, 0, len(self.times) - 1)


def read_clip(path: Path, count: int) -> list[Image.Image]:
    """Read `count` pictures of a clip, evenly spread in time, upright, with square pixels.

    Args:
        path: a video file (`VIDEO_SUFFIXES`; its content must be of one of these containers), or a folder of pictures
            that are its frames in the order of their names, equally long each.
        count: how many pictures; ≥ 1.

    Raises:
        ClipError: no video in it, broken, cut off, of one frame only, of no length, too long or too large.
        MissingExtraError: a video, and PyAV is not installed.
    """
    if path.is_dir():
        return _read_folder(path, count)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _refusal(path, "not a regular file")
        if path.stat().st_size == 0:
            raise _refusal(path, "the file is empty")
    except OSError as e:
        raise _refusal(path, e.strerror or str(e)) from e
    timeline = _timeline(path)
    return _pictures(path, timeline.spread(count))


def load_clips(paths: list[Path], frames: int, contract: Preprocess) -> NDArray[np.uint8]:
    """Return the pixels (N, F, S, S, 3) uint8 of clips: evenly spread frames through the preprocessing contract.

    Raises:
        ClipError: as `read_clip`.
    """
    size = contract.image_size
    pixels = np.empty((len(paths), frames, size, size, 3), np.uint8)
    for row, path in enumerate(paths):
        pixels[row] = [fit_pixels(picture, contract) for picture in read_clip(path, frames)]
    return pixels


def frame_files(folder: Path) -> list[Path]:
    """Return a folder's pictures in the order of their names, "9.jpg" before "10.jpg"."""
    files = [entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES and entry.name[0] != "."]
    return sorted(files, key=lambda file: _natural(file.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key in which runs of digits count as numbers."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for character in f"{name}\0":
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((int(digits[-18:]), ""))
            digits = ""
        parts.append((-1, character))
    return parts


def _read_folder(folder: Path, count: int) -> list[Image.Image]:
    files = frame_files(folder)
    if len(files) < 2:
        raise _refusal(folder, f"{'one frame only' if files else 'no frame'}; a clip has two or more")
    chosen = Timeline(np.arange(len(files), dtype=np.float64), float(len(files))).spread(count)
    pictures: dict[int, Image.Image] = {}
    for number in chosen:
        if int(number) not in pictures:
            try:
                pictures[int(number)] = read_rgb(files[number])
            except ImageError as e:
                raise _refusal(folder, f"frame {files[number].name}: {e.reason}") from e
    return [pictures[int(number)] for number in chosen]


def _timeline(path: Path) -> Timeline:
    """Decode a video for the times of its frames alone; none is kept."""
    stamps: list[float | None] = []
    with _opened(path) as (container, stream):
        rate, base = stream.average_rate, stream.time_base
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise _refusal(path, f"cut off or damaged after {len(stamps)} frames")
            for frame in packet.decode():
                stamps.append(None if frame.pts is None or base is None else float(frame.pts * base))
                if frame.width * frame.height > MAX_FRAME_PIXELS:
                    raise _refusal(path, f"too large: {frame.width} x {frame.height} pixels")
            if len(stamps) > MAX_FRAMES:
                raise _refusal(path, f"more than {MAX_FRAMES} frames; cut it into clips")
        declared, frames = _declared(container, stream)
    if len(stamps) < 2:
        raise _refusal(path, "one frame only; a clip has two or more" if stamps else "no frame in it can be decoded")
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) < len(stamps):  # no time stamps: its frames are equally long
        known = [number / float(rate or 1) for number in range(len(stamps))]
    try:
        timeline = Timeline.of(known)
    except ValueError as e:
        raise _refusal(path, str(e)) from e
    if len(stamps) < _MOST_OF_IT * frames - 1:
        raise _refusal(path, f"cut off: {len(stamps)} of the {frames} frames that it declares")
    length = timeline.end - float(timeline.times[0])
    if length > MAX_SECONDS:
        raise _refusal(path, f"{length:.0f} s long, at most {MAX_SECONDS:.0f} s are read; cut it into clips")
    if declared is not None and length < _MOST_OF_IT * declared - 0.2:
        raise _refusal(path, f"cut off: {length:.1f} s of the {declared:.1f} s that it declares")
    return timeline


def _declared(container: Any, stream: Any) -> tuple[float | None, int]:
    """Return the seconds and frames that a video says it has; None and 0 where that is no measure of its picture track.

    A cut MP4 or MOV fails while it is read. What it declares is from before an edit list trimmed it.
    """
    if "mov" in container.format.name:
        return None, 0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base), int(stream.frames)
    alone = container.duration is not None and len(container.streams) == 1
    return float(container.duration) / 1e6 if alone else None, int(stream.frames)


def _pictures(path: Path, numbers: NDArray[np.int64]) -> list[Image.Image]:
    """Decode a video up to the last of the rising frame `numbers` and return these frames."""
    wanted = set(numbers.tolist())
    pictures: dict[int, Image.Image] = {}
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pictures[number] = _upright(frame, stream)
                if len(pictures) == len(wanted):
                    break
    if len(pictures) < len(wanted):
        raise _refusal(path, "changes while it is read")
    return [pictures[number] for number in numbers.tolist()]


def _upright(frame: Any, stream: Any) -> Image.Image:
    """Return a frame as a picture: square pixels, turned as the file says it is to be shown."""
    picture: Image.Image = frame.to_image()
    ratio = stream.sample_aspect_ratio
    if ratio is not None and 0.1 < ratio < 10 and ratio != 1:
        picture = picture.resize((max(1, round(frame.width * ratio)), frame.height), Image.Resampling.BICUBIC)
    turn = round(frame.rotation / 90) % 4  # counter-clockwise, as Pillow's
    turns = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    return picture.transpose(turns[turn]) if turn else picture


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video and its first picture track; whatever FFmpeg says against it becomes a ClipError."""
    try:
        import av
    except ImportError as e:
        raise MissingExtraError("av", "video", "Reading video files") from e
    try:
        with av.open(str(path.absolute()), container_options=_OPEN_OPTIONS) as container:
            tracks = [track for track in container.streams.video if not _is_cover(track)]
            if not tracks:
                raise _refusal(path, "no video stream in it")
            track = tracks[0]
            if track.width * track.height > MAX_FRAME_PIXELS:
                raise _refusal(path, f"too large: {track.width} x {track.height} pixels")
            track.thread_type = "NONE"  # clips are read side by side already
            yield container, track
    except (DataError, MissingExtraError):
        raise
    except MemoryError as e:
        raise _refusal(path, "too large for the memory") from e
    except PermissionError as e:
        raise _refusal(path, "permission denied") from e
    # FFmpeg's errors come as many types, some of them Python's own: OSError, ValueError, EOFError
    except Exception as e:
        raise _refusal(path, f"broken, or no video: {getattr(e, 'strerror', None) or first_line(e)}") from e


def _is_cover(track: Any) -> bool:
    """Whether a track is the still picture that sound files carry."""
    disposition = int(getattr(track, "disposition", 0))
    return bool(disposition & 0x0400)


def _refusal(path: Path, reason: str) -> ClipError:
    short = " ".join(reason.split())[:160]
    return ClipError(f"cannot read the clip {path}: {short}", reason=short)

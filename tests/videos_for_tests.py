"""Small videos that the tests draw and encode themselves."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
CODECS = {".webm": "libvpx", ".mkv": "mpeg4", ".avi": "mpeg4", ".mp4": "mpeg4", ".mov": "mpeg4"}


def grey_frames(levels: Sequence[int], size: tuple[int, int] = (64, 48)) -> list[Pixels]:
    """Return one-coloured frames (H, W, 3); a level of grey survives any codec, so it says which frame is seen."""
    return [np.full((size[1], size[0], 3), level, np.uint8) for level in levels]


def write_video(path: Path, frames: Sequence[Pixels], *, rate: int = 10, times: Sequence[float] | None = None) -> Path:
    """Encode frames (H, W, 3) at `rate` per second, or each at its time in seconds (milliseconds count)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
        stream.codec_context.time_base = base
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = round(times[number] * 1000) if times is not None else number
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Encode half a second of silence: a file of a video's kind without a picture in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for at in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * at
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn_mp4(path: Path) -> None:
    """Write into an MP4's track header that it is shown turned by 90° clockwise, as phones held upright do."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def write_frames(folder: Path, frames: Sequence[Pixels], name: str = "{:04d}.png") -> Path:
    """Write frames as pictures of one clip."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(frames, start=1):
        Image.fromarray(pixels).save(folder / name.format(number))
    return folder


def moving_dot(seed: int, *, right: bool, count: int = 12, size: int = 48) -> list[Pixels]:
    """Return frames (size, size, 3) of a bright square on a dark ground that goes to the right, or to the left."""
    rng = np.random.default_rng(seed)
    colour, row = rng.integers(150, 256, 3), int(rng.integers(4, size - 16))
    ground = rng.integers(0, 60, 3)
    frames = []
    for number in range(count):
        at = round((size - 12) * number / (count - 1))
        frame = np.broadcast_to(ground, (size, size, 3)).astype(np.uint8).copy()
        left = at if right else size - 12 - at
        frame[row : row + 12, left : left + 12] = colour
        frames.append(frame)
    return frames


def two_colours(root: Path, per_class: int, *, suffix: str = ".avi", seed: int = 0) -> Path:
    """Write clips of two classes, warm and cold, that a picture teacher can tell apart."""
    rng = np.random.default_rng(seed)
    for label, channel in (("cold", 2), ("warm", 0)):
        for number in range(per_class):
            frames = moving_dot(int(rng.integers(1 << 30)), right=bool(rng.integers(2)))
            for frame in frames:
                frame[..., channel] = np.minimum(frame[..., channel].astype(int) + 90, 255)
            write_video(root / label / f"{number:02d}{suffix}", frames)
    return root

"""Clips: which frames are read, by time, and what is refused with which words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit.clips import ClipError, Timeline, frame_files, load_clips, read_clip
from edgekit.preprocess import Preprocess
from tests.videos_for_tests import grey_frames, turn_mp4, write_frames, write_sound, write_video

LEVELS = [20 * number for number in range(1, 13)]


def levels(pictures: list[Image.Image]) -> list[float]:
    return [float(np.asarray(picture).mean()) for picture in pictures]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv", ".webm"])
def test_frames_are_evenly_spread(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}", grey_frames(LEVELS))
    seen = levels(read_clip(path, 4))
    # the middles of four spans of three frames are the frames 1, 4, 7 and 10
    assert seen == pytest.approx([LEVELS[1], LEVELS[4], LEVELS[7], LEVELS[10]], abs=4)


def test_folder_of_frames_in_natural_order(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", grey_frames(LEVELS), name="f{}.png")
    assert [file.name for file in frame_files(folder)][:3] == ["f1.png", "f2.png", "f3.png"]
    assert levels(read_clip(folder, 4)) == [LEVELS[1], LEVELS[4], LEVELS[7], LEVELS[10]]


def test_time_decides_not_the_number_of_frames(tmp_path: Path) -> None:
    # ten frames in the first half second, then two that stand for a second each
    times = [*(0.05 * number for number in range(10)), 0.5, 1.5]
    path = write_video(tmp_path / "vfr.mp4", grey_frames(LEVELS), times=times)
    timeline = Timeline(np.array(times), 2.5)
    assert timeline.spread(5).tolist() == [5, 10, 10, 11, 11]
    seen = levels(read_clip(path, 4))
    # 1.55 s long, as the last frame stands as long as most do: 0.19 s, then three times in the frame of 0.5 s to 1.5 s
    assert seen == pytest.approx([LEVELS[3], LEVELS[10], LEVELS[10], LEVELS[10]], abs=6)


def test_fewer_frames_than_asked_for_come_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.avi", grey_frames([50, 200]))
    assert levels(read_clip(path, 4)) == pytest.approx([50, 50, 200, 200], abs=4)


def test_turned_video_is_shown_upright(tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32, 0] = 250  # red in the top left corner
    path = write_video(tmp_path / "phone.mp4", [frame] * 6)
    turn_mp4(path)
    picture = read_clip(path, 2)[0]
    assert picture.size == (48, 64)
    pixels = np.asarray(picture)[..., 0]
    assert pixels[:28, 28:].mean() > 200 > 50 > pixels[:28, :20].mean()  # turned clockwise: now top right


def test_contract(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", grey_frames(LEVELS))
    pixels = load_clips([path, path], 3, Preprocess(16, 18))
    assert pixels.shape == (2, 3, 16, 16, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[0], pixels[1])


def test_reading_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.webm", grey_frames(LEVELS))
    first, again = read_clip(path, 5), read_clip(path, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def _one_frame(path: Path) -> Path:
    return write_video(path / "one.avi", grey_frames([9]))


def _truncated(suffix: str, share: float) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        rng = np.random.default_rng(0)
        noise = [rng.integers(0, 256, (48, 64, 3)).astype(np.uint8) for _ in range(40)]
        video = write_video(path / f"cut{suffix}", noise)
        content = video.read_bytes()
        video.write_bytes(content[: int(share * len(content))])
        return video

    return make


def _empty(path: Path) -> Path:
    (path / "empty.mp4").touch()
    return path / "empty.mp4"


def _text(path: Path) -> Path:
    (path / "text.mp4").write_text("hello " * 100)
    return path / "text.mp4"


def _playlist(path: Path) -> Path:
    write_video(path / "real.mp4", grey_frames(LEVELS))
    (path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nreal.mp4\n#EXT-X-ENDLIST\n")
    return path / "list.mp4"


def _long(path: Path) -> Path:
    return write_video(path / "long.mkv", grey_frames([10, 20, 30]), times=[0.0, 1.0, 4000.0])


def _sound(path: Path) -> Path:
    return write_sound(path / "sound.mp4")


def _missing(path: Path) -> Path:
    return path / "gone.mp4"


def _one_picture(path: Path) -> Path:
    return write_frames(path / "folder", grey_frames([9]))


def _broken_picture(path: Path) -> Path:
    folder = write_frames(path / "folder", grey_frames([9, 10, 11]))
    (folder / "0002.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_one_frame, "one frame only"),
        (_truncated(".mp4", 0.5), "broken, or no video"),
        (_truncated(".avi", 0.5), "cut off"),
        (_truncated(".mkv", 0.5), "cut off"),
        (_empty, "the file is empty"),
        (_text, "broken, or no video"),
        (_playlist, "broken, or no video"),
        (_long, "at most 600 s are read"),
        (_sound, "no video stream in it"),
        (_missing, "No such file"),
        (_one_picture, "one frame only"),
        (_broken_picture, "frame 0002.png"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ClipError) as caught:
        read_clip(path, 4)
    message = str(caught.value)
    assert reason in message and path.name in message and "\n" not in message


def test_all_frames_at_one_time_have_no_length() -> None:
    with pytest.raises(ValueError, match="no length"):
        Timeline.of([2.0, 2.0, 2.0])


def test_stamps_of_old_files_are_sorted() -> None:
    assert Timeline.of([0.04, 0.08, 0.16, 0.12]).times.tolist() == [0.04, 0.08, 0.12, 0.16]


def test_without_pyav_the_extra_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", grey_frames(LEVELS))
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from pathlib import Path\n"
        "from edgekit.clips import read_clip\n"
        "from edgekit.errors import MissingExtraError\n"
        "try: read_clip(Path(sys.argv[1]), 2)\n"
        "except MissingExtraError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "pip install 'edgekit[video]'" in done.stdout

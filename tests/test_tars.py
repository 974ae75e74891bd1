"""Tars of samples: what is listed, and every way in which one can be broken."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from edgekit.errors import LoadError
from edgekit.images import ImageError
from edgekit.tars import list_tar


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


SAMPLES = {
    "000.png": picture("red"), "000.cls": b"1", "000.json": b'{"key": "train/dog/a.b.png", "label": "dog"}',
    "001.png": picture("blue"), "001.cls": b"0\n",
    "sub/002.seg.jpg": picture("green"), "sub/002.json": b'{"label": "cat"}',
    "003.png": picture("white"),
}  # fmt: skip


def test_samples_have_their_key_label_and_bytes(tmp_path: Path) -> None:
    listing = list_tar(write_tar(tmp_path / "a.tar", SAMPLES))
    assert listing.broken == {}
    found = [(p.key, p.label) for p in listing.pictures]
    assert found == [("train/dog/a.b.png", "1"), ("001", "0"), ("sub/002", "cat"), ("003", None)]
    assert [p.read() for p in listing.pictures] == [
        SAMPLES[n] for n in ("000.png", "001.png", "sub/002.seg.jpg", "003.png")
    ]


def test_members_that_lead_elsewhere_are_refused_and_the_rest_is_listed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"../../up.png": picture(), "/abs.png": picture(), **SAMPLES})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        pipe = tarfile.TarInfo("pipe.png")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
    listing = list_tar(path)
    assert len(listing.pictures) == 4
    assert listing.broken == {
        "a.tar:../../up.png": "its path leads out of the tar",
        "a.tar:/abs.png": "its path leads out of the tar",
        "a.tar:link.png": "not a regular file",
        "a.tar:pipe.png": "not a regular file",
    }


def test_every_cut_is_noticed_and_what_is_whole_is_listed(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", SAMPLES).read_bytes()
    content_end = 512 * 2 * len(SAMPLES)  # a header and a block each
    for length in range(1, content_end, 200):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        if length < 512:
            with pytest.raises(LoadError, match="cannot be read as a tar"):
                list_tar(tmp_path / "cut.tar")
            continue
        listing = list_tar(tmp_path / "cut.tar")
        assert listing.broken
        for one in listing.pictures:
            Image.open(io.BytesIO(one.read())).load()


def test_a_damaged_header_ends_the_list_with_a_reason(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    content = bytearray(path.read_bytes())
    content[3 * 1024 : 3 * 1024 + 512] = b"x" * 512  # that of the second sample
    path.write_bytes(content)
    listing = list_tar(path)
    assert [p.key for p in listing.pictures] == ["train/dog/a.b.png"]
    assert "what follows is lost" in listing.broken["a.tar"]


def test_a_sample_needs_one_picture(tmp_path: Path) -> None:
    members = {"a.cls": b"0", "b.png": picture(), "b.jpg": picture(), "c.png": picture()}
    listing = list_tar(write_tar(tmp_path / "a.tar", members))
    assert [p.key for p in listing.pictures] == ["c"]
    assert listing.broken == {"a.tar:a": "0 pictures in one sample", "a.tar:b": "2 pictures in one sample"}


@pytest.mark.parametrize("content", [b"", b"no tar" * 200, gzip.compress(b"x" * 5000, mtime=0)])
def test_files_that_are_no_tar_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(LoadError) as caught:
        list_tar(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tar_that_shrinks_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    pictures = list_tar(path).pictures
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match="cut off"):
        pictures[1].read()

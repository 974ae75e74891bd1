"""Folders written whole or not at all: what is there is refused, replaced at the end, or given back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edgekit.atomic import (
    WriteError,
    _swap,
    atomic_folder,
    refuse_existing,
    refuse_replacing,
)
from edgekit.errors import EXIT_USAGE, OutputExistsError

OrdinaryUser = Callable[[], AbstractContextManager[None]]


def names(folder: Path) -> list[str]:
    """Return all names in a folder, hidden ones too: no temporary file may stay behind."""
    return sorted(path.name for path in folder.iterdir())


def test_existing_output_is_refused_until_told(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with atomic_folder(target) as fresh:
        (fresh / "sub").mkdir()
        (fresh / "sub" / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(OutputExistsError, match="--overwrite") as caught, atomic_folder(target):
        pytest.fail("the block must not run")
    assert caught.value.exit_code == EXIT_USAGE
    assert (target / "sub" / "a").read_text() == "1"
    with atomic_folder(target, overwrite=True) as fresh:
        (fresh / "b").write_text("2")
        assert (target / "sub" / "a").read_text() == "1"  # the old content is there until the new one is whole
    assert names(target) == ["b"] and names(tmp_path) == ["run"]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputExistsError), atomic_folder(tmp_path / "run"):
        pytest.fail("the block must not run")
    with atomic_folder(tmp_path / "run", overwrite=True) as fresh:
        (fresh / "x").touch()
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["x"]


def test_an_empty_folder_counts_as_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    refuse_existing(tmp_path / "run", overwrite=False)
    refuse_existing(tmp_path / "nothing", overwrite=False)
    with atomic_folder(tmp_path / "run") as fresh:
        (fresh / "x").touch()
    assert names(tmp_path / "run") == ["x"]


def test_the_working_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for target in (Path(), Path(".."), tmp_path, Path.home()):
        with (
            pytest.raises(OutputExistsError, match="folder and is not replaced"),
            atomic_folder(target, overwrite=True),
        ):
            pytest.fail("the block must not run")
    assert (tmp_path / "thesis.tex").exists()
    with atomic_folder(Path("run")) as fresh:
        (fresh / "x").touch()
    assert names(tmp_path / "here") == ["run"]


def test_a_failed_swap_gives_the_old_folder_back(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with atomic_folder(target) as fresh:
        (fresh / "old").touch()
    with (
        pytest.raises(WriteError, match="Nothing that was there has changed"),
        atomic_folder(target, overwrite=True) as fresh,
    ):
        (fresh / "new").touch()
        fresh.rename(tmp_path / "elsewhere")  # as a cleaner of temporary files might
    assert names(target) == ["old"] and names(tmp_path) == ["elsewhere", "run"]


def test_a_failure_between_the_renames_gives_the_old_folder_back(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    with pytest.raises(FileNotFoundError):
        _swap(tmp_path / "gone", tmp_path / "run", tmp_path / ".run.old")
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["old"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".run.old").mkdir()
    (tmp_path / ".run.old" / "old").touch()
    with pytest.raises(OutputExistsError), atomic_folder(tmp_path / "run"):
        pytest.fail("the block must not run")
    assert names(tmp_path / "run") == ["old"] and names(tmp_path) == ["run"]


def test_a_folder_that_cannot_be_listed_counts_as_full(open_tmp: Path, without_root: OrdinaryUser) -> None:
    secret = open_tmp / "secret"
    secret.mkdir(mode=0o300)
    with without_root(), pytest.raises(OutputExistsError):
        refuse_existing(secret, overwrite=False)


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    inside = tmp_path / "run" / "sub" / "picture.png"
    inside.touch()
    for output in ("run", "link", "run/sub", "run/sub/picture.png", "run/../run/sub"):
        with pytest.raises(OutputExistsError, match="this command reads, and is not replaced"):
            refuse_replacing(tmp_path / output, (None, tmp_path / "elsewhere", str(inside)))
    for output in ("bundle", "run/bundle", "run/sub/pict"):
        refuse_replacing(tmp_path / output, (inside, None))


def test_a_folder_that_may_not_be_entered_is_a_write_error(open_tmp: Path, without_root: OrdinaryUser) -> None:
    (open_tmp / "closed").mkdir(mode=0)
    with without_root():
        with pytest.raises(WriteError, match="Permission denied"):
            refuse_existing(open_tmp / "closed" / "run", overwrite=False)
        with pytest.raises(WriteError, match="Permission denied"), atomic_folder(open_tmp / "closed" / "run"):
            pytest.fail("the block must not run")

"""Write a file or a folder whole, or not at all.

Everything is written beside its final place under a hidden temporary name, flushed to the disk, and renamed:
a crash, a full disk or a Ctrl-C leaves either the old content or the new, never a half.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit.errors import EdgekitError, OutputExistsError


class WriteError(EdgekitError):
    """The disk refused a write; what was there before is untouched."""

    exit_code = 3


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` if the block succeeds, else remove it.

    A link is written through: the file it names is replaced, the link stays.

    Raises:
        WriteError: the folder cannot be written, the disk is full, or `target` is a folder or a device.
    """
    target = _resolve(target)
    temporary = _beside(target, target.suffix)
    with _refused_writes(target, temporary):
        if target.exists() and not target.is_file():  # a rename would replace even /dev/null
            raise WriteError(f"cannot write {target}: it is there and not a regular file. Choose another -o/--output.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)
            yield temporary
            _flush(temporary)
            temporary.replace(target)
            _flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target`, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Write `content` to `target` as UTF-8, whole or not at all."""
    write_bytes(target, content.encode())


def write_json(target: Path, content: object) -> None:
    """Write `content` to `target` as indented JSON, whole or not at all."""
    write_text(target, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a fresh folder beside `target`; move it into place if the block succeeds, else remove it.

    Raises:
        OutputExistsError: `target` is already there, not empty, and `overwrite` is false; or it holds the working
            folder or the home folder, which are never replaced.
        WriteError: the folder cannot be written or the disk is full.
    """
    target = _resolve(target)
    old, fresh = _old(target), _beside(target, "")
    with _refused_writes(target, fresh):
        if old.exists() and not target.exists():
            old.rename(target)  # an earlier run was killed between the two renames of _swap: give its content back
        refuse_existing(target, overwrite=overwrite)
        _refuse_precious(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.mkdir()
            yield fresh
            for path in (*fresh.rglob("*"), fresh):
                _flush(path)
            _swap(fresh, target, old)
            _flush(target.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise if `target` holds something and `overwrite` is false.

    Raises:
        OutputExistsError: naming the target and the way out.
        WriteError: what is there cannot be known, in a folder that may not be entered.
    """
    try:
        there = target.exists()
    except OSError as e:
        raise WriteError(f"cannot write {target}: {e.strerror or e}. Choose another -o/--output.") from e
    if overwrite or not there:
        return
    with suppress(PermissionError):  # a folder that cannot be listed counts as full
        if target.is_dir() and not any(target.iterdir()):
            return
    raise OutputExistsError(f"{target} exists already. Choose another -o/--output, or pass --overwrite to replace it.")


def refuse_unwritable(target: Path) -> None:
    """Raise if the file `target` cannot be written, as far as that shows before: what is to go there takes its time.

    Raises:
        WriteError: it is a folder or a device, or lies where nothing may be written.
    """
    try:
        if target.exists() and not target.is_file():
            raise WriteError(f"cannot write {target}: it is there and not a regular file. Choose another name.")
        above = next(folder for folder in _resolve(target).parents if folder.exists())
    except OSError as e:
        raise WriteError(f"cannot write {target}: {e.strerror or e}. Choose another name.") from e
    if not above.is_dir() or not os.access(
        above, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        raise WriteError(f"cannot write {target}: {above} is no folder that may be written to. Choose another name.")


def refuse_replacing(target: Path, inputs: Iterable[Path | str | None]) -> None:
    """Raise if `target` is, or holds, something that the command reads: --overwrite would delete it.

    Args:
        target: the output.
        inputs: what is read; None stands for an input that was not given. One that holds `target` is welcome.

    Raises:
        OutputExistsError: naming the input.
    """
    whole = _resolve(target)
    for given in inputs:
        if given is not None and _resolve(Path(given)).is_relative_to(whole):
            said = "is" if _resolve(Path(given)) == whole else f"holds {given},"
            raise OutputExistsError(
                f"{target} {said} what this command reads, and is not replaced. Choose another -o/--output."
            )


def _refuse_precious(target: Path) -> None:
    for name, folder in (("working", Path.cwd()), ("home", Path.home())):
        if folder.resolve().is_relative_to(target):
            raise OutputExistsError(
                f"{target} holds the {name} folder and is not replaced. Choose another -o/--output."
            )


def _swap(fresh: Path, target: Path, old: Path) -> None:
    """Put `fresh` in the place of `target`; if that fails, `target` is what it was."""
    _remove(old)
    had_old = target.exists()
    if had_old:
        target.rename(old)
    try:
        fresh.rename(target)
    except BaseException:
        if had_old:
            old.rename(target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _resolve(target: Path) -> Path:
    """Follow links, so that what they name is replaced and not they; gives "." a name, too."""
    return Path(os.path.realpath(target))


def _old(target: Path) -> Path:
    """Return where the content of before is kept while a folder is replaced."""
    return target.with_name(f".{target.name}.old")


def _beside(target: Path, suffix: str) -> Path:
    """Return an unused hidden name in the same folder (the same disk) that keeps the suffix and is not too long."""
    # not from `tempfile`, which makes private files: ours get the rights that any new file gets
    return target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}{suffix}")


def _flush(path: Path) -> None:
    """Wait until the disk has it: a rename may otherwise outlive a power cut that its content does not."""
    if path.is_symlink():
        return
    if path.is_dir():
        with suppress(OSError):  # Windows cannot open a folder, and some network disks cannot flush one
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes writable files only


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _refused_writes(target: Path, temporary: Path) -> Iterator[None]:
    """Turn an OSError about our own files into a WriteError; one that names another file is not about this write."""
    try:
        yield
    except OSError as e:
        if isinstance(e.filename, str):
            named = Path(e.filename)
            if not (named.is_relative_to(temporary) or target.is_relative_to(named) or named == _old(target)):
                raise
        raise WriteError(f"cannot write {target}: {e.strerror or e}. Nothing that was there has changed.") from e

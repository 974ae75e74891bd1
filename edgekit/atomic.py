"""Write a file or a folder whole, or not at all.

Everything is written beside its final place under a hidden temporary name, flushed to the disk, and renamed:
a crash, a full disk or a Ctrl-C leaves either the old content or the new, never a half.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import EdgekitError, OutputExistsError


class WriteError(EdgekitError):
    """The disk refused a write; what was there before is untouched."""

    exit_code = 3


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` if the block succeeds, else remove it.

    Raises:
        WriteError: the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; ours are ordinary files
        temporary.replace(target)
    except OSError as e:
        raise WriteError(f"cannot write {target}: {e.strerror or e}. Nothing that was there has changed.") from e
    finally:
        if temporary is not None:
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
        OutputExistsError: `target` is already there, not empty, and `overwrite` is false.
        WriteError: the folder cannot be written or the disk is full.
    """
    refuse_existing(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as e:
        raise WriteError(f"cannot write {target}: {e.strerror or e}.") from e
    try:
        yield fresh
        fresh.chmod(0o755)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as e:
        raise WriteError(f"cannot write {target}: {e.strerror or e}. Nothing that was there has changed.") from e
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise if `target` holds something and `overwrite` is false.

    Raises:
        OutputExistsError: naming the target and the way out.
    """
    if overwrite or not target.exists():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    raise OutputExistsError(f"{target} exists already. Choose another -o/--output, or pass --overwrite to replace it.")

"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from whole_path_for_tests import WholePath

REPOSITORY = Path(__file__).resolve().parents[1]


def real_data_folder() -> Path:
    """Return the folder of real data sets: EDGEKIT_TEST_DATA, else ../shared/data beside the checkout."""
    return Path(os.environ.get("EDGEKIT_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the real data folder, or skip with the reason."""
    folder = real_data_folder()
    if not folder.is_dir():
        pytest.skip(f"real data sets are not here ({folder}); set EDGEKIT_TEST_DATA to run this test")
    return folder


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """Yield an empty folder that every user may enter; `tmp_path` is root's alone where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.fixture
def without_root() -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which file permissions bite, also where the tests run as root, as they do in containers."""

    @contextmanager
    def ordinary_user() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        try:
            os.seteuid(65534)  # nobody
        except PermissionError:
            pytest.skip("a root that may not become an ordinary user: permissions cannot be tested")
        try:
            yield
        finally:
            os.seteuid(0)

    return ordinary_user


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with one file that needs the whole path, and have the others that do after half of those that do not.

    One of several test workers makes it then, for minutes, while the rest have tests that do without; and at the end,
    where a long file would leave one worker alone, there are many short ones.
    """
    needing = {item.path for item in items if "whole_path" in getattr(item, "fixturenames", ())}
    files = list(dict.fromkeys(item.path for item in items))
    users, others = ([path for path in files if (path in needing) is uses] for uses in (True, False))
    half = len(others) // 2
    order = [*users[:1], *others[:half], *users[1:], *others[half:]]
    items.sort(key=lambda item: order.index(item.path))


@pytest.fixture(scope="session")
def whole_path(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> WholePath:
    """Return a trained student with its run folder, bundle and bench, made once by the demo's own code.

    The first of several test workers makes it; the others wait for it.
    """
    from whole_path_for_tests import make_whole_path

    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with FileLock(shared / "whole-path.lock"):
        return make_whole_path(shared / "whole-path")

"""The history: what goes in comes out, and a file of another program is left alone."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bench.results import BenchReport
from edgekit.bench.store import add_run, history, select_run
from edgekit.errors import LoadError, UsageError
from tests.bench.reports_for_tests import MACHINE, made_report


@pytest.fixture
def reports() -> list[BenchReport]:
    old = replace(made_report(), created="2025-01-02T03:04:05+00:00", edgekit_version="0.0.9")
    phone = replace(made_report(sha256="b" * 64), machine=replace(MACHINE, cpu="Cortex-A76"))
    return [old, phone, made_report(seed=3)]


@pytest.fixture
def store(tmp_path: Path, reports: list[BenchReport]) -> Path:
    path = tmp_path / "new" / "results.sqlite"
    assert [add_run(path, report) for report in reports] == [1, 2, 3]
    return path


def test_history_lists_the_latest_first(store: Path) -> None:
    runs = history(store)
    assert [run.id for run in runs] == [3, 2, 1]
    assert runs[1].device == "local: Cortex-A76, 2 cores, Linux"
    assert runs[2].edgekit_version == "0.0.9"
    assert runs[0].models == ("student", "model.onnx")


@pytest.mark.parametrize(
    ("selector", "run"),
    [
        ("latest", 3),
        ("latest~0", 3),
        ("latest~2", 1),
        ("2", 2),
        ("device=cortex", 2),
        ("version=0.0.9", 1),
        ("artifact=model.onnx", 3),
        ("artifact=bbbbbb", 2),
        ("artifact=aaaa,device=EPYC,before=2025-06-01", 1),
    ],
)
def test_selectors(store: Path, reports: list[BenchReport], selector: str, run: int) -> None:
    assert select_run(store, selector) == reports[run - 1]


@pytest.mark.parametrize("selector", ["9", "latest~3", "device=GPU", "artifact=%", "artifact=' OR 1=1 --", "9" * 40])
def test_what_is_not_there_is_told(store: Path, selector: str) -> None:
    with pytest.raises(UsageError, match=r"holds no run|selects no run"):
        select_run(store, selector)


def test_a_mistyped_condition_is_told(store: Path) -> None:
    with pytest.raises(UsageError, match=r"'devise=x' selects no run; did you mean 'device'\?"):
        select_run(store, "devise=x")


def test_several_at_once_lose_nothing(tmp_path: Path) -> None:
    path, report = tmp_path / "results.sqlite", made_report()
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: add_run(path, report), range(8)))
    assert sorted(numbers) == list(range(1, 9))


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE runs (id INTEGER)")
    database.close()
    content = other.read_bytes()
    with pytest.raises(UsageError, match="another program"):
        add_run(other, made_report())
    assert other.read_bytes() == content
    text = tmp_path / "text.sqlite"
    text.write_text("not a database" * 100)
    with pytest.raises(LoadError, match="cannot be used as a store"):
        history(text)
    with pytest.raises(LoadError, match="is not there"):
        history(tmp_path / "gone.sqlite")


def test_a_newer_store_is_refused(store: Path) -> None:
    with sqlite3.connect(store) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(UsageError, match="newer edgekit"):
        history(store)


def test_a_damaged_run_is_told(store: Path) -> None:
    with sqlite3.connect(store) as database:
        database.execute("UPDATE runs SET report = x'00ff' WHERE id = 3")
    database.close()
    with pytest.raises(LoadError, match="'latest' is damaged"):
        select_run(store)
    assert select_run(store, "2").rows

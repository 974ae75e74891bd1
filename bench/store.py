"""The history of bench runs in one SQLite file: every run whole, and its rows to search by."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.atomic import refuse_unwritable
from edgekit.bench.compare import device_of
from edgekit.bench.results import BenchReport
from edgekit.errors import LoadError, UsageError, did_you_mean

SUFFIXES = (".sqlite", ".sqlite3", ".db")
_APPLICATION = 0x65646765  # "edge"
_VERSION = 1
_MAX_REPORT_BYTES = 512 * 2**20
_SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, created TEXT NOT NULL, device TEXT NOT NULL, edgekit_version TEXT NOT NULL,
    data TEXT, report BLOB NOT NULL
);
CREATE TABLE results (
    run INTEGER NOT NULL REFERENCES runs (id), name TEXT NOT NULL, kind TEXT NOT NULL, format TEXT NOT NULL,
    precision TEXT NOT NULL, sha256 TEXT, runtime TEXT, runtime_version TEXT, threads INTEGER, status TEXT NOT NULL,
    p50_s REAL, top1 REAL, size_bytes INTEGER, peak_memory_bytes INTEGER, PRIMARY KEY (run, name)
);
CREATE INDEX results_by_file ON results (sha256);
"""
_FILTERS = {
    "device": "instr(lower(device), lower({value})) > 0",
    "version": "edgekit_version = {value}",
    "artifact": "id IN (SELECT run FROM results WHERE name = {value} OR substr(sha256, 1, length({value})) = {value})",
    "before": "created < {value}",
}


@dataclass(frozen=True)
class StoredRun:
    """One run of the history.

    Attributes:
        id: number, counts up.
        created: UTC, ISO 8601.
        device, edgekit_version, data: what measured, on what.
        models: names of the rows.
    """

    id: int
    created: str
    device: str
    edgekit_version: str
    data: str | None
    models: tuple[str, ...]


def check_store(store: Path) -> None:
    """Refuse what `add_run` would refuse, before a bench that takes its time; nothing is made.

    Raises:
        UsageError: a name that `edgekit compare` would not take for a history; or the file is no store of edgekit's.
        LoadError: it cannot be opened for writing.
        WriteError: it would lie where nothing may be written.
    """
    if store.suffix not in SUFFIXES:
        raise UsageError(f"--store {store}: a history is named {', '.join(SUFFIXES)}; -o/--output writes JSON")
    refuse_unwritable(store)
    if store.exists():
        with _connected(store, create=True):
            pass


def add_run(store: Path, report: BenchReport) -> int:
    """Add a run, making the file where there is none; return the run's number.

    Raises:
        UsageError: the file is no store of edgekit's, or of a newer one.
        LoadError: it cannot be written.
    """
    content = zlib.compress(json.dumps(report.to_json()).encode())
    with _connected(store, create=True) as database:
        values = (report.created, device_of(report), report.edgekit_version, report.data, content)
        cursor = database.execute(
            "INSERT INTO runs (created, device, edgekit_version, data, report) VALUES (?, ?, ?, ?, ?)", values
        )
        run = cursor.lastrowid
        assert run is not None
        for row in report.rows:
            runtime = row.runtime
            facts = (
                (run, row.name, row.kind, row.format, row.precision, row.sha256)
                + ((runtime.runtime, runtime.version, runtime.threads) if runtime else (None, None, None))
                + (row.status, row.latency.p50_s if row.latency else None, row.top1.value if row.top1 else None)
                + (row.size_bytes, row.peak_memory_bytes)
            )
            database.execute(f"INSERT INTO results VALUES ({', '.join('?' * len(facts))})", facts)
    return run


def history(store: Path) -> tuple[StoredRun, ...]:
    """Return all runs, the latest first.

    Raises:
        LoadError: there is no such file, or it is damaged.
        UsageError: it is no store of edgekit's.
    """
    with _connected(store) as database:
        found = database.execute("SELECT id, created, device, edgekit_version, data FROM runs ORDER BY id DESC")
        runs = found.fetchall()
        names = database.execute("SELECT run, name FROM results ORDER BY rowid").fetchall()
    models: dict[int, list[str]] = {}
    for run, name in names:
        models.setdefault(run, []).append(name)
    return tuple(
        StoredRun(run, created, device, version, data, tuple(models.get(run, ())))
        for run, created, device, version, data in runs
    )


def select_run(store: Path, selector: str = "latest") -> BenchReport:
    """Return the run that a selector names.

    Args:
        store: the file.
        selector: a run's number; "latest", "latest~2" for the second before it; or conditions with commas that the
            latest of the runs must meet: "device=EPYC", "version=0.1.0", "artifact=NAME or start of its sha256",
            "before=2026-11-20".

    Raises:
        UsageError: no such condition, or no run meets it.
        LoadError: the file cannot be read.
    """
    where, values = _parsed(selector)
    with _connected(store) as database:
        query = f"SELECT report FROM runs WHERE {where} ORDER BY id DESC LIMIT 1 OFFSET :skip"
        found = database.execute(query, values).fetchone()
    if found is None:
        raise UsageError(f"{store} holds no run '{selector}'; `edgekit compare {store}` lists what it holds")
    try:
        unpacked = zlib.decompressobj()
        text = unpacked.decompress(found[0], _MAX_REPORT_BYTES)
        if unpacked.unconsumed_tail:
            raise LoadError(f"{store}: run '{selector}' is larger than any bench result")
        return BenchReport.from_json(json.loads(text))
    except (zlib.error, ValueError, TypeError) as e:
        raise LoadError(f"{store}: run '{selector}' is damaged: {e}") from e


def _parsed(selector: str) -> tuple[str, dict[str, str | int]]:
    """Return the condition of a selector with its values; "skip" is how many newer runs to pass over."""
    if selector.isdecimal() and len(selector) < 18:
        return "id = :number", {"number": int(selector), "skip": 0}
    name, _, back = selector.partition("~")
    if selector == "latest" or (name == "latest" and back.isdecimal() and len(back) < 18):
        return "1", {"skip": int(back or 0)}
    conditions = []
    values: dict[str, str | int] = {"skip": 0}
    for number, part in enumerate(selector.split(",")):
        key, equals, value = part.partition("=")
        if key not in _FILTERS or not equals:
            raise UsageError(f"'{part}' selects no run; {did_you_mean(key, [*_FILTERS, 'latest'])}")
        conditions.append(_FILTERS[key].format(value=f":value{number}"))
        values[f"value{number}"] = value
    return " AND ".join(conditions), values


@contextmanager
def _connected(store: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """Yield the open store inside of one transaction: written whole or not at all."""
    if not create and not store.is_file():
        raise LoadError(f"{store} is not there; `edgekit bench --store {store}` begins a history")
    database = None
    try:
        if create:
            store.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(store, timeout=30.0)
        with database:
            database.execute("BEGIN IMMEDIATE" if create else "BEGIN")
            _check_schema(store, database, create=create)
            yield database
    except (sqlite3.Error, OSError) as e:
        raise LoadError(f"{store} cannot be used as a store of results: {e}") from e
    finally:
        if database is not None:
            database.close()


def _check_schema(store: Path, database: sqlite3.Connection, *, create: bool) -> None:
    application = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if create and empty and not application:
        for statement in _SCHEMA.split(";"):  # executescript would commit what has been begun
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {_VERSION}")
        return
    if application != _APPLICATION:
        raise UsageError(f"{store} is a database of another program; give a file that `edgekit bench --store` made")
    if version > _VERSION:
        raise UsageError(f"{store} was written by a newer edgekit (schema {version} > {_VERSION}); update edgekit")

"""Lines of CSV, TSV and JSONL files as texts with a hard or a soft label, each checked and named by its place."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import DataError
from edgekit.printable import printable

SOFT_PREFIX = "p_"
"""Columns `p_<class>` hold the probabilities of soft labels."""
SUM_TOLERANCE = 1e-3
"""Soft labels are written with some three digits; what is farther from 1 is no distribution."""
_SUFFIXES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class TextFiles:
    """Where texts come from.

    Attributes:
        train: CSV, TSV or JSONL.
        val: likewise; None takes `val_fraction` of the training texts.
        test: likewise, or None.
        val_fraction: share of each class kept for validation, where there is no `val`.
        classes: names of the classes 0, 1, …; none takes the labels themselves.
        text_column, label_column: names in a header or a JSON object; a file without a header has the text first.
    """

    train: Path
    val: Path | None = None
    test: Path | None = None
    val_fraction: float = 0.1
    classes: tuple[str, ...] = ()
    text_column: str = "text"
    label_column: str = "label"


@dataclass(frozen=True)
class TextRow:
    """A line of a file: its place for messages, its text, and a class name or the probabilities by class name."""

    place: str
    text: str
    label: str | Mapping[str, float]


def read_rows(path: Path, files: TextFiles) -> Iterator[TextRow]:
    """Yield the rows of a file.

    Raises:
        DataError: unreadable, empty, or a line of another form.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path}: texts come as {', '.join(_SUFFIXES)}; the suffix says which")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        line = 1 + e.object[: e.start].count(b"\n")
        raise DataError(f"{path}:{line} is not UTF-8 (byte {e.start}); convert the file: iconv -t UTF-8") from e
    # not `splitlines`, for which letters like U+2028 end a line, too
    lines = list(io.StringIO(content, newline=""))
    records = _json_records(path, lines) if path.suffix.lower() == ".jsonl" else _table_records(path, lines, files)
    none = True
    for place, record in records:
        none = False
        yield _row(place, record, files)
    if none:
        raise DataError(f"{path} holds no texts")


def _json_records(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}:{number} is not JSON: {e}") from e
        if not isinstance(record, dict):
            raise DataError(f'{path}:{number} holds no JSON object like {{"text": …, "label": …}}')
        yield f"{path}:{number}", record


def _table_records(path: Path, lines: Sequence[str], files: TextFiles) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a table by column name; without a header they are (text, label).

    A quote is a letter in TSV, where the texts of most corpora have stray ones, and a quote in CSV.
    """
    tabs = path.suffix.lower() == ".tsv"
    columns: list[str] | None = None
    for number, cells in _table_lines(path, lines, tabs):
        if columns is None:
            header = files.text_column in cells
            if not header and files.label_column in cells:
                raise DataError(
                    f"{path}:1 names the columns {', '.join(cells)}, none of them '{files.text_column}'; say which "
                    "holds the texts with --text-column"
                )
            columns = cells if header else [files.text_column, files.label_column]
            if header:
                continue
        if len(cells) != len(columns):
            raise DataError(
                f"{path}:{number} has {len(cells)} columns, not {len(columns)} "
                f"({', '.join(columns)}); without a header a file has the text and then the label"
            )
        yield f"{path}:{number}", dict(zip(columns, cells, strict=True))


def _table_lines(path: Path, lines: Sequence[str], tabs: bool) -> list[tuple[int, list[str]]]:
    """Return the cells of each line that has some, with its number.

    The limit of a cell's length belongs to the whole process, so it is put back before anything else runs.
    """
    limit = csv.field_size_limit(max(map(len, lines), default=0) + 2**20)
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    try:
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as e:
        raise DataError(f"{path}:{reader.line_num} is no line of a table: {e}") from e
    finally:
        csv.field_size_limit(limit)


def _row(place: str, record: Mapping[str, Any], files: TextFiles) -> TextRow:
    text = record.get(files.text_column)
    if not isinstance(text, str):
        raise DataError(f"{place} has no text under '{files.text_column}'; name the column with --text-column")
    soft = {name[len(SOFT_PREFIX) :]: value for name, value in record.items() if name.startswith(SOFT_PREFIX)}
    value = record.get(files.label_column)
    if soft:
        return TextRow(place, text, _probabilities(place, soft))
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{place}: the label {printable(value, 60)} is no JSON list of probabilities") from e
    if isinstance(value, list):
        names = files.classes or tuple(map(str, range(len(value))))
        if len(names) != len(value):
            raise DataError(f"{place} has {len(value)} probabilities for the {len(names)} classes")
        value = dict(zip(names, value, strict=True))
    if isinstance(value, dict):
        return TextRow(place, text, _probabilities(place, value))
    if value is None or str(value).strip() == "":
        raise DataError(f"{place} has no label under '{files.label_column}'; name the column with --label-column")
    if isinstance(value, float) and not value.is_integer():
        raise DataError(
            f"{place}: the label {value} is no class; soft labels are a list, or columns {SOFT_PREFIX}<class>"
        )
    return TextRow(place, text, str(int(value)) if isinstance(value, float) else str(value).strip())


def _probabilities(place: str, values: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in values.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError) as e:
            raise DataError(f"{place}: the probability of '{name}' is {printable(str(value), 40)!r}, no number") from e
        if not 0 <= found[name] <= 1 + SUM_TOLERANCE:
            raise DataError(f"{place}: the probability of '{name}' is {found[name]}, not between 0 and 1")
    total = math.fsum(found.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise DataError(f"{place}: the soft label sums to {total:.6g}, not to 1")
    return {name: value / total for name, value in found.items()}

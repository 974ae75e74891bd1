"""Logs of every supported format, and logs as killed, resumed and hand-edited runs leave them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from edgekit.compress.forecast.metrics_reader import read_metrics
from edgekit.errors import DataError, LoadError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def jsonl(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_jsonl_reads_epoch_rows_only(tmp_path: Path) -> None:
    rows = jsonl(
        {"kind": "step", "step": 10, "epoch": 0.5, "loss": 9.0},
        {"kind": "epoch", "epoch": 1, "val_acc": 0.5, "lr": 0.1},
        {"kind": "epoch", "epoch": 2, "val_acc": 0.6, "lr": 0.05},
    )
    write(tmp_path, "metrics.jsonl", rows)
    table = read_metrics(tmp_path)
    assert table.epochs.tolist() == [1, 2]
    assert sorted(table.columns) == ["lr", "val_acc"]
    rate = table.rate()
    assert rate is not None and rate.tolist() == [0.1, 0.05]
    assert table.notes == ()


def test_killed_and_resumed_run_is_put_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "metrics.jsonl", jsonl({"epoch": 1, "a": 1}, {"epoch": 2, "a": 2}, {"epoch": 3, "a": 9}))
    with path.open("a") as log:
        log.write(jsonl({"epoch": 2, "a": 22}, {"epoch": 3, "a": 3}, {"epoch": 4, "a": math.nan}, {"epoch": 8, "a": 8}))
        log.write('{"epoch": 9, "a"')
    table = read_metrics(path)
    epochs, values = table.series("a")
    assert epochs.tolist() == [1, 2, 3, 8]
    assert values.tolist() == [1, 22, 3, 8]
    notes = "; ".join(table.notes)
    for said in ("line 8 is torn", "out of order", "2 epochs were logged more than once", "between epoch 4 and 8"):
        assert said in notes


@pytest.mark.parametrize(
    ("name", "text", "error", "says"),
    [
        ("metrics.jsonl", '{"epoch": 1}\nrubbish\n{"epoch": 2}\n', LoadError, "line 2 is no JSON"),
        ("metrics.jsonl", "[1, 2]\n", LoadError, "line 1 is no JSON object"),
        ("metrics.jsonl", "", DataError, "no row with an epoch"),
        ("log.csv", "epoch,acc\n1,2\n3\n", LoadError, "line 3: 1 cells, the header has 2"),
        ("log.csv", "round,acc\n1,2\n", DataError, "needs a column 'epoch'"),
        ("trainer_state.json", "{}", LoadError, "no 'log_history'"),
        ("trainer_state.json", "{", LoadError, "is no JSON"),
        (
            "log.csv",
            'epoch,acc\n1,"2\n' + "3,4\n" * 40_000,
            LoadError,
            r"log\.csv line \d+: field larger than field limit",
        ),
        ("log.csv", '"epoch,acc\n' + "3,4\n" * 40_000, LoadError, r"log\.csv line \d+: field larger than field limit"),
        ("metrics.jsonl", '{"epoch": 1}\n{"epoch": ' + "[" * 200_000 + "\n", LoadError, "line 2 is no JSON"),
        ("metrics.jsonl", '{"epoch": ' + "1" * 5000 + "}\n", LoadError, "line 1 is no JSON: Exceeds the limit"),
        ("trainer_state.json", "[" * 200_000, LoadError, "is no JSON"),
        ("trainer_state.json", '{"epoch": ' + "1" * 5000 + "}", LoadError, "is no JSON: Exceeds the limit"),
        ("log.txt", "epoch 1", LoadError, "unknown kind of log '.txt'"),
    ],
)
def test_what_is_no_log_is_named(tmp_path: Path, name: str, text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read_metrics(write(tmp_path, name, text))


def test_missing_and_empty_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="does not exist"):
        read_metrics(tmp_path / "none.csv")
    with pytest.raises(LoadError, match="holds no training log"):
        read_metrics(tmp_path)
    binary = tmp_path / "log.csv"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(LoadError, match="cannot read"):
        read_metrics(binary)


def test_csv_with_gaps_words_and_empty_cells(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", "Epoch, acc ,phase\n3,30,main\n1,,main\n2,20,main\n,5,x\n\n")
    table = read_metrics(path)
    assert table.epochs.tolist() == [1, 2, 3]
    assert list(table.columns) == ["acc"]
    assert table.series("acc")[1].tolist() == [20, 30]
    with pytest.raises(DataError, match="did you mean 'acc'"):
        table.series("ac")
    assert table.until(2).epochs.tolist() == [1, 2]
    with pytest.raises(DataError, match="begins at epoch 1"):
        table.until(0.5)


def test_trainer_state_joins_training_and_evaluation_rows(tmp_path: Path) -> None:
    history = [
        {"epoch": 0.5, "loss": 2.0, "learning_rate": 5e-5, "step": 50},
        {"epoch": 1.0, "loss": 1.0, "learning_rate": 4e-5, "step": 100},
        {"epoch": 1.0, "eval_accuracy": 0.7, "step": 100},
        {"epoch": 2.0, "eval_accuracy": 0.8, "step": 200},
    ]
    write(tmp_path, "trainer_state.json", json.dumps({"log_history": history, "best_metric": None}))
    table = read_metrics(tmp_path)
    assert table.series("eval_accuracy")[0].tolist() == [1.0, 2.0]
    rate = table.rate()
    assert rate is not None and rate.tolist() == [5e-5, 4e-5, 4e-5]
    assert table.notes == ()


@pytest.mark.parametrize("with_epoch", [True, False])
def test_tensorboard_events(tmp_path: Path, with_epoch: bool) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path))
    for step in (100, 200, 300):
        values = {"val/acc": step / 10, **({"epoch": step / 100} if with_epoch else {})}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_event(Event(step=step, wall_time=float(step), summary=summary))
    writer.close()
    table = read_metrics(tmp_path)
    epochs, accuracy = table.series("val/acc")
    assert np.allclose(accuracy, [10, 20, 30])
    assert epochs.tolist() == ([1, 2, 3] if with_epoch else [100, 200, 300])
    assert bool(table.notes) is not with_epoch


def test_no_finite_value_is_an_error(tmp_path: Path) -> None:
    table = read_metrics(write(tmp_path, "log.csv", "epoch,acc\n1,nan\n2,inf\n"))
    with pytest.raises(DataError, match="no finite value"):
        table.series("acc")

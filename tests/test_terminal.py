"""What the terminal writes, and where: plain lines on a pipe, levels of talk, numbers with their units."""

from __future__ import annotations

import json

import pytest

from edgekit.terminal import Terminal, human_bytes, human_count, percent, print_json


@pytest.mark.parametrize(
    ("verbosity", "said"), [(-1, {"warn"}), (0, {"warn", "say", "head"}), (1, {"warn", "say", "head", "detail"})]
)
def test_levels_of_talk(verbosity: int, said: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(verbosity)
    terminal.say("say")
    terminal.heading("head")
    terminal.detail("detail")
    terminal.warn("warn")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert set(captured.err.replace("warning: ", "").split()) == said


def test_names_with_brackets_are_text_and_long_lines_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().say("a [red] class " + "x" * 300)
    assert capsys.readouterr().err == "a [red] class " + "x" * 300 + "\n"


def test_a_table_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().table(("file", "ms"), (("a [1].onnx", "1.25"), ("b", "30.00")), title="Latency")
    lines = capsys.readouterr().err.splitlines()
    assert "Latency" in lines[0]
    assert any("a [1].onnx" in line and line.rstrip().endswith("1.25") for line in lines)
    Terminal(-1).table(("file",), (("a",),))
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_pipe_is_one_line_when_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().bar("reading", 7) as advance:
        advance(7)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.startswith("reading: 7 in ")
    with Terminal(-1).bar("reading", 7) as advance:
        advance(7)
    assert capsys.readouterr().err == ""


def test_json_carries_its_kind_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("bench", {"rows": [1, 2]})
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "kind": "bench", "rows": [1, 2]}


def test_numbers_have_units() -> None:
    assert [human_bytes(size) for size in (999, 1500, 3.81e6, 2.5e9)] == ["1.0 kB", "1.5 kB", "3.81 MB", "2.50 GB"]
    assert [human_count(count) for count in (12, 1500, 1.12e6, 4.2e9)] == ["12", "1.50 k", "1.12 M", "4.20 G"]
    assert percent(0.75284) == "75.28 %"

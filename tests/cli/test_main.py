"""The command line as a process: start-up, exit codes, what goes to which stream, Ctrl-C, a full disk."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edgekit.cli.main import COMMANDS, run
from tests.cli.commands_for_tests import ALONE, SMALL, call, draw_colours, one_error_line, start

HELP_SECONDS = 0.25


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_colours(tmp_path_factory.mktemp("colours") / "data")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_starts_fast() -> None:
    best = float("inf")
    for _ in range(25):  # other processes may be busy: the best of several counts
        started = time.perf_counter()
        code, out, _ = call("--help")
        best = min(best, time.perf_counter() - started)
        assert code == 0
        assert all(name in out for name in COMMANDS)
        if best < HELP_SECONDS:
            return
    pytest.fail(f"edgekit --help takes {best:.3f} s")


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from edgekit.cli.main import COMMANDS, run\n"
        "assert run(['--help']) == 0\n"
        "light = set(sys.modules)\n"
        "assert all(run([name, '--help']) == 0 for name in COMMANDS)\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'coremltools', 'litert_torch', 'timm', 'open_clip', 'matplotlib'}\n"
        "slow = heavy | {'numpy', 'PIL', 'rich', 'yaml', 'pydantic', 'importlib.metadata'}\n"
        "print(sorted(heavy & set(sys.modules)), sorted(slow & light))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] []"


def test_without_a_command_the_help_is_shown() -> None:
    code, out, err = call()
    assert code == 2
    assert "Commands:" in out + err


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    code, out, _ = call("--version")
    assert (code, out.strip()) == (0, f"edgekit, version {version('edgekit')}")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["distil"], 2, "there is no command 'distil'; did you mean 'distill'?"),
        (["distill"], 2, "Missing option '--data'"),
        (["distill", "--data", "nowhere"], 2, "no teacher given"),
        (["distill", "--data", "nowhere", *ALONE], 2, "cannot read the data set nowhere"),
        (["distill", "--data", "x", "--epohcs", "3"], 2, "--epochs"),
        (["distill", "--data", "x", "--epochs", "many"], 2, "'many' is not a valid integer"),
        (["distill", "--data", "x", "-q", "-v"], 2, "exclude each other"),
        (["distill", "--data", "x", "--recipe", "edg"], 2, "did you mean 'edge'?"),
        (["distill", "--data", "x", "--lr", "-1"], 2, "fit.lr"),
        (["distill", "--data", "x", *ALONE, "--gamma", "0"], 2, "there is no loss"),
        (["forecast", "nowhere.csv"], 3, "nowhere.csv"),
    ],
)
def test_wrong_use_is_one_message_and_an_exit_code(
    args: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(args) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_reach_the_shell(data: Path, tmp_path: Path) -> None:
    code, out, err = call("distil")
    assert (code, out) == (2, "")
    assert "did you mean 'distill'?" in one_error_line(err)
    code, out, err = call("distill", "--data", data, *SMALL, "--teacher", tmp_path / "missing.onnx", cwd=tmp_path)
    assert (code, out) == (3, "")
    assert "missing.onnx is not there" in one_error_line(err)
    assert list(tmp_path.iterdir()) == []


def test_json_alone_goes_to_standard_output_and_an_output_is_not_replaced(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("distill", "--data", data, *SMALL, *ALONE, "--epochs", 1, "-o", tmp_path / "run")
    code, out, err = call(*args, "--json")
    assert code == 0
    result = json.loads(out, parse_constant=pytest.fail)
    assert result["schema_version"] == 1
    assert result["kind"] == "distill"
    assert result["summary"]["best_epoch"] == 1
    assert "Summary" in err
    assert "\x1b" not in err  # a pipe gets no colours
    before = files_of(tmp_path)
    assert run([*map(str, args)]) == 2
    assert "exists already" in one_error_line(capsys.readouterr().err)
    assert files_of(tmp_path) == before  # nothing lost, nothing left behind


def test_quiet_says_nothing_when_all_is_well(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["distill", "--data", str(data), *SMALL, *ALONE, "--epochs", "1", "-q", "-o", str(tmp_path / "run")]) == 0
    )
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def on_a_terminal(code: str, **environment: str) -> str:
    """Run Python code with standard error on a real pseudo-terminal and return what it shows."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(follower)
    shown = b""
    with suppress(OSError):  # which is how Linux says that the other side is closed
        while block := os.read(leader, 65536):
            shown += block
    os.close(leader)
    assert process.wait(timeout=60) == 0, shown.decode()
    return shown.decode()


SHOW = """
from edgekit.terminal import Terminal
from edgekit.compress.show.progress import TrainingDisplay
Terminal().warn("careful [not] markup")
display = TrainingDisplay(Terminal())
display.start(2, 10)
display.step(1, 64, 0.5)
display.finish()
with Terminal().bar("reading pictures", 10) as advance:
    advance(4)
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-8]|9[0-7])[0-9;]*m")


def test_colours_and_bars_on_a_terminal_unless_no_color() -> None:
    coloured, plain = on_a_terminal(SHOW, NO_COLOR=""), on_a_terminal(SHOW, NO_COLOR="1")
    assert COLOUR.search(coloured)
    assert not COLOUR.search(plain)
    for shown in (coloured, plain):
        assert "careful [not] markup" in shown
        assert "images/s  loss 0.500" in shown
        assert "reading pictures" in shown


def test_a_pipe_gets_plain_lines() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert done.stderr.splitlines()[0] == "warning: careful [not] markup"
    assert done.stderr.splitlines()[1].startswith("reading pictures: 10 in ")


def epoch_rows(metrics: Path) -> list[int]:
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row["epoch"] for row in rows if row["kind"] == "epoch"]


def test_ctrl_c_ends_with_130_and_the_run_can_be_continued(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = ("distill", "--data", str(data), *SMALL, *ALONE, "-o", str(out))
    process = start(*settings, "--epochs", 5000)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") >= 2):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no epoch was finished"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "error" not in err.strip().splitlines()[-1]
    done = len(epoch_rows(metrics))
    assert not [path for path in out.rglob(".*") if path.is_file()]  # no temporary file left behind
    shorter = (*settings, "--epochs", str(done + 1), "--resume", "-q")
    assert run([*shorter]) == 2
    assert "fit.epochs was 5000" in capsys.readouterr().err  # a cosine over fewer epochs is another schedule
    assert run([*shorter, "--allow-change", "schedule"]) == 0
    assert epoch_rows(metrics) == list(range(1, done + 2))


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("distill", "--data", str(data), *SMALL, *ALONE, "-o", str(tmp_path / "run"))
    assert run([*settings, "--epochs", "1", "-q"]) == 0
    before = files_of(tmp_path / "run")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    longer = ["--epochs", "3", "--resume", "--allow-change", "schedule"]
    for arguments in (longer, ["--epochs", "1", "-o", str(tmp_path / "other")]):
        capsys.readouterr()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            code = run([*settings, *arguments])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        captured = capsys.readouterr()
        assert (code, captured.out) == (3, "")
        line = one_error_line(captured.err)
        assert "cannot write" in line
        assert "File too large" in line
    after = files_of(tmp_path / "run")
    kept = [name for name in before if name.endswith((".safetensors", ".pt", "manifest.json"))]
    assert len(kept) >= 3
    for name in kept:
        assert after[name] == before[name]
    assert not (tmp_path / "other" / "student.safetensors").exists()


def test_a_settings_file_gives_what_the_flags_do_not(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"data: {data}\nstudent: test_byobnet\nimgsz: 32\nepochs: 3\nbatch_size: 16\nalpha: 0\nbeta: 0\n"
        f"template: a {{}} thing.\njson: true\noutput: {tmp_path / 'run'}\nlr:\n",
        encoding="utf-8",
    )
    assert run(["distill", "--config", str(file), "--epochs", "1", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["student"]["image_size"] == 32
    config = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "epochs: 1\n" in config  # the flag wins
    assert "batch_size: 16\n" in config
    assert "- a {} thing." in config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epohcs: 3", "'epohcs' is not an option of distill; did you mean 'epochs'?"),
        ("epochs: many", "'many' is not a valid integer"),
        ("epochs: [", "cannot be read"),
        ("- epochs", "holds no settings"),
        ("config: other.yaml", "'config' is not an option"),
    ],
)
def test_a_wrong_settings_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert run(["distill", "--data", "x", "--config", str(tmp_path / "mine.yaml")]) == 2
    assert words in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = start("--help")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0

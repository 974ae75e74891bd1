"""bench --store, compare and report as a user calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bench.store import add_run
from tests.bench.reports_for_tests import made_report, sustained
from tests.bench.tiny_for_tests import draw, write_bundle, write_classifier
from tests.cli.commands_for_tests import call, one_error_line


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, factor in zip(paths, (1.0, 1.3), strict=True):
        path.write_text(json.dumps(made_report(model_factor=factor).to_json()))
    return paths


def run_folder(path: Path) -> Path:
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"schema_version": 1, "student": {"arch": "mobilevit_xxs"}}))
    rows = [{"kind": "epoch", "epoch": n, "loss": 3.0 / n, "val_acc": 0.1 * n, "lr": 0.1} for n in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bench_keeps_a_history_that_compare_reads(tmp_path: Path) -> None:
    model, data = write_classifier(tmp_path / "model.onnx"), draw(tmp_path / "data")
    store = tmp_path / "results.sqlite"
    for number in (1, 2):
        code, _, err = call("bench", model, "--data", data, "--budget", "0.5", "--store", store)
        assert code == 0, err
        assert f"run {number} of" in err
    code, out, err = call("compare", f"{store}#latest~1", store, "--json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert row["sha256"][0] == row["sha256"][1]
    assert row["accuracy"]["paired"] and row["accuracy"]["verdict"] == "inconclusive"
    assert "bare times of two runs" in " ".join(err.split())
    code, out, err = call("compare", store, "--json")
    assert [run["id"] for run in json.loads(out)["runs"]] == [2, 1]


def test_bench_without_pictures_reports_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "empty" / "val" / "cats").mkdir(parents=True)
    model = write_classifier(tmp_path / "model.onnx")
    code, out, err = call("bench", model, "--data", tmp_path / "empty", "--budget", "0.3", "--json")
    assert code == 1
    content = json.loads(out)
    assert content["rows"][0]["latency"] is not None and content["problems"]
    assert "no accuracy" in err and "Traceback" not in err


def test_compare_says_what_is_sure(results: tuple[Path, Path]) -> None:
    code, _, err = call("compare", *results)
    assert code == 0
    assert "slower" in err and "relative to student" in " ".join(err.split())
    assert call("compare", *results, "--fail-on-regression")[0] == 1
    assert call("compare", results[1], results[0], "--fail-on-regression")[0] == 0


def test_compare_refuses_what_is_no_result(results: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "other.json").write_text('{"schema_version": 7}')
    for name, expected, words in (
        ("gone.json", 3, "cannot be read"),
        ("text.json", 3, "is not JSON"),
        ("other.json", 2, "schema_version is 7"),
        ("gone.sqlite#2", 3, "is not there"),
    ):
        code, _, err = call("compare", results[0], tmp_path / name)
        assert (code, words in one_error_line(err)) == (expected, True), err
    assert call("compare", results[0])[0] == 2
    assert call("compare", *results, results[0])[0] == 2


def test_report_is_one_file(results: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "model.onnx")])
    (bundle / "model.onnx").write_bytes(b"damaged")
    store, out = tmp_path / "results.sqlite", tmp_path / "report.html"
    add_run(store, made_report())
    run = run_folder(tmp_path / "run <b>")
    code, text, err = call("report", results[0], store, run, bundle, "-o", out, "--plots", tmp_path / "plots", "--json")
    assert code == 0, err
    page = out.read_text()
    assert "Training of run &lt;b&gt;" in page and "run <b>" not in page
    assert "What the files really are" in page and 'class="prose failed"' in page, "a damaged file is told"
    assert len(json.loads(text)["plots"]) >= 6
    assert (tmp_path / "plots" / "latency.png").is_file()
    code, _, err = call("report", results[0], "-o", out)
    assert code == 2 and "--overwrite" in one_error_line(err)


def test_report_as_markdown_is_a_table(results: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = call("report", results[0], run_folder(tmp_path / "run"), "--markdown")
    assert code == 0, err
    assert out.startswith("| model | precision |") and "| student |" in out
    assert call("report", tmp_path / "run", "--markdown")[0] == 2


def test_report_of_something_else_says_what_it_takes(tmp_path: Path) -> None:
    code, _, err = call("report", tmp_path, "-o", tmp_path / "r.html")
    assert code == 2 and "neither a run folder" in one_error_line(err)
    (tmp_path / "run.json").write_text("[1]")
    code, _, err = call("report", tmp_path, "-o", tmp_path / "r.html")
    assert code == 3 and "does not hold a mapping" in one_error_line(err)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a headless Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_sideways_scrolling(tmp_path: Path, width: int) -> None:
    """The page itself must not scroll sideways; its tables may, inside of themselves."""
    from edgekit.bench.page import render_page
    from edgekit.bench.report import build_page

    report = replace(made_report(model="a_rather_long_name_of_a_file_that_goes_on_int8_per_channel.onnx"))
    (tmp_path / "report.html").write_text(render_page(build_page("Report " + "x" * 80, [report], [], [])))
    frame = f'<body><iframe id="f" src="report.html" style="width:{width}px;height:900px"></iframe>'
    script = "f.onload=()=>{let d=f.contentDocument.documentElement;document.title=d.scrollWidth+' '+d.clientWidth}"
    (tmp_path / "frame.html").write_text(f"{frame}<script>{script}</script>")
    done = subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=5000",
         "--dump-dom", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    wide, seen = done.stdout.partition("<title>")[2].partition("</title>")[0].split()
    assert int(wide) <= int(seen)


def test_a_result_whose_times_are_zero_is_shown(tmp_path: Path) -> None:
    """A browser's clock may be too coarse for a small model."""
    report = made_report()
    row = replace(report.rows[0], sustained=replace(sustained(1.0), at_s=(1.0, 2.0), p50_s=(0.0, 0.0)))
    assert row.latency is not None
    row = replace(row, latency=replace(row.latency, p50_s=0.0))
    result = tmp_path / "zero.json"
    name = row.name
    samples = dict(report.samples)
    samples[name] = replace(samples[name], nanoseconds=tuple(tuple(0 for _ in r) for r in samples[name].nanoseconds))
    result.write_text(json.dumps(replace(report, rows=(row, *report.rows[1:]), samples=samples).to_json()))
    code, _, err = call("report", result, "-o", tmp_path / "page.html")
    assert code == 0, err

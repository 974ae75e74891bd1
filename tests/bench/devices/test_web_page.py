"""The page in a real browser: both runtimes run a bundle, prove it and time it; what goes wrong is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from whole_path_for_tests import WholePath

from edgekit.bench.devices.web.address import WebAddress
from edgekit.bench.devices.web.device import WebDevice
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.results import BenchReport, BenchRow
from edgekit.bench.run import BenchConfig
from edgekit.bench.store import add_run, select_run
from edgekit.errors import LoadError, UsageError
from tests.bench.devices.chromium_for_tests import Chromium, Tab, needed_for_the_page
from tests.bench.tiny_for_tests import draw, write_classifier

QUICK = LatencyConfig(min_rounds=5, min_time_s=0.0, max_time_s=4.0, target_halfwidth=10.0)
HERE = WebAddress(host="127.0.0.1")


class Bench:
    """A bench run in a thread of its own, and the address that it shows."""

    def __init__(self, config: BenchConfig, address: WebAddress = HERE) -> None:
        needed_for_the_page()
        self.said: list[str] = []
        self._shown = threading.Event()
        self._report: BenchReport | None = None
        self._error: Exception | None = None
        self._config = config
        self._device = WebDevice(address, self._say, patience_s=60.0)
        self._progress: Callable[[str, int], Any] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, progress: Callable[[str, int], Any] | None = None) -> str:
        """Begin, and return the page's address."""
        self._progress = progress
        self._thread.start()
        assert self._shown.wait(60), self._error
        return next(line for line in self.said if line.startswith("http"))

    def report(self) -> BenchReport:
        """Wait for the end."""
        self._thread.join(120)
        assert not self._thread.is_alive(), "the bench does not end"
        assert self._report is not None, self._error
        return self._report

    def _say(self, line: str) -> None:
        self.said.append(line)
        if line.startswith("http"):
            self._shown.set()

    def _run(self) -> None:
        try:
            self._report = self._device.bench(self._config, self._progress)
        except Exception as e:
            self._error = e
        self._shown.set()


def _by_name(report: BenchReport) -> dict[str, BenchRow]:
    return {row.name: row for row in report.rows}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


def test_both_runtimes_run_a_bundle_and_the_page_shows_it(
    whole_path: WholePath, chromium: Chromium, tmp_path: Path
) -> None:
    bench = Bench(BenchConfig((whole_path.bundle,), latency=QUICK))
    url = bench.start()
    tab = chromium.open(url)
    tab.wait_for("document.body.classList.contains('done')")
    report = bench.report()

    rows = _by_name(report)
    assert set(rows) == {f"model.{p}.{f}" for p in ("fp32", "int8") for f in ("onnx", "tflite")}
    assert report.complete, report.failed
    for name, row in rows.items():
        assert row.parity is not None and row.parity.images == 8, name
        least_db = 80 if "fp32" in name else 10  # the gates of the two precisions
        assert row.parity.snr_db is not None and row.parity.snr_db > least_db, name
        assert row.latency is not None and row.cold is not None and row.runtime is not None, name
        assert row.precision == name.split(".")[1]
        raw = report.samples[name]
        assert len(raw.rounds) >= 5 and min(min(visit) for visit in raw.nanoseconds) > 10_000, name
    assert rows["model.fp32.onnx"].runtime.runtime == "onnxruntime-web"  # type: ignore[union-attr]
    assert rows["model.fp32.tflite"].runtime.runtime == "LiteRT.js"  # type: ignore[union-attr]
    assert report.samples["model.fp32.onnx"].rounds == report.samples["model.int8.tflite"].rounds, "interleaved"
    assert rows["model.int8.tflite"].speedup is not None
    assert report.device.startswith("web: Chrome")
    assert any("mlpackage" in note for note in report.notes), "what no browser runs is named"

    shown = tab.text()
    assert "Done" in shown and all(name in shown for name in rows)
    hosts = {event["request"]["url"].split("/")[2] for event in chromium.events("Network.requestWillBeSent")}
    assert hosts - {""} == {url.split("/")[2]}, "nothing is asked of anyone else"
    for width, height in ((390, 844), (1280, 800)):
        for scheme in ("light", "dark"):
            tab.show_at(width, height, scheme)
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
            tab.screenshot(tmp_path / f"{width}-{scheme}.png")
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(20, 23, 27)"

    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    add_run(tmp_path / "results.sqlite", report)
    assert select_run(tmp_path / "results.sqlite", "device=web: Chrome") == report
    tab.close()


def test_https_isolates_the_page_and_pictures_are_judged_there(tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "colours.onnx", batch="n")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model at all")
    config = BenchConfig((model, broken), data=draw(tmp_path / "data"), latency=QUICK, batch_size=4, duration_s=0.5)
    bench = Bench(config, WebAddress("https", "127.0.0.1"))
    url = bench.start()
    assert url.startswith("https://127.0.0.1:")
    with Chromium("--ignore-certificate-errors") as trusting:
        tab = trusting.open(url)
        tab.wait_for("document.body.classList.contains('done')")
        assert tab.evaluate("crossOriginIsolated && isSecureContext")
        assert "1 of 2 failed" in tab.text()
        report = bench.report()
    good, bad = report.rows
    assert good.top1 is not None and good.top1.value == 1.0
    assert good.throughput is not None and good.throughput.batch == 4
    assert good.sustained is not None and good.sustained.calls > 20
    assert good.parity is None and bad.failure is not None
    assert not report.complete


def test_a_page_opened_twice_tells_the_second(chromium: Chromium, tmp_path: Path) -> None:
    bench = Bench(BenchConfig((write_classifier(tmp_path / "model.onnx"),), latency=QUICK))
    url = bench.start()
    first = chromium.open(url)
    first.wait_for("!document.getElementById('phase').textContent.startsWith('Connecting')")
    second = chromium.open(url)
    second.wait_for("document.body.classList.contains('over')")
    assert "in use in another page, or was used already" in second.text()
    first.wait_for("document.body.classList.contains('done')")
    assert bench.report().complete, "the first is not disturbed"
    first.close()
    second.close()


def test_a_page_closed_while_it_measures_fails_what_was_not_measured(chromium: Chromium, tmp_path: Path) -> None:
    config = BenchConfig(
        tuple(write_classifier(tmp_path / f"{name}.onnx") for name in ("first", "second")), latency=QUICK
    )
    bench = Bench(config)
    tabs: list[Tab] = []

    @contextmanager
    def close_while_timing(description: str, total: int) -> Iterator[Callable[[int], None]]:
        if description.startswith("latency"):
            closing = threading.Timer(0.5, lambda: tabs[0].close())
            closing.start()
            yield lambda count: None
            closing.join()
        else:
            yield lambda count: None

    url = bench.start(close_while_timing)
    tabs.append(chromium.open(url))
    report = bench.report()
    for row in report.rows:
        assert row.cold is not None, "what was found before is kept"
        assert row.failure is not None and "the browser went away: its page was closed" in row.failure
    assert not report.complete


def test_nobody_comes(tmp_path: Path) -> None:
    needed_for_the_page()
    device = WebDevice(HERE, lambda line: None, patience_s=0.3)
    with pytest.raises(LoadError, match="no browser opened the page"):
        device.bench(BenchConfig((write_classifier(tmp_path / "model.onnx"),)))


def test_a_pytorch_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs on this machine alone"):
        WebDevice(HERE, lambda line: None).bench(BenchConfig((), baseline=tmp_path))

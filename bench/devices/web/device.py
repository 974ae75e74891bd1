"""`--device web`: show an address, wait for a browser, and measure in it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from edgekit.bench.accuracy import Progress
from edgekit.bench.devices.device import Say
from edgekit.bench.devices.web.address import WebAddress, qr_code
from edgekit.bench.devices.web.assets import read_assets, runtime_versions
from edgekit.bench.devices.web.browser import CLOCK_STEPS, BrowserPlace
from edgekit.bench.devices.web.certificate import self_signed
from edgekit.bench.devices.web.exchange import Exchange
from edgekit.bench.devices.web.facts import Browser
from edgekit.bench.devices.web.server import PageServer
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.errors import LoadError, UsageError


@dataclass(frozen=True)
class WebDevice:
    """Any browser on the local network: onnxruntime-web for .onnx, LiteRT.js for .tflite.

    Attributes:
        address: where the page is served.
        say: shows the page's address.
        patience_s: how long to wait for a browser.
    """

    address: WebAddress
    say: Say
    patience_s: float = 600.0

    def bench(self, config: BenchConfig, progress: Progress | None = None) -> BenchReport:
        """Measure in the first browser that opens the page; see `Device`."""
        if config.baseline is not None:
            raise UsageError(
                "--baseline is a PyTorch student, which runs on this machine alone; leave it out, and speed-ups refer "
                "to the first file"
            )
        bar = progress or (lambda description, total: nullcontext(lambda count: None))
        tls = self_signed(self.address.shown) if self.address.scheme == "https" else None
        with PageServer(self.address.listen, self.address.port, read_assets(), tls) as server:
            self._invite(self.address.url(server.port, server.token))
            with bar("waiting for a browser to open the page", 1) as advance:
                browser = Browser.of(server.exchange.wait_for_page(self.patience_s))
                advance(1)
            self.say(f"measuring in {browser.name} on {browser.system}; leave its page open and in front")
            place = BrowserPlace(server.exchange, browser, config.threads, config.files, runtime_versions())
            fitted = replace(config, latency=_for_clock(config.latency, browser.clock_s))
            _plan(server.exchange, fitted)
            try:
                report = run_bench(fitted, progress, place)
            except BaseException:
                _end(server.exchange, [], "The bench was ended on the computer.")
                raise
            _end(server.exchange, summary(report), None)
        return report

    def _invite(self, url: str) -> None:
        code = qr_code(url)
        self.say("Open this page on the device to measure, in the same network; the address works once:")
        if code is None:
            self.say("(pip install 'edgekit[web]' to see it as a QR code as well)")
        else:
            self.say(code)
        self.say(url)
        if self.address.scheme == "http":
            self.say(
                "Over http browsers give no WebGPU, no fine clock and do not keep the screen on; --device web:https "
                "has them, after a warning in the browser that can be passed."
            )


def summary(report: BenchReport) -> list[dict[str, Any]]:
    """Return what the page shows at the end, a mapping for each model."""
    return [
        {
            "name": row.name,
            "provider": row.runtime.provider if row.runtime else None,
            "p50_ms": None if row.latency is None else 1e3 * row.latency.p50_s,
            "p90_ms": None if row.latency is None else 1e3 * row.latency.p90_s,
            "speedup": None if row.speedup is None else row.speedup.interval.value,
            "verdict": None if row.speedup is None else row.speedup.verdict,
            "baseline": row.name == report.baseline,
            "parity_db": None if row.parity is None else row.parity.snr_db,
            "proven": row.parity is not None,
            "failure": row.failure,
        }
        for row in report.rows
    ]


def _for_clock(latency: LatencyConfig | None, clock_s: float) -> LatencyConfig | None:
    """Have samples last long enough for a coarse clock."""
    if latency is None:
        return None
    window_s = max(latency.window_s, CLOCK_STEPS * clock_s)
    return replace(latency, window_s=window_s, visit_s=max(latency.visit_s, latency.min_calls * window_s))


def _plan(exchange: Exchange, config: BenchConfig) -> None:
    """Tell the page what will come, for its words and its progress."""
    with suppress(LoadError):  # found gone, the candidates say so
        exchange.ask(
            {
                "do": "plan",
                "files": [path.name for path in config.files],
                "budget_s": config.latency.max_time_s if config.latency else 0,
                "threads": config.threads,
            },
            b"",
            60.0,
        )


def _end(exchange: Exchange, rows: Sequence[dict[str, Any]], said: str | None) -> None:
    with suppress(LoadError):  # gone is gone
        exchange.ask({"do": "end", "rows": list(rows), "said": said}, b"", 10.0)

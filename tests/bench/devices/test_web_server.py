"""What the page's server gives, and to whom; what it makes of answers that no page of ours sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.devices.web import assets as assets_module
from edgekit.bench.devices.web.address import WebAddress, qr_code
from edgekit.bench.devices.web.assets import Asset, read_assets
from edgekit.bench.devices.web.browser import BrowserPlace
from edgekit.bench.devices.web.exchange import Exchange, TakenError
from edgekit.bench.devices.web.facts import Browser
from edgekit.bench.devices.web.server import CLIENT_HEADER, PageServer
from edgekit.bench.latency import LatencyConfig
from edgekit.bench.results import BenchReport
from edgekit.bench.run import BenchConfig, run_bench
from edgekit.errors import LoadError, UsageError
from tests.bench.tiny_for_tests import SIZE, write_bundle, write_classifier

ASSETS = {"": Asset(b"<html>", "text/html", gzipped=False), "page.js": Asset(b"\x1f\x8b", "text/javascript", True)}
FACTS = {
    "agent": "Mozilla/5.0 (Linux; Android 14) Test/1.0", "system": "Linux; Android 14", "name": "Test 1", "cores": 8,
    "memory": 4, "clock_s": 1e-4, "gpu": None, "isolated": False,
}  # fmt: skip
QUICK = LatencyConfig(min_rounds=3, min_time_s=0.0, max_time_s=1.0, target_halfwidth=10.0)


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer("127.0.0.1", 0, ASSETS) as running:
        yield running


def _ask(
    server: PageServer, method: str, path: str, body: bytes | None = None, client: str = "me", length: str | None = None
) -> tuple[int, bytes, Mapping[str, str]]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {CLIENT_HEADER: client} | ({"Content-Length": length} if length is not None else {})
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_page_is_served_to_who_has_the_token(server: PageServer) -> None:
    status, content, headers = _ask(server, "GET", f"/{server.token}/")
    assert (status, content) == (200, b"<html>")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    status, _, headers = _ask(server, "GET", f"/{server.token}/page.js?gpu")
    assert status == 200 and headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/wrong/", "/wrong/page.js", "/%2e%2e/", "//"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_the_token_nothing_is_told(server: PageServer, path: str, method: str) -> None:
    status, content, _ = _ask(server, method, path, b"{}" if method == "POST" else None)
    assert status == 403 and b"not valid" in content


@pytest.mark.parametrize(
    "name",
    ["../server.py", "..%2fserver.py", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "npm-runtimes/ort.js.gz", "page.JS"],
)
def test_no_path_leads_out_of_the_table(server: PageServer, name: str) -> None:
    assert _ask(server, "GET", f"/{server.token}/{name}")[0] == 404


def test_a_second_page_and_a_stranger_are_refused(server: PageServer) -> None:
    token = server.token
    assert _ask(server, "POST", f"/{token}/next", b'{"id": 0}\n')[0] == 409, "not let in yet"
    assert _ask(server, "POST", f"/{token}/hello", json.dumps(FACTS).encode())[0] == 204
    assert _ask(server, "POST", f"/{token}/hello", json.dumps(FACTS).encode(), client="other")[0] == 409
    assert _ask(server, "POST", f"/{token}/next", b'{"id": 0}\n', client="other")[0] == 409
    assert _ask(server, "POST", f"/{token}/bye", b'{"client": "other"}')[0] == 409
    assert server.exchange.gone is None
    assert _ask(server, "POST", f"/{token}/hello", json.dumps(FACTS).encode())[0] == 409
    assert server.exchange.gone == "its page was loaded anew"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 10_000])
def test_what_no_page_sends_is_refused(server: PageServer, body: bytes) -> None:
    assert _ask(server, "POST", f"/{server.token}/hello", body)[0] == 400
    _ask(server, "POST", f"/{server.token}/hello", json.dumps(FACTS).encode())
    assert _ask(server, "POST", f"/{server.token}/next", body)[0] == 400
    assert _ask(server, "POST", f"/{server.token}/bye", body)[0] == 400
    assert _ask(server, "POST", f"/{server.token}/what", body)[0] == 404


@pytest.mark.parametrize("length", ["99999999999", "-1", "1e3", "²"])
def test_a_body_of_an_impossible_length_is_refused(server: PageServer, length: str) -> None:
    given = length.encode("utf-8").decode("latin-1")
    assert _ask(server, "POST", f"/{server.token}/hello", b"", length=given)[0] == 413


class _ScriptedPage:
    """A page in Python that answers as a test wants."""

    def __init__(self, server: PageServer, answers: Mapping[str, Any]) -> None:
        self._server, self._answers = server, answers
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.asked: list[str] = []
        assert _ask(server, "POST", f"/{server.token}/hello", json.dumps(FACTS).encode())[0] == 204
        self._thread.start()

    def _work(self) -> None:
        with suppress(OSError, HTTPException):  # the server is closed when the test is over
            self._answer()

    def _answer(self) -> None:
        body = b'{"id": 0, "poll": true}\n'
        while True:
            status, content, _ = _ask(self._server, "POST", f"/{self._server.token}/next", body)
            if status != 200:
                return
            line, _, _ = content.partition(b"\n")
            request = json.loads(line)
            self.asked.append(request["do"])
            answer = self._answers.get(request["do"], {})
            if answer is None:  # closes
                _ask(self._server, "POST", f"/{self._server.token}/bye", b'{"client": "me"}')
                return
            reply, extra = answer if isinstance(answer, tuple) else (answer, b"")
            body = json.dumps({"id": request["id"], **reply}).encode() + b"\n" + extra


OPENED = {"input_shape": [1, 3, SIZE, SIZE], "provider": "WASM", "cold_s": [0.1, 0.01, 0.01], "call_s": 0.01}


def _run(server: PageServer, bundle: Path, answers: Mapping[str, Any]) -> tuple[BenchReport, _ScriptedPage]:
    page = _ScriptedPage(server, {"open": OPENED, "visit": {"ns": [5_000_000] * 3}, **answers})
    browser = Browser.of(server.exchange.wait_for_page(5))
    place = BrowserPlace(server.exchange, browser, 1, (), {"onnx": "1.0", "tflite": "2.0"})
    config = replace(QUICK, min_calls=3, max_calls=3)
    return run_bench(BenchConfig((bundle,), latency=config), None, place), page


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"open": {"error": "no such operator\x1b[31m: Frobnicate"}}, "no such operator"),
        ({"open": {**OPENED, "input_shape": [1, 3, 1 << 40, 1]}}, "no picture of a usual size"),
        ({"open": {**OPENED, "input_shape": "abc"}}, "does not tell what it opened"),
        ({"open": {}}, "does not tell what it opened"),
        ({"visit": {"ns": [5, 5]}}, "timings make no sense"),
        ({"visit": {"ns": [5_000_000, -1, 5]}}, "timings make no sense"),
        ({"visit": {"ns": ["a", "b", "c"]}}, "timings make no sense"),
        ({"visit": {}}, "timings make no sense"),
        ({"visit": None}, "the browser went away: its page was closed"),
        ({"load": None}, "the browser went away: its page was closed"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failed_candidate(
    server: PageServer, tmp_path: Path, answers: Mapping[str, Any], reason: str
) -> None:
    model = write_classifier(tmp_path / "model.onnx")
    report, _ = _run(server, model, answers)
    (row,) = report.rows
    assert row.failure is not None and reason in row.failure
    assert "\x1b" not in row.failure
    assert not report.complete


def test_a_device_that_computes_something_else_is_caught_by_the_golden_vectors(
    server: PageServer, tmp_path: Path
) -> None:
    from edgekit.export.golden import Golden, write_golden

    bundle = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "model.onnx")])
    pixels = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    write_golden(bundle / "golden.npz", Golden(pixels, {"logits": np.eye(2, 3, dtype=np.float32)}, (b"x",)))
    wrong = ({"outputs": [["logits", [1, 3]]]}, np.array([[0.0, 0.0, 1.0]], "<f4").tobytes())
    (row,) = _run(server, bundle, {"run": wrong})[0].rows
    assert row.failure is not None and "it does not compute what it should" in row.failure
    assert row.parity is not None and row.parity.agreement == 0.0


def test_golden_outputs_that_break_off_are_a_failed_candidate(server: PageServer, tmp_path: Path) -> None:
    from edgekit.export.golden import Golden, write_golden

    bundle = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "model.onnx")])
    pixels = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    write_golden(bundle / "golden.npz", Golden(pixels, {"logits": np.eye(2, 3, dtype=np.float32)}, (b"x",)))
    (row,) = _run(server, bundle, {"run": ({"outputs": [["logits", [1, 3]]]}, b"\0\0")})[0].rows
    assert row.failure is not None and "answer makes no sense" in row.failure


def test_a_file_changed_since_its_manifest_is_never_sent(server: PageServer, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "model.onnx")])
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    report, page = _run(server, bundle, {})
    assert "its sha256 differs" in str(report.rows[0].failure)
    assert "open" not in page.asked


def test_coarse_clocks_are_met_by_more_calls(server: PageServer, tmp_path: Path) -> None:
    """A clock of 100 µs and calls of 0.5 ms: each sample must last 4 ms, so that eight calls share it."""
    asked: list[dict[str, Any]] = []

    class Recorded(Exchange):
        def ask(self, request: Mapping[str, Any], content: bytes, limit_s: float) -> tuple[dict[str, Any], bytes]:
            asked.append(dict(request))
            return ({**OPENED, "call_s": 0.0005} if request["do"] == "open" else {"ns": [4_000_000]}), b""

    from edgekit.bench.candidates import artifact_candidates, given_artifacts

    (candidate,) = artifact_candidates(given_artifacts([write_classifier(tmp_path / "model.onnx")]), 1)
    place = BrowserPlace(Recorded(), Browser.of(FACTS), 1, (), {"onnx": "1.0", "tflite": "2.0"})
    held = place.start(candidate)
    held.open()
    assert held.timer()(1, 1) == [500_000]
    assert asked[-1]["calls"] == 8 and asked[-1]["samples"] == 1


def test_an_answer_that_was_lost_is_asked_for_again_and_one_that_comes_twice_counts_once() -> None:
    exchange = Exchange()
    exchange.join("me", {})
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(exchange.ask({"do": "a"}, b"", 5.0)))
    asking.start()
    first = exchange.next("me", {"id": 0, "poll": True}, b"", 2.0)
    again = exchange.next("me", {"id": 0, "poll": True}, b"", 2.0)  # the network dropped the first
    assert first is not None and first == again
    assert exchange.next("me", {"id": 1, "value": 7}, b"x", 0.1) is None
    assert exchange.next("me", {"id": 1, "value": 8}, b"y", 0.1) is None
    asking.join(5)
    assert found == [({"id": 1, "value": 7}, b"x")]


def test_a_page_not_heard_of_is_gone() -> None:
    exchange = Exchange(silence_s=0.2)
    exchange.join("me", {})
    with pytest.raises(LoadError, match=r"went away: not heard of for 0.2 s"):
        exchange.ask({"do": "visit"}, b"", 60.0)
    with pytest.raises(TakenError):
        exchange.beat("me")


@pytest.mark.parametrize(
    "change", [{"cores": "many"}, {"clock_s": 0}, {"clock_s": "nan"}, {"memory": []}, {"agent": None, "cores": None}]
)
def test_a_browser_that_does_not_tell_what_it_is_is_refused(change: Mapping[str, Any]) -> None:
    with pytest.raises(LoadError, match="does not tell what it runs on"):
        Browser.of({**FACTS, **change})


def test_without_the_runtimes_it_says_make_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets_module, "_NPM", tmp_path)
    with pytest.raises(LoadError, match="make web"):
        read_assets()


def test_what_cannot_be_collected_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets_module, "_NPM", tmp_path / "npm-runtimes")
    with pytest.raises(LoadError, match="run npm ci"):
        assets_module.collect(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port"),
    [
        ("", "http", None, 0),
        ("https", "https", None, 0),
        ("http://127.0.0.1", "http", "127.0.0.1", 0),
        ("https://[::1]:8443", "https", "::1", 8443),
    ],
)
def test_addresses_are_read(text: str, scheme: str, host: str | None, port: int) -> None:
    address = WebAddress.parse(text)
    assert (address.scheme, address.host, address.port) == (scheme, host, port)
    assert address.url(8000, "t").startswith(f"{scheme}://")


@pytest.mark.parametrize("text", ["ftp", "http://h:99999", "http://h/path", "http://u@h", "http://h:x", "8080", "h:80"])
def test_addresses_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an address to serve on"):
        WebAddress.parse(text)


def test_an_address_in_use_is_refused(server: PageServer) -> None:
    with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{server.port}"):
        PageServer("127.0.0.1", server.port, ASSETS)


def test_the_code_is_wide_enough_to_be_read() -> None:
    pytest.importorskip("segno")
    code = qr_code("http://192.168.1.20:45678/AbCdEfGhIjKlMnOp/")
    assert code is not None
    rows = code.splitlines()
    assert 15 <= len(rows) <= 24 and len({len(row) for row in rows if row.strip()}) == 1

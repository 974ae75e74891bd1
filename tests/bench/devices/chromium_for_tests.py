"""A real headless Chromium, driven through its debugging pipe: pages are opened, asked and photographed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from edgekit.bench.devices.web.assets import read_assets
from edgekit.errors import LoadError

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
)

# Chromium reads commands on descriptor 3 and writes to 4
_LAUNCH = """
import fcntl, os, sys
high = [fcntl.fcntl(int(given), fcntl.F_DUPFD, 50) for given in sys.argv[1:3]]
for wanted, held in zip((3, 4), high):
    os.dup2(held, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""


def needed_for_the_page() -> str:
    """Return Chromium's path; skip where it, or what the page is made of, is not here."""
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    try:
        read_assets()
    except LoadError as e:
        pytest.skip(str(e))
    return found


class Chromium:
    """The browser; a `with` block ends it."""

    def __init__(self, *flags: str) -> None:
        self._flags = flags
        self._path = needed_for_the_page()
        self._count = 0
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> Chromium:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        out_read, out_write = os.pipe()
        in_read, in_write = os.pipe()
        moved = (str(in_read), str(out_write))
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCH, *moved, self._path),
                *(*_FLAGS, *self._flags, f"--user-data-dir={self._profile.name}", "about:blank"),
            ],
            pass_fds=(in_read, out_write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(in_read)
        os.close(out_write)
        self._in = os.fdopen(in_write, "wb", buffering=0)
        self._out = os.fdopen(out_read, "rb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()
        self._profile.cleanup()

    def open(self, url: str) -> Tab:
        """Open a page in a tab of its own."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = Tab(self, str(target), str(session))
        tab.call("Network.enable")
        tab.call("Page.enable")
        tab.call("Page.navigate", {"url": url})
        tab.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")
        return tab

    def call(self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """Ask the browser and return its answer; events on the way are kept in `events`."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters or {}}
        self._in.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._waiting.append(answer)

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of all events of a kind so far."""
        return [event["params"] for event in self._waiting if event.get("method") == method]

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._out.read(1)) != b"\0":
            assert byte, "Chromium ended"
            content += byte
        message: dict[str, Any] = json.loads(content)
        return message


class Tab:
    """A page in a tab."""

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask about this page."""
        return self._browser.call(method, parameters, self._session)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, limit_s: float = 90.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + limit_s
        while not self.evaluate(expression):
            assert time.monotonic() < end, (
                f"{expression} is not true; the page says: {self.evaluate('document.body?.innerText')}"
            )
            time.sleep(0.1)

    def text(self) -> str:
        """Return what the page shows."""
        return str(self.evaluate("document.body.innerText"))

    def show_at(self, width: int, height: int, scheme: str) -> None:
        """Set the size of the screen and light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        self.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """Close the tab as a user does."""
        self._browser.call("Target.closeTarget", {"targetId": self._target})

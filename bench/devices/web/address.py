"""Where the page is served: what the user asked for, and what a phone must open."""

from __future__ import annotations

import io
import socket
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from edgekit.errors import UsageError

ALLOWED = "web, web:https, or web:http://ADDRESS[:PORT] (https, too) to listen on one address alone"


@dataclass(frozen=True)
class WebAddress:
    """Where to listen.

    Attributes:
        scheme: https has a certificate of its own, which the browser warns of; only with it does a phone's browser
            keep the screen awake and give WebGPU.
        host: address; None listens on all and shows the one by which others reach this machine.
        port: 0 takes a free one.
    """

    scheme: Literal["http", "https"] = "http"
    host: str | None = None
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> WebAddress:
        """Read what follows "web:".

        Raises:
            UsageError: it is no such address.
        """
        parts = urlsplit(text if "://" in text else f"{text or 'http'}://")
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        try:
            port = parts.port or 0
        except ValueError:
            port = -1
        extra = parts.path or parts.query or parts.fragment or parts.username
        if parts.scheme not in ("http", "https") or port < 0 or extra:
            raise UsageError(f"--device web:{text} is not an address to serve on; give {ALLOWED}")
        return cls(scheme, parts.hostname, port)

    @property
    def listen(self) -> str:
        """The address to listen on."""
        return self.host or "0.0.0.0"

    @property
    def shown(self) -> str:
        """The address that others reach it by."""
        return own_address() if self.host in (None, "0.0.0.0") else str(self.host)

    def url(self, port: int, token: str) -> str:
        """Return what the browser opens."""
        host = f"[{self.shown}]" if ":" in self.shown else self.shown
        return f"{self.scheme}://{host}:{port}/{token}/"


def own_address() -> str:
    """Return this machine's address on its local network; loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                ("192.0.2.1", 9)
            )  # no packet leaves: UDP's connect only looks up the route (RFC 5737 address)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def qr_code(url: str) -> str | None:
    """Return a QR code in block characters, None where the library for it is not installed."""
    try:
        import segno
    except ModuleNotFoundError:
        return None
    out = io.StringIO()
    segno.make(url, error="m", micro=False).terminal(out, border=2, compact=True)
    return out.getvalue()

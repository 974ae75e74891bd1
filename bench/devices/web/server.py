"""The page's server: one token, a fixed table of what may be asked for, and nothing that touches a path."""

from __future__ import annotations

import json
import secrets
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from edgekit.bench.devices.web.assets import Asset
from edgekit.bench.devices.web.exchange import Exchange, TakenError
from edgekit.errors import UsageError

CLIENT_HEADER = "X-Edgekit-Client"
_POLL_S = 20.0
_MAX_BODY = 64 * 2**20
_MAX_HELLO = 64 * 2**10
_HEADERS = {
    # the page may talk to this server alone; isolation makes its clock finer
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PageServer:
    """Serves the page to whoever has the token, until the `with` block ends.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        assets: what is served, by name.
        tls: of an https page; None serves http.

    Attributes:
        exchange: tasks for the page and its answers.
        token: part of the address; a fresh one for each server.

    Raises:
        UsageError: the address cannot be listened on.
    """

    def __init__(self, host: str, port: int, assets: Mapping[str, Asset], tls: ssl.SSLContext | None = None) -> None:
        self.exchange = Exchange()
        self.token = secrets.token_urlsafe(12)
        try:
            self._server = _Server((host, port), partial(_Handler, self.exchange, self.token, assets), tls)
        except OSError as e:
            raise UsageError(f"--device web: cannot listen on {host}:{port}: {e.strerror}") from e
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: Any, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Greet over TLS in the thread of the request: one that never answers blocks no other."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_Handler.timeout)
        with suppress(OSError), self._tls.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a page that is closed in the middle of an answer is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "edgekit"
    sys_version = ""
    timeout = 60.0

    def __init__(self, exchange: Exchange, token: str, assets: Mapping[str, Asset], *arguments: Any) -> None:
        self._exchange, self._token, self._assets = exchange, token, assets
        super().__init__(*arguments)

    def do_GET(self) -> None:
        name = self._asked_for()
        if name is None:
            return
        asset = self._assets.get(name)
        if asset is None:
            self._send(HTTPStatus.NOT_FOUND, b"there is no such file\n")
        else:
            self._send(HTTPStatus.OK, asset.content, asset.media_type, gzipped=asset.gzipped)

    def do_POST(self) -> None:
        name = self._asked_for()
        if name is None:
            return
        actions = {"hello": self._hello, "next": self._next, "alive": self._alive, "bye": self._bye}
        if name not in actions:
            self._send(HTTPStatus.NOT_FOUND, b"there is no such thing to do\n")
            return
        body = self._body(_MAX_BODY if name == "next" else _MAX_HELLO)
        if body is None:
            return
        try:
            actions[name](body)
        except TakenError:
            self._send(HTTPStatus.CONFLICT, b"another page is measuring, or this one's time is over\n")
        except (ValueError, RecursionError):
            self._send(HTTPStatus.BAD_REQUEST, b"not what the page sends\n")

    def _hello(self, body: bytes) -> None:
        self._exchange.join(self._client(), _parsed(body))
        self._send(HTTPStatus.NO_CONTENT)

    def _next(self, body: bytes) -> None:
        line, _, content = body.partition(b"\n")
        task = self._exchange.next(self._client(), _parsed(line), content, _POLL_S)
        if task is None:
            self._send(HTTPStatus.NO_CONTENT)
        else:
            self._send(HTTPStatus.OK, task, "application/octet-stream")

    def _alive(self, _: bytes) -> None:
        self._exchange.beat(self._client())
        self._send(HTTPStatus.NO_CONTENT)

    def _bye(self, body: bytes) -> None:
        """Take a page's last word, which can bring no header."""
        self._exchange.leave(str(_parsed(body).get("client")), "its page was closed")
        self._send(HTTPStatus.NO_CONTENT)

    def _client(self) -> str:
        return str(self.headers.get(CLIENT_HEADER, ""))

    def _asked_for(self) -> str | None:
        """Return the name behind the token; whoever has it not is told nothing, not even what there is."""
        _, _, rest = urlsplit(self.path).path.partition("/")
        token, slash, name = rest.partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self._token.encode()):
            self.close_connection = True  # what it may have sent along is not read
            self._send(HTTPStatus.FORBIDDEN, b"this address is not valid (any more): use the one in the terminal\n")
            return None
        return name

    def _body(self, most: int) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > most:
            self.close_connection = True
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"more than a page sends\n")
            return None
        return self.rfile.read(int(length))

    def _send(
        self, status: HTTPStatus, content: bytes = b"", media_type: str = "text/plain", *, gzipped: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if content:
            self.send_header("Content-Type", media_type)
        if gzipped:
            self.send_header("Content-Encoding", "gzip")
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Print nothing: the terminal belongs to the bench."""


def _parsed(text: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ValueError, RecursionError: it is none.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values

"""What is asked of the page and what it answers, between the thread that measures and those that serve.

The page asks for its next task and brings the answer to the last one with it. A task whose answer was lost on the way
is sent again; an answer that comes twice counts once. One page, known by a random name of its own, holds the exchange.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import LoadError
from edgekit.printable import printable

SILENCE_S = 45.0
"""A page beats every two seconds, but not while a long call blocks it; silent for so long, it is gone."""


class TakenError(Exception):
    """Another page holds the exchange, or it is over."""


@dataclass(frozen=True)
class _Task:
    number: int
    content: bytes


class Exchange:
    """Tasks for one page, answers from it.

    Args:
        silence_s: after so many seconds without a sign of the page it is given up.
    """

    def __init__(self, silence_s: float = SILENCE_S) -> None:
        self._silence_s = silence_s
        self._changed = threading.Condition()
        self._client: str | None = None
        self._facts: dict[str, Any] | None = None
        self._task: _Task | None = None
        self._answer: tuple[dict[str, Any], bytes] | None = None
        self._count = 0
        self._heard = 0.0
        self._gone: str | None = None

    # what the serving threads call

    def join(self, client: str, facts: dict[str, Any]) -> None:
        """Let a page in.

        Raises:
            TakenError: another is in, or one was and has left.
        """
        with self._changed:
            if self._client is not None:
                if client == self._client:
                    self._leave("its page was loaded anew")
                raise TakenError
            self._client, self._facts, self._heard = client, facts, time.monotonic()
            self._changed.notify_all()

    def next(self, client: str, reply: Mapping[str, Any], content: bytes, wait_s: float) -> bytes | None:
        """Take the answer to the last task; return the next, or None where there is none for `wait_s`.

        Raises:
            TakenError: the page is not the one that is in.
        """
        with self._changed:
            self._check(client)
            if self._task is not None and reply.get("id") == self._task.number and "poll" not in reply:
                self._task = None
                self._answer = (dict(reply), content)
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._task is not None or self._gone is not None, wait_s)
            self._check(client)
            self._heard = time.monotonic()
            return self._task.content if self._task is not None else None

    def beat(self, client: str) -> None:
        """Note that the page is alive.

        Raises:
            TakenError: the page is not the one that is in.
        """
        with self._changed:
            self._check(client)

    def leave(self, client: str, reason: str) -> None:
        """Note that the page is closed.

        Raises:
            TakenError: the page is not the one that is in.
        """
        with self._changed:
            self._check(client)
            self._leave(reason)

    # what the measuring thread calls

    def wait_for_page(self, limit_s: float) -> dict[str, Any]:
        """Wait until a page is in; return what it tells of itself.

        Raises:
            LoadError: none came.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._facts is not None, limit_s):
                raise LoadError(f"no browser opened the page within {limit_s:g} s")
            assert self._facts is not None
            return self._facts

    @property
    def gone(self) -> str | None:
        """Why the page is gone, None while it is here."""
        return self._gone

    def ask(self, request: Mapping[str, Any], content: bytes, limit_s: float) -> tuple[dict[str, Any], bytes]:
        """Give the page a task and wait for the answer.

        Raises:
            LoadError: the page is gone, took too long, or says that it failed, and why.
        """
        with self._changed:
            if self._gone is None:
                self._count += 1
                line = json.dumps({"id": self._count, **request}).encode()
                self._task, self._answer = _Task(self._count, line + b"\n" + content), None
                self._changed.notify_all()
                self._wait(time.monotonic() + limit_s, limit_s)
            if self._answer is None:
                raise LoadError(f"the browser went away: {self._gone}")
            reply, found = self._answer
            self._answer = None
        if "error" in reply:
            raise LoadError(printable(str(reply["error"]), 300))
        return reply, found

    def _wait(self, deadline: float, limit_s: float) -> None:
        """Wait for an answer, or find the page gone."""
        while self._answer is None and self._gone is None:
            self._changed.wait(0.5)
            now = time.monotonic()
            if now - self._heard > self._silence_s:
                self._leave(f"not heard of for {self._silence_s:g} s")
            elif now > deadline:
                self._leave(f"no answer within {limit_s:g} s")

    def _check(self, client: str) -> None:
        if client != self._client or self._gone is not None:
            raise TakenError
        self._heard = time.monotonic()

    def _leave(self, reason: str) -> None:
        self._gone = self._gone or reason
        self._changed.notify_all()

"""Faults that a test switches on."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from .messages import Request, Response

FaultKind = Literal["status", "drop", "lose", "truncate", "corrupt", "delay"]
_BEFORE: tuple[FaultKind, ...] = ("delay", "drop", "status")


@dataclass
class Fault:
    """What goes wrong, and with which requests.

    kind:
        status    answer `status` with `body` and `headers`; the work is not done
        drop      close the connection; the work is not done
        lose      do the work, then close the connection without an answer
        truncate  do the work, send the whole length but half the body (or `keep` bytes), close
        corrupt   do the work, send the body with the bits of one byte (at `at`, else the middle)
                  turned over
        delay     wait `seconds`, then go on
    method, path: the requests that count, by a method and by a regular expression that is
        searched in path and query (still quoted). `truncate` and `corrupt` count only requests
        whose answer is a 2xx with a body.
    nth: the first of those to be hit; times: how many are hit from there, None for all.
    """

    kind: FaultKind
    path: str = ""
    method: str | None = None
    nth: int = 1
    times: int | None = 1
    status: int = 503
    body: str | dict[str, Any] = "Service Unavailable"
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    keep: int | None = None
    at: int | None = None
    seen: int = 0
    fired: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"Unknown kind of fault: {self.kind!r}")
        re.compile(self.path)

    def hits(self, request: Request) -> bool:
        if self.method not in (None, request.method) or not re.search(self.path, request.target):
            return False
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.fired >= self.times):
            return False
        self.fired += 1
        return True

    def response(self) -> Response:
        plain = isinstance(self.body, str)
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        headers = {"Content-Type": "text/plain" if plain else "application/json", **self.headers}
        return Response(self.status, text.encode(), headers)

    def spoil(self, body: bytes) -> bytes:
        """What of the body is sent by a fault of kind `truncate` or `corrupt`."""
        if self.kind == "truncate":
            return body[: len(body) // 2 if self.keep is None else self.keep]
        at = len(body) // 2 if self.at is None else self.at
        return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


class Faults:
    """All faults of a server, and the request at which it is to die."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._left: int | None = None
        self._after = False

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all faults and the death that was planned."""
        with self._lock:
            self._faults, self._left = [], None

    def listed(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self._faults]

    def before(self, request: Request) -> list[Fault]:
        """Those that hit before the work: delays, and at most one drop or status."""
        with self._lock:
            chosen = []
            for fault in self._faults:
                if fault.kind in _BEFORE and fault.hits(request):
                    chosen.append(fault)
                    if fault.kind != "delay":
                        break
            return chosen

    def after(self, request: Request, response: Response) -> Fault | None:
        """The one that hits when the work is done."""
        whole = response.status // 100 == 2 and response.body and request.method != "HEAD"
        with self._lock:
            for fault in self._faults:
                fits = fault.kind == "lose" or (fault.kind not in _BEFORE and whole)
                if fits and fault.hits(request):
                    return fault
        return None

    def die_at(self, number: int, *, after: bool) -> None:
        with self._lock:
            self._left, self._after = number, after

    def death(self) -> Literal["before", "after"] | None:
        """Counts a request; says whether it is the last, and to die before or after its work."""
        with self._lock:
            if self._left is None:
                return None
            self._left -= 1
            if self._left > 0:
                return None
            self._left = None
            return "after" if self._after else "before"

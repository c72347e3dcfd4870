"""One server asked over HTTP: bounded in time and size, no redirects, no credentials."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2

from cqd_hub.errors import RunError, UserError

WHERE = "options.url"
_REMEDY = "see whether the task server runs, and what it prints"
_LARGEST = 8 << 20  # bytes of one answer
_SHOWN = 200
_PAUSES = (0.2, 5.0)  # seconds between two attempts: the first, the longest


class Away(RunError):
    """Nobody listens there; nothing was sent."""


class Refused(RunError):
    """An answer other than 200.

    Args:
        status: Of HTTP.
        said: The answer's text, printable and cut.
    """

    def __init__(self, status: int, said: str, where: str) -> None:
        super().__init__(f"status {status}: {said or 'nothing said'}", where=where, remedy=_REMEDY)
        self.status, self.said = status, said


class Answer(NamedTuple):
    """A status of 200: what its JSON holds, and its headers."""

    value: Any
    headers: Mapping[str, str]


def plain(text: object, most: int = _SHOWN) -> str:
    """A stranger's text for one line of ours."""
    said = str(text)[: 4 * most]
    shown = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    return shown if len(shown) <= most else f"{shown[:most]}…"


def garbage(what: str, where: str) -> RunError:
    """The error of an answer that is none in the protocol."""
    return RunError(
        f"the server's answer is not understood: {what}",
        where=where,
        remedy="check options.url and options.protocol",
    )


def checked_url(url: str) -> str:
    """An address without a slash at its end; the API's folder is added where none is named.

    Raises:
        UserError: Not one of http or https, or one with more in it than an address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(
            f"{plain(url)!r} is no address of a server",
            where=WHERE,
            remedy="write http://127.0.0.1:5000/api",
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            "only host, port and path belong there",
            where=WHERE,
            remedy="leave out user, password, ? and #: the server knows none of them",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/api'}"


class Server:
    """A connection, of one event loop. Open with ``async with``.

    Args:
        url: As `checked_url` gives it.
        timeout: Seconds for one answer, all of it.
        patience: Seconds that `ask_until_free` waits.
        connections: Requests under way at once, at most.
        note: Told why something is waited for.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        patience: float,
        connections: int,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.url, self.note = url, note
        self._timeout, self._patience = timeout, patience
        self._turn = asyncio.Lock()
        # The environment's proxies and ~/.netrc are for others than this server.
        self._client = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=timeout,
            limits=httpx2.Limits(max_connections=connections),
            headers={"accept": "application/json", "accept-encoding": "identity"},
        )

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Ask once: POST with a body, else GET.

        Raises:
            Away: Nobody listens.
            Refused: The answer's status is not 200.
            RunError: No answer in time, cut off, or no JSON.
        """
        where = f"{self.url}{path}"
        limit = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                status, headers, data = await self._fetch(where, body, query)
        except TimeoutError:
            raise RunError(
                f"no answer within {limit:g} s", where=where, remedy=f"{_REMEDY}; options.timeout"
            ) from None
        except httpx2.ConnectError as error:
            raise Away(
                f"nobody answers: {plain(error)}",
                where=where,
                remedy="start the task server, or mend options.url",
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            raise RunError(
                f"the connection failed: {type(error).__name__}: {plain(error)}",
                where=where,
                remedy=_REMEDY,
            ) from None
        if status != 200:
            raise Refused(status, plain(data[:2000].decode(errors="replace")), where)
        try:
            return Answer(json.loads(data), headers)
        except (ValueError, RecursionError):
            raise garbage(f"no JSON: {plain(data[:200])}", where) from None

    async def _fetch(
        self, where: str, body: Mapping[str, Any] | None, query: Mapping[str, str] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        method, content, headers = "GET", None, {}
        if body is not None:
            method, content = "POST", json.dumps(body).encode()
            headers = {"content-type": "application/json"}
        data = bytearray()
        async with self._client.stream(
            method, where, content=content, headers=headers, params=query
        ) as answer:
            if answer.is_redirect:
                to = plain(answer.headers.get("location", ""))
                raise garbage(f"it sends us on to {to!r}, which is not followed", where)
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise garbage("it is compressed, which was not asked for", where)
            async for piece in answer.aiter_raw():
                data += piece
                if len(data) > _LARGEST:
                    raise garbage(f"larger than {_LARGEST >> 20} MiB", where)
        return answer.status_code, answer.headers, bytes(data)

    async def ask_until_free(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Ask; wait while all places are taken (406) or nobody listens, in order of arrival.

        Raises:
            Away, Refused: Still so after the patience.
            RunError: As `ask`.
        """
        if not self._turn.locked():
            try:
                return await self.ask(path, body)
            except (Away, Refused) as error:
                self._wait_for(error, 0.0)
        async with self._turn:
            waited, pause = 0.0, _PAUSES[0]
            while True:
                try:
                    return await self.ask(path, body)
                except (Away, Refused) as error:
                    self._wait_for(error, waited)
                    if waited == 0:
                        self.note(f"{self.url}: {error.what}; waiting up to {self._patience:g} s")
                await asyncio.sleep(pause)
                waited, pause = waited + pause, min(1.5 * pause, _PAUSES[1])

    def _wait_for(self, error: Away | Refused, waited: float) -> None:
        """Raise the error where waiting is of no use, or has been long enough."""
        passing = isinstance(error, Away) or error.status == 406
        if not passing or waited >= self._patience:
            raise error

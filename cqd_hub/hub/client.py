"""The one way to the Hub: our name, a timeout on everything, bounded patience, one-line errors.

The client library repeats some requests and not others, and waits for ever on a silent server; here
every call is asked through `Hub.ask`, which waits out what passes and says so.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, get_token, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers

from cqd_hub import __version__
from cqd_hub.errors import CqdHubError, RunError, UserError

T = TypeVar("T")
LIBRARY = "cqd-hub"
PATIENCE = 300.0  # seconds that one call may wait in all before the Hub counts as away
_PATIENCE = "CQD_HUB_PATIENCE"  # environment variable that sets another
_TIMEOUT = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
_PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class HubAway(RunError):
    """The Hub did not answer within the patience given; the same command can be run again later."""


class Hub:
    """A connection as one user.

    Args:
        note: Told why and how long a call is waited for.
        patience: Seconds that one call may wait for a busy or absent Hub; ``$CQD_HUB_PATIENCE`` or
            300 unless given.
    """

    def __init__(
        self,
        *,
        note: Callable[[str], None] = lambda line: None,
        patience: float | None = None,
    ) -> None:
        set_client_factory(_client)
        self.api = HfApi(library_name=LIBRARY, library_version=__version__)
        self.note = note
        self._patience = _patience() if patience is None else patience

    @property
    def endpoint(self) -> str:
        """Its address: ``$HF_ENDPOINT``."""
        return self.api.endpoint

    @cached_property
    def user(self) -> str:
        """Who the token belongs to.

        Raises:
            UserError: No token, or one that the Hub does not know.
        """
        if get_token() is None:
            raise UserError("no token for the Hub", remedy=_LOGIN)
        return self.ask("the token", lambda: self.api.whoami(cache=True))["name"]

    def ask(self, what: str, call: Callable[[], T], *, retried: bool = True) -> T:
        """Make a call; wait and repeat while the Hub is busy or away.

        Args:
            what: The repository or thing asked for, named in errors.
            call: Must be safe to repeat, or *retried* false.
            retried: Whether to repeat it.

        Raises:
            UserError: What the caller can mend: no such repository, no right, gated, offline.
            HubAway: Busy or away for longer than the patience.
        """
        waited, tries = 0.0, 0
        while True:
            try:
                return call()
            except Exception as error:
                pause = self._pause(error, tries) if retried else None
                if pause is None or waited + pause > self._patience:
                    raise explained(error, what, waited=waited) from None
                tries, waited = tries + 1, waited + pause
                self.note(
                    f"{what}: {_reason(error)}; trying again in {pause:.0f} s "
                    f"(waited {waited - pause:.0f} of at most {self._patience:.0f} s)"
                )
                time.sleep(pause)

    def _pause(self, error: Exception, tries: int) -> float | None:
        """Seconds to wait before trying again, or None if that is pointless."""
        if not passing(error):
            return None
        pause = min(2.0**tries, 60.0) * random.uniform(0.75, 1.0)
        return max(pause, _retry_after(error))


def _patience() -> float:
    text = os.environ.get(_PATIENCE, "")
    try:
        return max(float(text), 0.0) if text else PATIENCE
    except ValueError:
        raise UserError(
            f"{text!r} is no number of seconds", where=_PATIENCE, remedy="unset it"
        ) from None


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed later: the Hub is busy, away, or was cut off."""
    if isinstance(error, OfflineModeIsEnabled | CqdHubError):
        return False
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code in _PASSING
    if isinstance(error, LocalEntryNotFoundError):
        return not isinstance(error.__cause__, OfflineModeIsEnabled)
    return isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError)


def explained(error: BaseException, what: str, *, waited: float = 0.0) -> BaseException:
    """The error as one of ours, with what to do; itself if it is none of the Hub's."""
    if isinstance(error, CqdHubError):
        return error
    if passing(error):
        after = f" for {waited:.0f} s" if waited else ""
        return HubAway(
            f"the Hub does not serve it{after}: {_reason(error)}",
            where=what,
            remedy="run the same command again later",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE is set", where=what, remedy="unset it to reach the Hub")
    if isinstance(error, GatedRepoError):  # before RepositoryNotFoundError, which it is one of
        return UserError(
            "is gated, and this token has no access",
            where=what,
            remedy="ask for access on its page, then " + _LOGIN,
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError("has no such revision", where=what, remedy="check what follows the @")
    if isinstance(error, EntryNotFoundError):
        return UserError("has no such file", where=what, remedy="check the name")
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, what)
    return error


def _refusal(error: HfHubHTTPError, what: str) -> UserError:
    status = error.response.status_code if error.response is not None else 0
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return UserError("the Hub does not accept this token", where=what, remedy=_LOGIN)
    if status in (401, 404):
        return UserError(
            "is not on the Hub, or private to others",
            where=what,
            remedy=f"check the name; {_LOGIN}",
        )
    if status == 403:
        return UserError(
            f"this token may not do that: {_reason(error)}",
            where=what,
            remedy="use a token with write access to it (hf auth login)",
        )
    return UserError(f"the Hub refuses: {_reason(error)}", where=what)


def _reason(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        said = (error.server_message or "").strip().split("\n")[0]
        return f"status {error.response.status_code}{': ' if said else ''}{said[:200]}"
    text = str(error).strip().split("\n")[0][:200]
    return text or type(error).__name__


def _retry_after(error: BaseException) -> float:
    response = getattr(error, "response", None)
    if response is None:
        return 0.0
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    try:
        return float(response.headers["Retry-After"]) + 1
    except (KeyError, ValueError):
        return 0.0


def _client() -> httpx2.Client:
    client = default_client_factory()
    hooks = client.event_hooks
    hooks["request"] = [*hooks["request"], _limit]
    hooks["response"] = [*hooks["response"], _give_back]
    client.event_hooks = hooks
    return client


def _limit(request: httpx2.Request) -> None:
    """Give a request without timeouts ours: the library passes none for most calls."""
    timeout = request.extensions.get("timeout") or {}
    limits = {key: timeout.get(key) or seconds for key, seconds in _TIMEOUT.items()}
    request.extensions["timeout"] = limits


def _give_back(response: httpx2.Response) -> None:
    """Leave waiting to `Hub.ask`, where the library would wait unsaid and without bound."""
    if response.status_code == 429:
        response.read()
        hf_raise_for_status(response)
    if response.status_code == 409 and response.request.url.path == "/api/repos/create":
        response.read()
        if "another conflicting operation" in response.text:
            raise ConnectionError("another repository is being created")

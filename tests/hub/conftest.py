"""A server for each test; the client in this process online, without Xet, without waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants

from tests.hub.server import HubServer


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # The client's waits between its retries (1, 2, 4, 8, 8 s) are as good when they are short.
    quick = SimpleNamespace(sleep=lambda _: None, time=time.time)
    monkeypatch.setattr("huggingface_hub.utils._http.time", quick)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def as_user(hub: HubServer) -> Callable[..., HfApi]:
    """The client of a user: `as_user("ann")`, with the options of `HubServer.token`."""

    def make(user: str | None, **options: object) -> HfApi:
        token = hub.token(user, **options) if user else False  # type: ignore[arg-type]
        return HfApi(endpoint=hub.url, token=token)

    return make


@pytest.fixture
def ann(as_user: Callable[..., HfApi]) -> HfApi:
    return as_user("ann")

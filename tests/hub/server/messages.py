"""What comes in, what goes out, and the errors of the Hub as its client expects them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    """One request, its body read whole. `target` is the path with its query, still quoted."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def agent(self) -> str:
        return self.headers.get("User-Agent", "")

    @property
    def token(self) -> str | None:
        """What the Authorization header bears; "" for one of another kind than Bearer."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        kind, _, value = header.partition(" ")
        return value.strip() if kind.lower() == "bearer" else ""

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[-1].lower() in ("1", "true")

    def number(self, name: str, default: int) -> int:
        value = self.query.get(name, [""])[-1]
        return int(value) if value.isdigit() else default

    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "The body is no JSON") from None
        if not isinstance(value, dict):
            raise HubError(400, "The body must be a JSON object")
        return value

    def form(self) -> dict[str, list[str]]:
        """The fields of a form or of a JSON object, each as a list of texts."""
        if self.headers.get("Content-Type", "").startswith("application/json"):
            return {
                key: [str(one) for one in (value if isinstance(value, list) else [value])]
                for key, value in self.json().items()
            }
        return parse_qs(self.body.decode(), keep_blank_values=True)


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    named = {"Content-Type": "application/json", **(headers or {})}
    return Response(status, json.dumps(value).encode(), named)


class HubError(Exception):
    """A refusal; `code` is the X-Error-Code by which the client picks its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra
        self.headers: dict[str, str] = {}

    def response(self) -> Response:
        headers = {"X-Error-Message": self.message.splitlines()[0]} | self.headers
        if self.code:
            headers["X-Error-Code"] = self.code
        body = json.dumps({"error": self.message, **self.extra}).encode()
        return Response(self.status, body, {"Content-Type": "application/json", **headers})


def repo_not_found(*, anonymous: bool) -> HubError:
    # The Hub does not tell a stranger whether a repository exists.
    if anonymous:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(message: str = "Entry not found") -> HubError:
    return HubError(404, message, "EntryNotFound")

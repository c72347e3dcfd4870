"""From a method and a path to the function that answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlencode

from .messages import HubError, Request, Response, answer
from .site import Site

Handler = Callable[..., Response]
Entry = TypeVar("Entry")

# Slashes within one field come quoted; only {repo} and {path} span segments.
_FIELDS = {
    "kind": r"(?P<kind>model|dataset|space)",
    "prefix": r"(?P<prefix>(?:datasets/|spaces/)?)",
    "repo": r"(?P<repo>[^/]+(?:/[^/]+)?)",
    "shown": r"(?P<repo>(?!api/|_)[^/]+/[^/]+)",
    "path": r"(?P<path>.+)",
}


class _Route(NamedTuple):
    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    handler: Handler


_routes: list[_Route] = []


def route(methods: str, template: str) -> Callable[[Handler], Handler]:
    """Register a handler for space-separated methods and a path with {fields}. Earlier wins."""

    def field_pattern(match: re.Match[str]) -> str:
        name = match.group(1)
        return _FIELDS.get(name, rf"(?P<{name}>[^/]+)")

    pattern = re.compile(re.sub(r"\{(\w+)\}", field_pattern, template.replace(".", r"\.")))

    def register(handler: Handler) -> Handler:
        _routes.append(_Route(tuple(methods.split()), pattern, handler))
        return handler

    return register


def dispatch(site: Site, request: Request) -> Response:
    """The answer to a request, refusals included."""
    try:
        allowed = False
        for methods, pattern, handler in _routes:
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            allowed = True
            if request.method in methods:
                fields = {name: unquote(text) for name, text in match.groupdict().items()}
                return handler(site, request, **_kinds(fields))
        if allowed:
            raise HubError(405, f"{request.method} is not served here")
        raise HubError(404, "Sorry, we can't find the page you are looking for.")
    except HubError as error:
        return error.response()


def _kinds(fields: dict[str, str]) -> dict[str, str]:
    prefix = fields.pop("prefix", None)
    if prefix is not None:
        fields["kind"] = prefix.removesuffix("s/") or "model"
    return fields


def paged(
    site: Site,
    request: Request,
    entries: Sequence[Entry],
    size: int,
    value: Callable[[Entry], object],
) -> Response:
    """One page of entries, with the header that links to the next."""
    size = max(1, min(size, request.number("limit", size)))
    start = request.number("cursor", 0)
    headers = {"X-Total-Count": str(len(entries))}
    if start + size < len(entries):
        query = {**request.query, "cursor": [str(start + size)]}
        link = f"{site.url}{request.path}?{urlencode(query, doseq=True)}"
        headers["Link"] = f'<{link}>; rel="next"'
    return answer([value(entry) for entry in entries[start : start + size]], headers=headers)

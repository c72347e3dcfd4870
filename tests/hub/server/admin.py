"""/__admin__/…: what a test in another process may do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .faults import Fault
from .messages import HubError, Request, Response, answer

if TYPE_CHECKING:
    from .hub import HubServer


class Admin:
    """
    GET, POST, DELETE /__admin__/faults   list, add ({"kind": …, fields of Fault}), clear
    GET, DELETE /__admin__/log            {"requests": […], "received", "sent"}; reset
    POST /__admin__/seed                  {"tokens": [{"user", "role", "orgs", "scopes", "value"}],
                                           "repos": [{"repo", "folder" | "files", options of put}]}
    POST /__admin__/die                   {"at": n, "after": bool}, or {} for now
    POST /__admin__/revive
    """

    def __init__(self, hub: HubServer) -> None:
        self._hub = hub

    def answer(self, request: Request) -> Response:
        hub, verb = self._hub, (request.method, request.path.removeprefix("/__admin__/"))
        try:
            if verb == ("GET", "faults"):
                return answer(hub.faults.listed())
            if verb == ("POST", "faults"):
                return answer(asdict(hub.faults.add(Fault(**request.json()))))
            if verb == ("DELETE", "faults"):
                hub.faults.clear()
            elif verb == ("GET", "log"):
                requests = [asdict(entry) for entry in hub.log.entries]
                totals = {"received": hub.log.received, "sent": hub.log.sent}
                return answer({"requests": requests, **totals})
            elif verb == ("DELETE", "log"):
                hub.log.reset()
            elif verb == ("POST", "seed"):
                return answer(self._seed(request))
            elif verb == ("POST", "die"):
                asked = request.json()
                if "at" in asked:
                    hub.die_at(asked["at"], after=asked.get("after", False))
                else:
                    hub.die()
            elif verb == ("POST", "revive"):
                hub.revive()
            else:
                raise HubError(404, f"No such action: {' '.join(verb)}")
        except HubError as error:
            return error.response()
        except (TypeError, KeyError, ValueError, OSError) as error:
            return HubError(400, f"{type(error).__name__}: {error}").response()
        return answer({})

    def _seed(self, request: Request) -> dict[str, list[str]]:
        asked = request.json()
        tokens = [self._hub.token(entry.pop("user"), **entry) for entry in asked.get("tokens", [])]
        commits = []
        for entry in asked.get("repos", []):
            folder = entry.pop("folder", None)
            content = Path(folder) if folder else entry.pop("files")
            commits.append(self._hub.put(entry.pop("repo"), content, **entry))
        return {"tokens": tokens, "commits": commits}

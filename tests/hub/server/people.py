"""Who asks, and what they may do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .messages import HubError

if TYPE_CHECKING:
    from .store import Repo

Role = Literal["read", "write", "fineGrained"]


@dataclass(frozen=True)
class Token:
    """A user's token. `scopes` (fine-grained only) maps a repository ("ns/name", of a dataset
    "datasets/ns/name") or a whole namespace to "read" or "write"."""

    user: str
    role: Role = "write"
    scopes: Mapping[str, str] = field(default_factory=dict)

    def reaches(self, namespace: str, key: str | None, level: str) -> bool:
        if self.role != "fineGrained":
            return level == "read" or self.role == "write"
        levels = {self.scopes.get(namespace), self.scopes.get(key) if key else None} - {None}
        return "write" in levels or (level == "read" and bool(levels))


@dataclass(frozen=True)
class Visitor:
    """The bearer of a token, or nobody (`token` None)."""

    token: Token | None
    orgs: Mapping[str, str]

    @property
    def name(self) -> str | None:
        return self.token.user if self.token else None

    def reads(self, repo: Repo) -> bool:
        """Whether the repository is seen at all."""
        return not repo.private or self._member(repo, "read")

    def opens(self, repo: Repo) -> bool:
        """Whether the files of a repository that is seen may be had."""
        return not repo.gated or self.name in repo.granted or self._member(repo, "read")

    def writes(self, repo: Repo) -> bool:
        return self._owns(repo.namespace) and self._token_reaches(repo, "write")

    def creates(self, namespace: str) -> bool:
        return (
            self._owns(namespace)
            and self.token is not None
            and self.token.reaches(namespace, None, "write")
        )

    def _owns(self, namespace: str) -> bool:
        return self.name == namespace or self.orgs.get(namespace) in ("admin", "write")

    def _member(self, repo: Repo, level: str) -> bool:
        return (self.name == repo.namespace or repo.namespace in self.orgs) and self._token_reaches(
            repo, level
        )

    def _token_reaches(self, repo: Repo, level: str) -> bool:
        return self.token is not None and self.token.reaches(repo.namespace, repo.key, level)


class People:
    """Tokens and memberships."""

    def __init__(self) -> None:
        self.tokens: dict[str, Token] = {}
        self.orgs: dict[str, dict[str, str]] = {}

    def issue(self, token: Token, value: str | None = None) -> str:
        seed = f"{token.user} {token.role} {len(self.tokens)}"
        value = value or "hf_" + hashlib.sha256(seed.encode()).hexdigest()[:34]
        self.tokens[value] = token
        return value

    def visitor(self, value: str | None) -> Visitor:
        """Raises HubError 401 for a token that was never issued."""
        if value is None:
            return Visitor(None, {})
        if value not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        token = self.tokens[value]
        return Visitor(token, self.orgs.get(token.user, {}))


def whoami(visitor: Visitor) -> dict[str, object]:
    """The answer of /api/whoami-v2."""
    token = visitor.token
    if token is None:
        raise HubError(401, "Invalid username or password.")
    access: dict[str, object] = {
        "displayName": f"{token.user} {token.role}",
        "role": token.role,
        "createdAt": "2026-01-01T00:00:00.000Z",
    }
    if token.role == "fineGrained":
        access["fineGrained"] = {
            "canReadGatedRepos": False,
            "global": [],
            "scoped": [_scope(name, level) for name, level in token.scopes.items()],
        }
    return {
        "type": "user",
        "id": hashlib.sha256(token.user.encode()).hexdigest()[:24],
        "name": token.user,
        "fullname": token.user.title(),
        "email": f"{token.user}@example.org",
        "emailVerified": True,
        "canPay": False,
        "isPro": False,
        "periodEnd": None,
        "avatarUrl": "",
        "orgs": [
            {
                "type": "org",
                "id": hashlib.sha256(org.encode()).hexdigest()[:24],
                "name": org,
                "fullname": org.title(),
                "email": None,
                "canPay": False,
                "periodEnd": None,
                "avatarUrl": "",
                "isEnterprise": False,
                "roleInOrg": role,
            }
            for org, role in visitor.orgs.items()
        ],
        "auth": {"type": "access_token", "accessToken": access},
    }


def _scope(name: str, level: str) -> dict[str, object]:
    kind = "user" if "/" not in name else "dataset" if name.startswith("datasets/") else "model"
    if name.startswith("spaces/"):
        kind = "space"
    bare = name.removeprefix("datasets/").removeprefix("spaces/")
    permissions = ["repo.content.read"] + (["repo.write"] if level == "write" else [])
    entity = {"_id": hashlib.sha256(name.encode()).hexdigest()[:24], "type": kind, "name": bare}
    return {"entity": entity, "permissions": permissions}

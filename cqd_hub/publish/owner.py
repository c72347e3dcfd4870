"""Asked before the first byte: may this token write there, and are the names legal."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError

from cqd_hub.errors import UserError
from cqd_hub.hub.client import Hub
from cqd_hub.hub.commit import Head, Kind, read_head

_LONGEST = 96
_LEGAL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_WRITING = ("admin", "write", "contributor")


def check_name(repo: str) -> None:
    """Raise a `UserError` if the Hub would refuse the name ``ns/name``."""
    owner, slash, name = repo.partition("/")
    what = None
    if not slash or "/" in name:
        what = "is not ns/name"
    elif len(name) > _LONGEST:
        what = f"has a name of {len(name)} characters; {_LONGEST} are allowed"
    elif not (_LEGAL.fullmatch(owner) and _LEGAL.fullmatch(name)):
        what = "must be of letters, digits, '-', '_' and '.', and begin and end with none of '-.'"
    elif "--" in repo or ".." in repo:
        what = "must not hold '--' or '..'"
    elif name.endswith((".git", ".ipynb")):
        what = "must not end in .git or .ipynb"
    if what:
        raise UserError(what, where=repo, remedy="choose another name with --to")


def check_owner(hub: Hub, owner: str) -> None:
    """Raise a `UserError` if this token may not create repositories of *owner*."""
    user = hub.user
    account: dict[str, Any] = hub.ask("the token", lambda: hub.api.whoami(cache=True))
    token = account.get("auth", {}).get("accessToken", {})
    remedy = "use a token with the right to write (hf auth login)"
    if token.get("role") == "read":
        raise UserError("this token may only read", where=owner, remedy=remedy)
    writable = {user} | {
        org["name"] for org in account.get("orgs", []) if org.get("roleInOrg", "write") in _WRITING
    }
    if owner not in writable:
        others = sorted(writable - {user})
        raise UserError(
            f"is neither you, {user}, nor an organisation you may write to"
            + (f" ({', '.join(others)})" if others else ""),
            where=owner,
            remedy=f"push with --to {user}/NAME",
        )


def find(hub: Hub, repo: str, kind: Kind) -> Head | None:
    """The repository's head; None where there is none that this token sees.

    Raises:
        UserError: It is there, and this token may not write to it.
    """

    def ask() -> Head | None:
        try:
            head = read_head(hub, repo, kind)
        except RepositoryNotFoundError:
            return None
        hub.api.auth_check(repo, repo_type=kind, write=True)
        return head

    return hub.ask(repo, ask)


def read(hub: Hub, repo: str, kind: Kind) -> Head:
    """The head of a repository that may be somebody else's.

    Raises:
        UserError: There is none that this token sees.
    """
    return hub.ask(repo, lambda: read_head(hub, repo, kind))


def ensure(hub: Hub, repo: str, kind: Kind) -> None:
    """Create the repository, private; to be called where `find` found none.

    Raises:
        UserError: The Hub refuses.
    """
    hub.ask(repo, lambda: hub.api.create_repo(repo, repo_type=kind, private=True, exist_ok=True))


def make_public(hub: Hub, repo: str, kind: Kind) -> None:
    """Let everybody see the repository."""

    def ask() -> None:
        if hub.api.repo_info(repo, repo_type=kind).private:
            hub.api.update_repo_settings(repo, repo_type=kind, private=False)

    hub.ask(repo, ask)

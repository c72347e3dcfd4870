"""Making, describing, setting and removing repositories; branches and tags."""

from __future__ import annotations

from .info import describe
from .messages import HubError, Request, Response, answer, revision_not_found
from .people import whoami
from .routing import paged, route
from .site import Site
from .store import Kind, Repo, make_commit


@route("GET", "/api/whoami-v2")
def who(site: Site, request: Request) -> Response:
    return answer(whoami(site.visitor(request)))


@route("POST", "/api/repos/create")
def create(site: Site, request: Request) -> Response:
    asked = request.json()
    visitor = site.visitor(request)
    if visitor.name is None:
        raise HubError(401, "Invalid username or password.")
    kind: Kind = asked.get("type") or "model"
    namespace = asked.get("organization") or visitor.name
    repo_id = f"{namespace}/{asked.get('name', '')}"
    url = f"{site.url}/{Repo(kind, repo_id).key}"
    if not visitor.creates(namespace):
        message = f"You don't have the rights to create a {kind} under the namespace {namespace!r}"
        raise HubError(403, message)
    private = asked.get("visibility") == "private" or asked.get("private") is True
    try:
        site.store.create(kind, repo_id, author=visitor.name, private=private, sdk=asked.get("sdk"))
    except HubError as error:
        error.extra["url"] = url  # the client reads it also from a 409
        raise
    return answer({"url": url, "name": repo_id, "private": private})


@route("DELETE", "/api/repos/delete")
def delete(site: Site, request: Request) -> Response:
    asked = request.json()
    visitor = site.visitor(request)
    repo_id = f"{asked.get('organization') or visitor.name}/{asked.get('name', '')}"
    repo = site.writable(request, asked.get("type") or "model", repo_id)
    del site.store.repos[repo.key]
    for collection in site.collections.values():
        collection["items"] = [item for item in collection["items"] if item["key"] != repo.key]
    return answer({})


@route("PUT", "/api/{kind}s/{repo}/settings")
def settings(site: Site, request: Request, kind: Kind, repo: str) -> Response:
    found = site.writable(request, kind, repo)
    asked = request.json()
    visibility = asked.get("visibility")
    if visibility not in (None, "public", "private"):
        raise HubError(400, f"Unknown visibility: {visibility!r}")
    if asked.get("gated") not in (None, False, "auto", "manual"):
        raise HubError(400, f"Unknown gate: {asked['gated']!r}")
    if visibility is not None or "private" in asked:
        found.private = visibility == "private" or asked.get("private") is True
    if "gated" in asked:
        found.gated = asked["gated"]
    return answer({"private": found.private, "gated": found.gated})


@route("GET", "/api/{kind}s/{repo}/auth-check")
def check_read(site: Site, request: Request, kind: Kind, repo: str) -> Response:
    site.opened(request, kind, repo)
    return answer({})


@route("GET", "/api/{kind}s/{repo}/auth-check/write")
def check_write(site: Site, request: Request, kind: Kind, repo: str) -> Response:
    site.writable(request, kind, repo)
    return answer({})


@route("GET", "/api/{kind}s/{repo}/refs")
def refs(site: Site, request: Request, kind: Kind, repo: str) -> Response:
    found = site.repo(request, kind, repo)

    def listed(names: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid}
            for name, oid in names.items()
        ]

    value: dict[str, object] = {
        "branches": listed(found.branches, "heads"),
        "converts": [],
        "tags": listed(found.tags, "tags"),
    }
    if request.flag("include_prs"):
        value["pullRequests"] = []
    return answer(value)


@route("POST", "/api/{kind}s/{repo}/branch/{name}")
def create_branch(site: Site, request: Request, kind: Kind, repo: str, name: str) -> Response:
    found = site.writable(request, kind, repo)
    if name in found.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{name}")
    found.branches[name] = found.resolve(request.json().get("startingPoint") or "main").oid
    return answer({})


@route("DELETE", "/api/{kind}s/{repo}/branch/{name}")
def delete_branch(site: Site, request: Request, kind: Kind, repo: str, name: str) -> Response:
    found = site.writable(request, kind, repo)
    if name == "main":
        raise HubError(403, "The main branch cannot be deleted")
    if found.branches.pop(name, None) is None:
        raise revision_not_found(name)
    return answer({})


@route("POST", "/api/{kind}s/{repo}/tag/{revision}")
def create_tag(site: Site, request: Request, kind: Kind, repo: str, revision: str) -> Response:
    found = site.writable(request, kind, repo)
    name = request.json().get("tag", "")
    if not name:
        raise HubError(400, "A tag needs a name")
    if name in found.tags:
        raise HubError(409, f"Tag reference exists already: {name}")
    found.tags[name] = found.resolve(revision).oid
    return answer({})


@route("DELETE", "/api/{kind}s/{repo}/tag/{name}")
def delete_tag(site: Site, request: Request, kind: Kind, repo: str, name: str) -> Response:
    found = site.writable(request, kind, repo)
    if found.tags.pop(name, None) is None:
        raise revision_not_found(name)
    return answer({})


@route("POST", "/api/{kind}s/{repo}/super-squash/{branch}")
def squash(site: Site, request: Request, kind: Kind, repo: str, branch: str) -> Response:
    found = site.writable(request, kind, repo)
    if branch not in found.branches:
        raise revision_not_found(branch)
    tree = found.resolve(branch).tree
    author, title = site.visitor(request).name or "", request.json().get("message", "Squash")
    made = make_commit(None, tree, author=author, title=title, message="")
    found.commits[made.oid] = made
    found.branches[branch] = made.oid
    return answer({})


@route("GET", "/api/{kind}s/{repo}/revision/{revision}")
def info_at(site: Site, request: Request, kind: Kind, repo: str, revision: str) -> Response:
    return answer(describe(site, request, site.repo(request, kind, repo), revision))


@route("GET", "/api/{kind}s")
def listing(site: Site, request: Request, kind: Kind) -> Response:
    """Those the visitor sees, filtered by `author`, `search` and `filter` (tags)."""
    visitor = site.visitor(request)
    author, search = (request.query.get(name, [""])[0] for name in ("author", "search"))
    tags = set(request.query.get("filter", []))
    found = []
    for repo in site.store.repos.values():
        if repo.kind != kind or not visitor.reads(repo):
            continue
        value = describe(site, request, repo, "main")
        named = (not author or repo.namespace == author) and search.lower() in repo.id.lower()
        if named and tags <= set(describe(site, None, repo, "main")["tags"]):
            found.append(value)
    return paged(site, request, found, site.settings.commits_page, lambda value: value)


@route("GET", "/api/{kind}s/{repo}")
def info(site: Site, request: Request, kind: Kind, repo: str) -> Response:
    """Registered after all others of the API, which would match as repositories."""
    return answer(describe(site, request, site.repo(request, kind, repo), "main"))

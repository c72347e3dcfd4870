"""Compare and swap: one commit for one change, whatever becomes of answers and heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from cqd_hub.errors import UserError
from cqd_hub.hub import client
from cqd_hub.hub.client import Hub, HubAway
from cqd_hub.hub.commit import Builder, Change, Head, commit, git_oid, read_head, same, sha256
from tests.hub.server import HubServer


@pytest.fixture
def connection(hub: HubServer, ann: HfApi, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """As ann, at this test's server; waiting takes no time."""
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    made = Hub(patience=60)
    made.api = ann
    hub.put_model("ann/m", {"list.txt": "", "old.bin": b"old"})
    return made


def adding(line: str) -> Builder:
    """Append a line to what the head has."""

    def build(head: Head) -> Change | None:
        lines = (head.read("list.txt") or b"").decode().splitlines()
        if line in lines:
            return None
        return Change(f"add {line}", {"list.txt": "\n".join([*lines, line]).encode()})

    return build


def test_new_changed_deleted_and_same(hub: HubServer, connection: Hub, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"w" * 50)
    files = {"w.safetensors": tmp_path / "w.safetensors", "old.bin": None, "list.txt": b""}

    def build(head: Head) -> Change:
        return Change("title", files)

    made = commit(connection, "ann/m", "model", build, mark="me")
    assert (made.made, made.files, made.bytes) == (True, 2, 50)
    newest = hub.commits("ann/m")[0]
    assert (newest.oid, newest.title) == (made.sha, "title")
    assert newest.message.startswith("me ")
    assert set(hub.files("ann/m")) == {".gitattributes", "list.txt", "w.safetensors"}
    hub.log.reset()
    again = commit(connection, "ann/m", "model", build, mark="me")
    assert (again.made, again.sha) == (False, made.sha)
    assert {entry.method for entry in hub.log.entries} == {"GET"}


def test_hashes_are_the_hubs(hub: HubServer, connection: Hub, tmp_path: Path) -> None:
    hub.put_model("ann/m", {"w.safetensors": b"weights", "t.txt": b"text"})
    head = read_head(connection, "ann/m", "model")
    (tmp_path / "t").write_bytes(b"text")
    assert head.files["w.safetensors"].sha256 == sha256(b"weights")
    assert head.files["t.txt"].oid == git_oid(b"text") == git_oid(tmp_path / "t")
    assert same(b"weights", head.files["w.safetensors"])
    assert not same(b"Weights", head.files["w.safetensors"])
    assert not same(b"text.", head.files["t.txt"])


def test_built_again_from_a_newer_head(hub: HubServer, connection: Hub) -> None:
    seen = []
    first = adding("mine")

    def build(head: Head) -> Change | None:
        seen.append(head.sha)
        if len(seen) == 1:
            hub.put_model("ann/m", {"list.txt": "theirs"})
        return first(head)

    assert commit(connection, "ann/m", "model", build, mark="me").made
    assert len(seen) == 2
    assert hub.file("ann/m", "list.txt") == b"theirs\nmine"


def test_lost_answer_and_a_commit_since(hub: HubServer, connection: Hub) -> None:
    """The commit happened, its answer was lost, and somebody has already built on it."""
    fault = hub.fault("lose", "/commit/")
    build = adding("mine")

    def and_then(head: Head) -> Change | None:
        if fault.fired:
            pytest.fail("it was done already")
        return build(head)

    real = connection.api.list_repo_commits
    listed: list[str] = []

    def others_first(*arguments: object, **options: object) -> object:
        if not listed:
            hub.put_model("ann/m", {"other.txt": "other"})
        listed.append("")
        return real(*arguments, **options)

    connection.api.list_repo_commits = others_first
    made = commit(connection, "ann/m", "model", and_then, mark="me")
    assert made.sha == hub.commits("ann/m")[1].oid
    assert hub.file("ann/m", "list.txt") == b"mine"


def test_same_change_later_is_a_commit_of_its_own(hub: HubServer, connection: Hub) -> None:
    def to(content: bytes) -> Callable[[Head], Change]:
        return lambda head: Change("set", {"list.txt": content})

    for content in (b"a", b"b", b"a"):
        assert commit(connection, "ann/m", "model", to(content), mark="me").made
    assert hub.file("ann/m", "list.txt") == b"a"


def test_patience_ends(hub: HubServer, connection: Hub) -> None:
    hub.fault("status", "/commit/", status=503, times=None)
    with pytest.raises(HubAway, match="does not serve it for"):
        commit(connection, "ann/m", "model", adding("x"), mark="me")
    hub.faults.clear()
    hub.fault("status", "/commit/", status=403, body={"error": "no"})
    with pytest.raises(UserError, match="may not"):
        commit(connection, "ann/m", "model", adding("x"), mark="me")

"""Commits and large files on the tests' Hub."""

from __future__ import annotations

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_session,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RevisionNotFoundError,
)

from tests.hub.common import status
from tests.hub.server import HubServer


def test_commit_adds_copies_and_deletes(hub: HubServer, ann: HfApi) -> None:
    hub.put_model("ann/m", {"t.txt": "text", "w.bin": b"w" * 50, "old/1": "1", "old/2": "2"})
    hub.log.reset()
    ann.create_commit(
        "ann/m",
        [
            CommitOperationAdd("new.txt", b"new"),
            CommitOperationCopy("t.txt", "t2.txt"),
            CommitOperationCopy("w.bin", "w2.bin"),
            CommitOperationDelete("t.txt"),
            CommitOperationDelete("old/"),
        ],
        commit_message="many",
        commit_description="things",
    )
    assert set(hub.files("ann/m")) == {*(".gitattributes", "new.txt", "t2.txt", "w.bin", "w2.bin")}
    assert hub.file("ann/m", "w2.bin") == b"w" * 50
    assert not hub.log.find(method="PUT")
    newest = hub.commits("ann/m")[0]
    assert (newest.title, newest.message, newest.author) == ("many", "things", "ann")
    for operation, match in (
        (CommitOperationDelete("t.txt"), "A file with this name doesn't exist"),
        (CommitOperationDelete("old/"), "A folder with this name doesn't exist"),
    ):
        with pytest.raises(EntryNotFoundError, match=match):
            ann.create_commit("ann/m", [operation], commit_message="no")
    with pytest.raises(RevisionNotFoundError):
        ann.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="ann/m", revision="none")


def test_unchanged_files_make_no_commit(hub: HubServer, ann: HfApi, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text")
    (tmp_path / "w.safetensors").write_bytes(b"w" * 50)
    ann.create_repo("ann/m")
    first = ann.upload_folder(folder_path=tmp_path, repo_id="ann/m").oid
    hub.log.reset()
    assert ann.upload_folder(folder_path=tmp_path, repo_id="ann/m").oid == first
    assert not hub.log.find("/commit/")
    assert not hub.log.find(method="PUT")
    assert len(hub.commits("ann/m")) == 2


def test_stale_parent_is_refused(hub: HubServer, ann: HfApi) -> None:
    parent = hub.put_model("ann/m", {"a": "a"})
    add = {"path_in_repo": "b", "repo_id": "ann/m", "parent_commit": parent}
    ann.upload_file(path_or_fileobj=b"1", **add)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        ann.upload_file(path_or_fileobj=b"2", **add)
    assert status(error) == 412
    assert hub.file("ann/m", "b") == b"1"


def post_commit(hub: HubServer, api: HfApi, *operations: tuple[str, dict[str, object]]) -> int:
    lines = [("header", {"summary": "raw", "description": ""}), *operations]
    body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in lines)
    return (
        get_session()
        .post(
            f"{hub.url}/api/models/ann/m/commit/main",
            headers={"Authorization": f"Bearer {api.token}"},
            content=body.encode(),
        )
        .status_code
    )


def test_server_checks_what_the_client_would_not_send(hub: HubServer, ann: HfApi) -> None:
    hub.put_model("ann/m", {"a.txt": "a"})
    head = hub.commits("ann/m")[0].oid
    text = base64.b64encode(b"x").decode()
    unknown = {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}
    card = base64.b64encode(b"---\nlicense: nonsense\n---\n").decode()
    for operation in (
        ("file", {"path": "../up", "content": text, "encoding": "base64"}),
        ("file", {"path": "a.txt/below", "content": text, "encoding": "base64"}),
        ("file", {"path": "b", "content": "?", "encoding": "base64"}),
        ("file", {"path": "README.md", "content": card, "encoding": "base64"}),
        ("lfsFile", unknown),
        ("rename", {"path": "a.txt"}),
    ):
        assert post_commit(hub, ann, operation) == 400
    assert hub.commits("ann/m")[0].oid == head
    assert post_commit(hub, ann, ("copyFile", {"srcPath": "a.txt", "path": "b.txt"})) == 200
    assert hub.file("ann/m", "b.txt") == b"a"
    tree = hub.files("ann/m")
    assert post_commit(hub, ann) == 200  # nothing to do is a commit all the same
    assert hub.files("ann/m") == tree
    assert len(hub.commits("ann/m")) == 4


def test_six_writers_with_parent_commit_lose_nothing(hub: HubServer, ann: HfApi) -> None:
    hub.put_model("ann/m", {"list.txt": ""})

    def append(writer: int) -> int:
        conflicts = 0
        while True:
            head = ann.repo_info("ann/m").sha
            before = hub.file("ann/m", "list.txt", revision=head)
            try:
                ann.upload_file(
                    path_or_fileobj=before + b"%d\n" % writer,
                    path_in_repo="list.txt",
                    repo_id="ann/m",
                    parent_commit=head,
                )
            except HfHubHTTPError as error:
                assert error.response.status_code == 412  # noqa: PT017
                conflicts += 1
            else:
                return conflicts

    with ThreadPoolExecutor(6) as pool:
        conflicts = sum(pool.map(append, range(6)))
    assert sorted(hub.file("ann/m", "list.txt").split()) == [b"%d" % n for n in range(6)]
    assert len(hub.commits("ann/m")) == 8
    assert conflicts == sum(entry.status == 412 for entry in hub.log.find("/commit/"))


def test_large_file_is_sent_once(hub: HubServer, ann: HfApi) -> None:
    ann.create_repo("ann/m")
    content = b"w" * 1000
    for name in ("a.safetensors", "b.safetensors"):
        ann.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="ann/m")
    puts = hub.log.find("/_lfs/", "PUT")
    assert [(entry.received, entry.authorized) for entry in puts] == [(1000, False)]
    assert len(hub.log.find("/verify$")) == 1
    assert hub.file("ann/m", "b.safetensors") == content
    hub.settings.lfs_over = 10
    ann.upload_file(path_or_fileobj=b"text" * 5, path_in_repo="long.txt", repo_id="ann/m")
    assert hub.repo("ann/m").resolve("main").tree["long.txt"].lfs


def test_large_file_goes_in_parts(hub: HubServer, ann: HfApi, tmp_path: Path) -> None:
    hub.settings.multipart_over, hub.settings.part_size = 100, 64
    content = bytes(range(200))
    (tmp_path / "w.bin").write_bytes(content)
    ann.create_repo("ann/m")
    hub.fault("status", "/part/2", status=500)
    ann.upload_file(path_or_fileobj=tmp_path / "w.bin", path_in_repo="w.bin", repo_id="ann/m")
    assert hub.file("ann/m", "w.bin") == content
    parts = hub.log.find("/part/", "PUT")
    assert [entry.received for entry in parts] == [64, 64, 64, 64, 8]
    assert not hub.site.parts


def test_storage_checks_hashes_and_signatures(hub: HubServer, ann: HfApi) -> None:
    ann.create_repo("ann/m")
    oid = hashlib.sha256(b"right").hexdigest()
    path = f"/_lfs/models/ann/m/{oid}"
    session = get_session()
    assert session.put(f"{hub.url}{path}", content=b"right").status_code == 403
    assert session.put(f"{hub.url}{hub.site.sign(path)}", content=b"wrong").status_code == 400
    assert oid not in hub.repo("ann/m").lfs
    assert session.put(f"{hub.url}{hub.site.sign(path)}", content=b"right").status_code == 200
    assert session.get(f"{hub.url}/_storage/models/ann/m/{oid}/x").status_code == 403

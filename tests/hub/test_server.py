"""The tests' Hub, spoken to by the real client: repositories, listings, downloads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import (
    HfApi,
    get_session,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.common import CARD, AsUser, status
from tests.hub.server import HubServer


def test_repository_is_made_set_and_removed(hub: HubServer, ann: HfApi, as_user: AsUser) -> None:
    url = ann.create_repo("ann/d", repo_type="dataset", private=True)
    assert (url.repo_id, url.repo_type, str(url)) == (
        "ann/d",
        "dataset",
        f"{hub.url}/datasets/ann/d",
    )
    assert ann.create_repo("ann/d", repo_type="dataset", exist_ok=True).repo_id == "ann/d"
    with pytest.raises(HfHubHTTPError) as error:
        ann.create_repo("ann/d", repo_type="dataset")
    assert status(error) == 409
    ann.create_repo("d")  # a model of the same name, in the user's namespace
    assert hub.repos() == ["ann/d", "datasets/ann/d"]
    ann.create_repo("ann/s", repo_type="space", space_sdk="static")
    assert ann.space_info("ann/s").sdk == "static"
    for repo, code in (("lab/m", 403), ("ann/" + "x" * 96, 200), ("ann/" + "x" * 97, 400)):
        answer = get_session().post(
            f"{hub.url}/api/repos/create",
            headers={"Authorization": f"Bearer {ann.token}"},
            json=dict(zip(("organization", "name"), repo.split("/"), strict=True)),
        )
        assert answer.status_code == code
    with pytest.raises(HfHubHTTPError) as error:
        as_user("ann", role="read").create_repo("ann/e")
    assert status(error) == 403

    ann.update_repo_settings("ann/d", repo_type="dataset", private=False, gated="manual")
    info = as_user(None).dataset_info("ann/d")
    assert (info.private, info.gated) == (False, "manual")
    ann.delete_repo("ann/d", repo_type="dataset")
    assert not ann.repo_exists("ann/d", repo_type="dataset")
    ann.delete_repo("ann/d", repo_type="dataset", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        ann.delete_repo("ann/d", repo_type="dataset")


def test_info_is_computed_from_the_files(hub: HubServer, ann: HfApi) -> None:
    results = "- dataset: {id: openai/gsm8k, task_id: default}\n  value: 20.5\n"
    sha = hub.put_model(
        "ann/m",
        {"README.md": CARD, "model.safetensors": b"12345", ".eval_results/a.yaml": results},
    )
    info = ann.model_info("ann/m", files_metadata=True)
    assert info.sha == sha
    assert info.card_data is not None
    assert info.card_data.base_model == ["ann/one", "ann/two"]
    assert {"merge", "license:apache-2.0", "base_model:ann/one"} <= set(info.tags or [])
    siblings = {entry.rfilename: entry for entry in info.siblings or []}
    large = siblings["model.safetensors"]
    assert large.lfs is not None
    assert (large.size, large.lfs.sha256) == (5, hashlib.sha256(b"12345").hexdigest())
    assert siblings["README.md"].lfs is None
    some = ann.model_info("ann/m", expand=["baseModels", "evalResults", "sha"])
    assert some.siblings is None
    assert some.base_models["relation"] == "merge"  # type: ignore[index]
    assert [entry.value for entry in some.eval_results or []] == [20.5]
    hub.put_model("bob/other", {"a": "a"})
    assert [m.id for m in ann.list_models(author="ann")] == ["ann/m"]
    assert [m.id for m in ann.list_models(filter="merge")] == ["ann/m"]
    hub.settings.commits_page = 1
    assert [m.id for m in ann.list_models()] == ["ann/m", "bob/other"]


def test_safetensors_headers(hub: HubServer, ann: HfApi, models: object) -> None:
    base = models.base  # type: ignore[attr-defined]
    hub.put_model("ann/m", base)
    hub.log.reset()
    metadata = ann.get_safetensors_metadata("ann/m")
    assert [entry.status for entry in hub.log.find("_storage", "GET")] == [206]
    info = ann.model_info("ann/m", expand=["safetensors"]).safetensors
    assert info is not None
    assert info.parameters == metadata.parameter_count
    assert metadata.files_metadata["model.safetensors"].tensors


def test_branches_tags_and_squashing(hub: HubServer, ann: HfApi) -> None:
    first = hub.put_model("ann/m", {"a.txt": "1"})
    ann.create_branch("ann/m", branch="side/way", revision=first)
    ann.create_tag("ann/m", tag="v1", tag_message="one")
    second = ann.upload_file(
        path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="ann/m", revision="side/way"
    ).oid
    refs = ann.list_repo_refs("ann/m")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {
        "main": first,
        "side/way": second,
    }
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [
        ("v1", "refs/tags/v1", first)
    ]
    assert ann.model_info("ann/m", revision="v1").sha == first
    assert ann.model_info("ann/m", revision="side/way").sha == second
    assert ann.model_info("ann/m", revision=second[:9]).sha == second
    for call in (
        lambda: ann.create_branch("ann/m", branch="side/way"),
        lambda: ann.create_tag("ann/m", tag="v1"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            call()
        assert status(error) == 409
    ann.create_branch("ann/m", branch="side/way", exist_ok=True)
    ann.create_tag("ann/m", tag="v1", exist_ok=True)
    ann.super_squash_history("ann/m", branch="side/way")
    assert len(ann.list_repo_commits("ann/m", revision="side/way")) == 1
    assert hub.file("ann/m", "a.txt", revision="side/way") == b"2"
    ann.delete_tag("ann/m", tag="v1")
    ann.delete_branch("ann/m", branch="side/way")
    with pytest.raises(RevisionNotFoundError):
        ann.model_info("ann/m", revision="v1")
    with pytest.raises(RevisionNotFoundError):
        ann.delete_branch("ann/m", branch="side/way")


def test_listings_come_in_pages(hub: HubServer, ann: HfApi) -> None:
    hub.settings.page = hub.settings.commits_page = 2
    hub.settings.expanded_page = 1
    names = ["a/x.txt", "a/y.bin", "b.txt", "c/d/z.txt"]
    hub.put_model("ann/m", {name: name for name in names}, title="all")
    hub.put_model("ann/m", {"b.txt": "new"}, title="b only")
    for number in range(3):
        hub.put_model("ann/m", {f"n{number}": "n"}, title=f"n{number}")
    flat = [entry.path for entry in ann.list_repo_tree("ann/m")]
    assert flat == [".gitattributes", "a", "b.txt", "c", "n0", "n1", "n2"]
    deep = [entry.path for entry in ann.list_repo_tree("ann/m", recursive=True)]
    assert {"a", "c", "c/d", *names} <= set(deep)
    assert [entry.path for entry in ann.list_repo_tree("ann/m", "c")] == ["c/d"]
    assert hub.log.find(r"cursor=2")
    expanded = {e.path: e.last_commit for e in ann.list_repo_tree("ann/m", expand=True)}
    assert {path: last.title for path, last in expanded.items() if last and path in "ab.txt"} == {
        "a": "all",
        "b.txt": "b only",
    }
    titles = [commit.title for commit in ann.list_repo_commits("ann/m")]
    assert titles == ["n2", "n1", "n0", "b only", "all", "initial commit"]
    info = {entry.path: entry for entry in ann.get_paths_info("ann/m", ["a", "a/y.bin", "no"])}
    assert set(info) == {"a", "a/y.bin"}
    assert info["a/y.bin"].lfs.size == 7  # type: ignore[union-attr]
    with pytest.raises(EntryNotFoundError):
        list(ann.list_repo_tree("ann/m", "nowhere"))


@pytest.mark.parametrize("redirect", [True, False])
def test_resolve_serves_metadata_and_ranges(
    hub: HubServer, ann: HfApi, redirect: bool, tmp_path: Path
) -> None:
    hub.settings.redirect = redirect
    content = bytes(range(100))
    sha = hub.put_dataset("ann/d", {"a b/w.bin": content, "t.txt": "hello"})
    large = ann.get_hf_file_metadata(url=f"{hub.url}/datasets/ann/d/resolve/main/a%20b/w.bin")
    assert (large.commit_hash, large.size) == (sha, 100)
    assert large.etag == hashlib.sha256(content).hexdigest()
    assert ("_storage" in large.location) is redirect
    small = ann.get_hf_file_metadata(url=f"{hub.url}/datasets/ann/d/resolve/{sha}/t.txt")
    assert small.etag == hashlib.sha1(b"blob 5\0hello").hexdigest()
    url = f"{hub.url}/datasets/ann/d/resolve/main/a%20b/w.bin"
    for asked, code, part, span in (
        ("bytes=10-19", 206, content[10:20], "bytes 10-19/100"),
        ("bytes=90-", 206, content[90:], "bytes 90-99/100"),
        ("bytes=-5", 206, content[95:], "bytes 95-99/100"),
        ("bytes=0-999", 206, content, "bytes 0-99/100"),
        ("items=1-2", 200, content, None),
    ):
        answer = get_session().get(url, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (code, part)
        assert answer.headers.get("Content-Range") == span
    assert get_session().get(url, headers={"Range": "bytes=100-"}).status_code == 416
    path = ann.hf_hub_download("ann/d", "a b/w.bin", repo_type="dataset", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    assert f"snapshots/{sha}" in path
    storage = hub.log.find("_storage")
    assert bool(storage) is redirect
    assert not any(entry.authorized for entry in storage)


def test_errors_are_those_the_client_knows(hub: HubServer, ann: HfApi, tmp_path: Path) -> None:
    hub.put_model("ann/m", {"a.txt": "a"})
    for error, repo, name, revision in (
        (RepositoryNotFoundError, "ann/none", "a.txt", None),
        (RepositoryNotFoundError, "gpt2", "a.txt", None),
        (RevisionNotFoundError, "ann/m", "a.txt", "none"),
        (EntryNotFoundError, "ann/m", "none.txt", None),
    ):
        with pytest.raises(error):
            ann.hf_hub_download(repo, name, revision=revision, cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        ann.model_info("gpt2")
    assert ann.file_exists("ann/m", "a.txt")
    assert not ann.file_exists("ann/m", "none.txt")
    assert list(tmp_path.rglob(".no_exist/*/none.txt"))  # the client was told the commit


def test_bad_requests_are_named(hub: HubServer, ann: HfApi) -> None:
    hub.put_model("ann/m", {"a": "a"})
    with pytest.raises(BadRequestError):
        ann.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="ann/m", create_pr=True)
    assert get_session().get(f"{hub.url}/api/nothing").status_code == 404
    assert get_session().patch(f"{hub.url}/api/models/ann/m").status_code == 405

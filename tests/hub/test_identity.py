"""Who may see, read and write what on the tests' Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import (
    HfApi,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
)

from tests.hub.common import AsUser, status
from tests.hub.server import HubServer


def test_whoami_tells_user_orgs_and_role(as_user: AsUser) -> None:
    me = as_user("ann", orgs={"lab": "admin"}).whoami()
    assert (me["type"], me["name"], me["auth"]["accessToken"]["role"]) == ("user", "ann", "write")
    assert [(org["name"], org["roleInOrg"]) for org in me["orgs"]] == [("lab", "admin")]
    limited = as_user("bob", role="fineGrained", scopes={"bob/m": "write"}).whoami()
    access = limited["auth"]["accessToken"]
    assert access["role"] == "fineGrained"
    assert access["fineGrained"]["scoped"][0]["entity"]["name"] == "bob/m"


def test_bad_token_is_refused_everywhere(hub: HubServer, tmp_path: Path) -> None:
    hub.put_model("ann/m", {"a.txt": "a"})
    api = HfApi(endpoint=hub.url, token="hf_never_issued")
    for call in (
        api.whoami,
        lambda: api.model_info("ann/m"),
        lambda: api.create_repo("ann/n"),
        lambda: api.hf_hub_download("ann/m", "a.txt", cache_dir=tmp_path),
    ):
        with pytest.raises(HfHubHTTPError, match=r"Invalid") as error:
            call()
        assert status(error) == 401
        assert not isinstance(error.value, RepositoryNotFoundError)


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_private_repository_is_hidden(
    hub: HubServer, as_user: AsUser, kind: str, tmp_path: Path
) -> None:
    prefix = "" if kind == "model" else f"{kind}s/"
    hub.put(f"{prefix}ann/secret", {"a.txt": "a"}, private=True)
    for user, code in ((None, 401), ("bob", 404)):
        api = as_user(user)
        for call in (
            lambda api=api: api.repo_info("ann/secret", repo_type=kind),
            lambda api=api: api.auth_check("ann/secret", repo_type=kind),
            lambda api=api: api.list_repo_files("ann/secret", repo_type=kind),
            lambda api=api: api.hf_hub_download(
                "ann/secret", "a.txt", repo_type=kind, cache_dir=tmp_path
            ),
        ):
            with pytest.raises(RepositoryNotFoundError) as error:
                call()
            assert status(error) == code
    for api in (as_user("ann"), as_user("cy", orgs={"ann": "read"})):
        assert api.repo_info("ann/secret", repo_type=kind).private is True
        path = api.hf_hub_download("ann/secret", "a.txt", repo_type=kind, cache_dir=tmp_path)
        assert Path(path).read_text() == "a"
    assert [m.id for m in as_user(None).list_models()] == []


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_gated_repository_shows_itself_but_not_its_files(
    hub: HubServer, as_user: AsUser, kind: str, tmp_path: Path
) -> None:
    repo = "ann/gated" if kind == "model" else "datasets/ann/gated"
    hub.put(repo, {"a.txt": "a", "w.safetensors": b"w"}, gated=True)
    for user, code in ((None, 401), ("bob", 403)):
        api = as_user(user)
        assert api.repo_info("ann/gated", repo_type=kind).gated == "auto"
        for name in ("a.txt", "w.safetensors"):
            with pytest.raises(GatedRepoError) as error:
                api.hf_hub_download("ann/gated", name, repo_type=kind, cache_dir=tmp_path)
            assert status(error) == code
        with pytest.raises(GatedRepoError):
            api.auth_check("ann/gated", repo_type=kind)
    hub.grant(repo, "bob")
    api = as_user("bob")
    api.auth_check("ann/gated", repo_type=kind)
    assert api.hf_hub_download("ann/gated", "a.txt", repo_type=kind, cache_dir=tmp_path)


def test_rights_to_write(hub: HubServer, as_user: AsUser) -> None:
    hub.put_model("lab/m", {"a.txt": "a"})
    hub.put_model("lab/n", {"a.txt": "a"})
    may = [
        as_user("ann", orgs={"lab": "write"}),
        as_user("ann", role="fineGrained", scopes={"lab/m": "write"}),
        as_user("ann", role="fineGrained", scopes={"lab": "write"}),
    ]
    may_not = [
        as_user("ann", role="read"),
        as_user("bob", orgs={"lab": "read"}),
        as_user("cy"),
        as_user("ann", role="fineGrained", scopes={"lab/m": "read", "lab/n": "write"}),
    ]
    for number, api in enumerate(may):
        api.auth_check("lab/m", write=True)
        api.upload_file(path_or_fileobj=b"%d" % number, path_in_repo="a.txt", repo_id="lab/m")
    for api in may_not:
        with pytest.raises(HfHubHTTPError) as error:
            api.auth_check("lab/m", write=True)
        assert status(error) == 403
        with pytest.raises(HfHubHTTPError) as error:
            api.upload_file(path_or_fileobj=b"x", path_in_repo="b.txt", repo_id="lab/m")
        assert status(error) == 403
        with pytest.raises(HfHubHTTPError) as error:
            api.delete_repo("lab/m")
        assert status(error) == 403
    assert hub.file("lab/m", "a.txt") == b"2"
    assert "b.txt" not in hub.files("lab/m")

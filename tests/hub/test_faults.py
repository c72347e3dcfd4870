"""Faults, deaths and the log of the tests' Hub, felt by the real client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from tests.hub.server import HubServer


def add(api: HfApi, name: str = "a.txt", content: bytes = b"a", **options: str) -> str:
    return api.upload_file(
        path_or_fileobj=content, path_in_repo=name, repo_id="ann/m", **options
    ).oid


@pytest.fixture
def repo(hub: HubServer) -> HubServer:
    hub.put_model("ann/m", {"old.txt": "old", "w.bin": bytes(range(200))})
    hub.log.reset()
    return hub


def test_status_comes_with_body_and_headers(repo: HubServer, ann: HfApi) -> None:
    fault = repo.fault(
        "status",
        r"/commit/main",
        method="POST",
        status=429,
        body={"error": "slow down"},
        headers={"Retry-After": "7", "RateLimit": '"api";r=0;t=7'},
    )
    with pytest.raises(HfHubHTTPError, match="slow down") as error:
        add(ann)
    assert error.value.response.status_code == 429
    assert error.value.response.headers["Retry-After"] == "7"
    assert "a.txt" not in repo.files("ann/m")
    add(ann)  # once only
    assert (fault.seen, fault.fired) == (2, 1)


def test_error_code_picks_the_exception(repo: HubServer, ann: HfApi) -> None:
    repo.fault("status", status=404, headers={"X-Error-Code": "RevisionNotFound"})
    with pytest.raises(RevisionNotFoundError):
        ann.model_info("ann/m")


def test_nth_and_times_choose_the_requests(repo: HubServer, ann: HfApi) -> None:
    repo.fault("status", "/api/models/ann/m$", nth=2, times=2)
    seen = []
    for _ in range(4):
        try:
            ann.model_info("ann/m")
            seen.append(200)
        except HfHubHTTPError as error:
            seen.append(error.response.status_code)
    assert seen == [200, 503, 503, 200]
    always = repo.fault("status", "/api/models/ann/m$", times=None, status=500)
    for _ in range(3):
        with pytest.raises(HfHubHTTPError):
            ann.model_info("ann/m")
    assert always.fired == 3
    repo.faults.clear()
    ann.model_info("ann/m")


def test_client_waits_out_what_it_retries(repo: HubServer, ann: HfApi) -> None:
    repo.fault("status", "/preupload/", times=2, status=502)
    repo.fault("drop", "objects/batch")
    repo.fault("lose", "/_lfs/.*[0-9a-f]{64}.signature", method="PUT")
    add(ann, "new.bin", b"new")
    assert repo.file("ann/m", "new.bin") == b"new"
    assert [entry.fault for entry in repo.log.entries if entry.fault] == [
        *("status", "status", "drop", "lose")
    ]


def test_dropped_request_does_nothing(repo: HubServer, ann: HfApi) -> None:
    repo.fault("drop", "/commit/")
    with pytest.raises(httpx2.RemoteProtocolError):
        add(ann)
    assert len(repo.commits("ann/m")) == 2
    (entry,) = repo.log.find("/commit/")
    assert (entry.status, entry.fault) == (None, "drop")
    assert entry.received > 0


def test_lost_answer_leaves_the_work_done(repo: HubServer, ann: HfApi) -> None:
    parent = repo.commits("ann/m")[0].oid
    repo.fault("lose", "/commit/")
    with pytest.raises(httpx2.RemoteProtocolError):
        add(ann, parent_commit=parent)
    assert repo.file("ann/m", "a.txt") == b"a"
    assert len(repo.commits("ann/m")) == 3
    with pytest.raises(HfHubHTTPError) as error:  # a blind retry runs into its own commit
        add(ann, content=b"b", parent_commit=parent)
    assert error.value.response.status_code == 412


def test_truncated_download_is_resumed(repo: HubServer, ann: HfApi, tmp_path: Path) -> None:
    repo.fault("truncate", "_storage", method="GET", keep=70)
    path = ann.hf_hub_download("ann/m", "w.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == bytes(range(200))
    gets = repo.log.find("_storage", "GET")
    assert (gets[0].sent, gets[0].fault) == (70, "truncate")
    assert sum(entry.sent for entry in gets) in (200, 270)  # resumed, or begun anew


def test_truncated_json_breaks_the_call(repo: HubServer, ann: HfApi) -> None:
    repo.fault("truncate", "/api/models/ann/m$")
    with pytest.raises(httpx2.RemoteProtocolError):
        ann.model_info("ann/m")


def test_corrupted_download_has_the_right_length(
    repo: HubServer, ann: HfApi, tmp_path: Path
) -> None:
    repo.fault("corrupt", "w.bin", at=3)
    path = ann.hf_hub_download("ann/m", "w.bin", cache_dir=tmp_path)
    content = Path(path).read_bytes()  # the client does not look
    assert content == bytes([0, 1, 2, 3 ^ 0xFF, *range(4, 200)])
    assert repo.file("ann/m", "w.bin") == bytes(range(200))


def test_delay_holds_the_answer_back(repo: HubServer, ann: HfApi) -> None:
    repo.fault("delay", "/api/models/ann/m$", seconds=600)
    with pytest.raises(httpx2.ReadTimeout):
        ann.model_info("ann/m", timeout=0.1)
    ann.model_info("ann/m", timeout=10)  # only the first was held


def test_unknown_fault_is_refused(hub: HubServer) -> None:
    with pytest.raises(ValueError, match="Unknown kind"):
        hub.fault("explode")  # type: ignore[arg-type]


def test_death_refuses_connections_until_revived(repo: HubServer, ann: HfApi) -> None:
    ann.model_info("ann/m")  # leaves a connection open
    repo.die()
    for _ in range(2):
        with pytest.raises((httpx2.ConnectError, httpx2.RemoteProtocolError, httpx2.ReadError)):
            ann.model_info("ann/m")
    with pytest.raises(httpx2.ConnectError):
        get_session().get(repo.url)
    repo.revive()
    assert ann.model_info("ann/m").sha == repo.commits("ann/m")[0].oid
    for _ in range(3):  # dying and coming back at once
        repo.die()
        repo.revive()
    ann.model_info("ann/m")


def test_push_killed_at_every_request_can_be_finished(as_folder: Path) -> None:
    """What a sweep looks like: no kill, then one at each request, before and after its work."""

    def push(hub: HubServer, token: str) -> None:
        api = HfApi(endpoint=hub.url, token=token)
        api.create_repo("ann/m", exist_ok=True)
        api.upload_folder(folder_path=as_folder, repo_id="ann/m")

    with HubServer() as hub:
        push(hub, hub.token("ann"))
        wanted, requests = hub.files("ann/m"), len(hub.log)
    assert requests >= 7
    for number in range(1, requests + 1):
        for after in (False, True):
            with HubServer() as hub:
                token = hub.token("ann")
                hub.die_at(number, after=after)
                # Uploads run in threads, and their errors come wrapped.
                with pytest.raises((httpx2.HTTPError, RuntimeError)):
                    push(hub, token)
                assert hub.dead
                assert hub.log.entries[number - 1].fault == ("died after" if after else "died")
                hub.revive()
                push(hub, token)
                assert hub.files("ann/m") == wanted


@pytest.fixture
def as_folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "a.safetensors").write_bytes(b"a" * 100)
    (tmp_path / "b.txt").write_text("b")
    return tmp_path


def test_log_counts_requests_and_bytes(repo: HubServer, ann: HfApi, tmp_path: Path) -> None:
    ann.hf_hub_download("ann/m", "w.bin", cache_dir=tmp_path)
    head, get = repo.log.entries
    assert (head.method, head.target, head.status) == (
        *("HEAD", "/ann/m/resolve/main/w.bin"),
        302,
    )
    assert (head.sent, head.authorized) == (0, True)
    assert (get.status, get.sent, get.received, get.authorized) == (200, 200, 0, False)
    assert "hf_hub/" in get.agent
    assert (repo.log.sent, repo.log.received, len(repo.log)) == (200, 0, 2)
    get_session().post(f"{repo.url}/api/validate-yaml", content=iter([b"{", b"}"]))  # chunked
    assert repo.log.received == 2
    repo.log.reset()
    assert (len(repo.log), repo.log.sent) == (0, 0)


def test_many_clients_at_once(repo: HubServer, as_user: Callable[..., HfApi]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    users = [as_user(f"user{number}", orgs={"ann": "write"}) for number in range(8)]

    def work(number: int) -> None:
        for turn in range(5):
            add(users[number], f"{number}/{turn}.bin", b"%d %d" % (number, turn))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(repo.commits("ann/m")) == 42
    assert len(repo.files("ann/m")) == 43

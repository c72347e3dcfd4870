"""Models fetched from the tests' Hub: pinned, looked at, verified, repaired; no debris."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import HfApi, constants
from safetensors import safe_open
from safetensors.numpy import save

from cqd_hub import files
from cqd_hub.errors import RunError, UserError
from cqd_hub.hub import listing
from cqd_hub.hub.client import Hub, HubAway
from cqd_hub.hub.fetch import fetch, look
from cqd_hub.hub.reference import Reference, parse
from tests.hub.server import HubServer

Connect = Callable[..., Hub]
WEIGHTS = save({"w": np.arange(60_000, dtype=np.float32).reshape(200, 300)})
CARD = "---\nlicense: mit\nbase_model: ann/origin\n---\n"
FILES: dict[str, bytes | str] = {
    "config.json": '{"architectures": ["X"]}',
    "tokenizer.json": "{}",
    "model.safetensors": WEIGHTS,
    "README.md": CARD,
    "LICENSE": "MIT",
    "pytorch_model.bin": b"\x80\x04pickle",
    "training_args.bin": b"\x80\x04pickle",
    "modeling_x.py": "raise SystemExit",
    "consolidated.safetensors": WEIGHTS[::-1],
    "onnx/model.onnx": b"other",
    "original/tokenizer.model": b"other",
    "additional_chat_templates/tools.jinja": "{{ messages }}",
    ".gitattributes": "*.bin lfs",
}
NEEDED = {
    *("config.json", "tokenizer.json", "model.safetensors", "README.md", "LICENSE"),
    "additional_chat_templates/tools.jinja",
}
M = parse("ann/m")
FETCH = (
    "from cqd_hub.hub.client import Hub; from cqd_hub.hub.fetch import fetch; "
    "from cqd_hub.hub.reference import parse; fetch(Hub(), [parse('ann/m')])"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches for every test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("CQD_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_HASHED", {})
    return tmp_path


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def connect(hub: HubServer, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Our client as a user of the tests' Hub, or as nobody."""

    def make(user: str | None = None, *, patience: float = 0.0, token: str | None = None) -> Hub:
        made = Hub(note=notes.append, patience=patience)
        known = token or (hub.token(user) if user else False)
        made.api = HfApi(endpoint=hub.url, token=known)
        return made

    quick = SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic)
    monkeypatch.setattr("cqd_hub.hub.client.time", quick)
    return make


@pytest.fixture
def sha(hub: HubServer) -> str:
    return hub.put_model("ann/m", FILES)


def debris(home: Path) -> list[str]:
    """What no cache should hold after a command."""
    left = [*home.rglob("*.incomplete"), *home.rglob("headers-*"), *home.rglob(".*.json.*")]
    return [str(path.relative_to(home)) for path in left]


class TestPinned:
    def test_what_is_fetched(self, hub: HubServer, connect: Connect, sha: str, home: Path) -> None:
        (made,) = fetch(connect(), [M])
        assert made.reference == f"ann/m@{sha}"
        assert made.path == home / "hub" / "models--ann--m" / "snapshots" / sha
        found = [path for path in made.path.rglob("*") if path.is_file()]
        assert {path.relative_to(made.path).as_posix() for path in found} == NEEDED
        assert (made.path / "model.safetensors").read_bytes() == WEIGHTS
        assert (made.licence.id, made.licence.file) == ("mit", "LICENSE")
        assert (made.gated, made.base_model) == (False, ("ann/origin",))
        assert not debris(home)

    def test_pinned_and_cached_takes_no_request(
        self, hub: HubServer, connect: Connect, sha: str
    ) -> None:
        first = fetch(connect(), [M])
        hub.log.reset()
        hub.die()
        assert fetch(connect(), [Reference("ann/m", sha)]) == first
        assert not hub.log.entries

    def test_known_weights_are_not_hashed_again(self, connect: Connect, sha: str) -> None:
        (made,) = fetch(connect(), [M])
        files._HASHED.clear()  # as in another process
        fetch(connect(), [Reference("ann/m", sha)])
        path = (made.path / "model.safetensors").resolve()
        assert files._HASHED[path][1] == hashlib.sha256(WEIGHTS).hexdigest()
        path.write_bytes(WEIGHTS[:-1] + b"!")
        assert files.sha256_of(path) == hashlib.sha256(WEIGHTS[:-1] + b"!").hexdigest()

    def test_a_branch_is_asked_for_never_guessed(self, hub: HubServer, connect: Connect) -> None:
        hub.put_model("ann/m", FILES)
        fetch(connect(), [M])
        hub.die()
        with pytest.raises(HubAway):
            fetch(connect(), [M])

    def test_moved_branch_brings_only_what_changed(
        self, hub: HubServer, connect: Connect, sha: str
    ) -> None:
        fetch(connect(), [M])
        moved = hub.put_model("ann/m", {"README.md": CARD + "more"})
        hub.log.reset()
        (made,) = fetch(connect(), [M])
        assert made.sha == moved
        assert hub.log.sent < len(WEIGHTS) // 2 + 100_100  # the header's range, no weights
        assert fetch(connect(), [Reference("ann/m", sha)])[0].sha == sha

    def test_branches_tags_and_uris(self, hub: HubServer, connect: Connect, sha: str) -> None:
        other = hub.put_model("ann/m", {"LICENSE": "other"}, branch="v2")
        for place, wanted in (("hf://ann/m@v2", other), ("hf://models/ann/m", sha)):
            assert fetch(connect(), [parse(place)])[0].sha == wanted

    def test_shards_by_their_index(self, hub: HubServer, connect: Connect) -> None:
        names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        index = {"weight_map": {"a": names[0], "b": names[1], "c": "../../escape.safetensors"}}
        shards: dict[str, bytes | str] = dict.fromkeys(names, WEIGHTS)
        extra = {"model.safetensors.index.json": json.dumps(index), "config.json": "{}"}
        hub.put_model("ann/m", {**shards, **extra, "stray.safetensors": WEIGHTS})
        (made,) = fetch(connect(), [M])
        assert {path.name for path in made.path.iterdir()} == {*names, *extra}


class TestLookedAtFirst:
    def test_headers_without_data(self, hub: HubServer, connect: Connect, home: Path) -> None:
        hub.put_model("ann/m", FILES)
        with look(connect(), [M]) as (folder,):
            with safe_open(folder / "model.safetensors", framework="np") as opened:
                part = opened.get_slice("w")
                assert (part.get_shape(), part.get_dtype()) == ([200, 300], "F32")
            assert (folder / "config.json").read_text() == FILES["config.json"]
            assert (folder / "pytorch_model.bin").stat().st_size == 0
        assert hub.log.sent < 110_000  # of 240 kB
        assert not debris(home)
        assert not list(home.rglob("model.safetensors"))

    def test_refused_before_any_weights(self, hub: HubServer, connect: Connect, home: Path) -> None:
        hub.put_model("ann/m", FILES)
        hub.put_model("ann/n", FILES)

        def check(folders: Sequence[Path]) -> None:
            assert all((folder / "model.safetensors").exists() for folder in folders)
            raise UserError("no")

        with pytest.raises(UserError, match="no"):
            fetch(connect(), [M, parse("ann/n")], check=check)
        assert not hub.log.find("safetensors", "HEAD")  # which comes before a download
        assert not debris(home)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0" * 64,
            b"\xff" * 64,
            b"not json ".rjust(200),
            (80).to_bytes(8, "little")
            + b'{"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 99999999999999]}}'.ljust(
                80
            ),
        ],
    )
    def test_what_is_no_safetensors_file(
        self, hub: HubServer, connect: Connect, content: bytes
    ) -> None:
        hub.put_model("ann/m", FILES | {"model.safetensors": content})
        with pytest.raises(UserError, match="is damaged or no safetensors file"):
            fetch(connect(), [M])

    def test_disk_is_asked_before(
        self, hub: HubServer, connect: Connect, sha: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "cqd_hub.hub.fetch.shutil.disk_usage", lambda _: SimpleNamespace(free=1000)
        )
        with pytest.raises(UserError, match=r"need 0.2 MB more, 0.0 MB are free.*HF_HOME"):
            fetch(connect(), [M])
        assert not hub.log.find("safetensors", "HEAD")


class TestDamage:
    @pytest.mark.parametrize(("name", "nth"), [("model.safetensors", 2), ("tokenizer.json", 1)])
    def test_corrupted_on_the_way(
        self, hub: HubServer, connect: Connect, sha: str, notes: list[str], name: str, nth: int
    ) -> None:
        fault = hub.fault("corrupt", rf"/{name}", method="GET", nth=nth)
        (made,) = fetch(connect(), [M])
        wanted = FILES[name]
        assert (made.path / name).read_bytes() == (
            wanted.encode() if isinstance(wanted, str) else wanted
        )
        assert fault.fired == 1
        assert any(f"{name} is damaged; downloading it again" in note for note in notes)

    def test_corrupted_twice(self, hub: HubServer, connect: Connect, sha: str, home: Path) -> None:
        fault = hub.fault("corrupt", r"/tokenizer.json", method="GET", times=None)
        with pytest.raises(RunError, match="does not have the hash that the Hub gives"):
            fetch(connect(), [M])
        assert fault.fired == 2
        assert not list(home.rglob("tokenizer.json"))
        hub.faults.clear()
        fetch(connect(), [M])

    def test_spoilt_in_the_cache(
        self, hub: HubServer, connect: Connect, sha: str, notes: list[str]
    ) -> None:
        (made,) = fetch(connect(), [M])
        path = (made.path / "model.safetensors").resolve()
        path.write_bytes(b"\0" + WEIGHTS[1:])
        fetch(connect(), [Reference("ann/m", sha)])
        assert (made.path / "model.safetensors").read_bytes() == WEIGHTS

    def test_cut_short(self, hub: HubServer, connect: Connect, sha: str, home: Path) -> None:
        fault = hub.fault("truncate", r"/model.safetensors", method="GET", nth=2)
        (made,) = fetch(connect(), [M])
        assert fault.fired == 1
        assert (made.path / "model.safetensors").read_bytes() == WEIGHTS
        assert not debris(home)

    def test_busy_hub_is_waited_for(
        self, hub: HubServer, connect: Connect, sha: str, notes: list[str]
    ) -> None:
        hub.fault("status", "/api/models/ann/m", status=429, headers={"Retry-After": "2"})
        hub.fault("status", "/_storage/", method="GET", status=503)
        (made,) = fetch(connect(patience=30), [M])
        assert (made.path / "model.safetensors").read_bytes() == WEIGHTS
        assert any("429" in note and "trying again in 3 s" in note for note in notes)

    def test_killed_download_leaves_nothing_for_long(
        self, hub: HubServer, connect: Connect, sha: str, home: Path
    ) -> None:
        hub.fault("delay", "/_storage/.*model.safetensors", nth=2, seconds=60)
        environment = hub.environment(home=home, CQD_HUB_CACHE=str(home / "cache"))
        child = subprocess.Popen([sys.executable, "-c", FETCH], env=environment)
        deadline = time.monotonic() + 60
        blob = hashlib.sha256(WEIGHTS).hexdigest()
        while not list((home / "hub").glob(f"*/blobs/{blob}.*.incomplete")):
            assert child.poll() is None
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        hub.fault("status", "/_storage/", times=None)
        with pytest.raises(HubAway):  # somebody else's download is let alone
            fetch(connect(), [M])
        assert debris(home)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        hub.faults.clear()
        (made,) = fetch(connect(), [M])
        assert (made.path / "model.safetensors").read_bytes() == WEIGHTS
        assert not debris(home)

    def test_several_processes_at_once(
        self, hub: HubServer, connect: Connect, sha: str, home: Path
    ) -> None:
        environment = hub.environment(home=home, CQD_HUB_CACHE=str(home / "cache"))
        children = [
            subprocess.Popen([sys.executable, "-c", FETCH], env=environment) for _ in range(3)
        ]
        assert [child.wait(60) for child in children] == [0, 0, 0]
        hub.log.reset()
        (made,) = fetch(connect(), [Reference("ann/m", sha)])
        assert (made.path / "model.safetensors").read_bytes() == WEIGHTS
        assert not hub.log.entries
        assert not debris(home)


class TestOffline:
    @pytest.fixture
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def test_cached_branch_is_taken_and_said(
        self,
        hub: HubServer,
        connect: Connect,
        sha: str,
        offline: Callable[[], None],
        notes: list[str],
    ) -> None:
        first = fetch(connect(), [M])
        offline()
        hub.log.reset()
        assert fetch(connect(), [M]) == first
        assert not hub.log.entries
        assert any("offline" in note and sha in note for note in notes)

    def test_other_tools_cache_will_do(
        self, hub: HubServer, ann: HfApi, connect: Connect, sha: str, offline: Callable[[], None]
    ) -> None:
        folder = Path(ann.snapshot_download("ann/m", cache_dir=constants.HF_HUB_CACHE))
        offline()
        assert fetch(connect(), [M])[0].path == folder
        (folder / "model.safetensors").resolve().write_bytes(b"\0" + WEIGHTS[1:])
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            fetch(connect(), [M])

    def test_uncached(self, connect: Connect, sha: str, offline: Callable[[], None]) -> None:
        offline()
        with pytest.raises(UserError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
            fetch(connect(), [M])

    def test_hub_away_with_a_pinned_cache_of_other_tools(
        self, hub: HubServer, ann: HfApi, connect: Connect, sha: str, notes: list[str]
    ) -> None:
        ann.snapshot_download("ann/m", cache_dir=constants.HF_HUB_CACHE)
        hub.die()
        assert fetch(connect(), [Reference("ann/m", sha)])[0].gated is None
        assert any("the Hub is away; using the cached files" in note for note in notes)


class TestRefused:
    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("ann/absent", "is not on the Hub, or private to others"),
            ("ann/private", "is not on the Hub, or private to others"),
            ("ann/gated", "is gated, and this token has no access.*hf auth login"),
            ("ann/m@v9", "has no such revision"),
            ("hf://datasets/ann/d", "is no model"),
        ],
    )
    def test_each_in_one_line(
        self, hub: HubServer, connect: Connect, sha: str, place: str, message: str, home: Path
    ) -> None:
        hub.put_model("ann/private", FILES, private=True)
        hub.put_model("ann/gated", FILES, gated=True)
        hub.put_dataset("ann/d", {"a.txt": "a"})
        with pytest.raises(UserError, match=message) as error:
            fetch(connect("bob"), [parse(place)])
        assert "\n" not in str(error.value)
        assert not debris(home)

    def test_bad_token(self, connect: Connect, sha: str) -> None:
        with pytest.raises(UserError, match=r"does not accept this token.*hf auth login"):
            fetch(connect(token="hf_wrong"), [M])

    def test_owner_and_granted_may(self, hub: HubServer, connect: Connect) -> None:
        hub.put_model("ann/private", FILES, private=True)
        hub.put_model("ann/gated", FILES, gated=True)
        hub.grant("ann/gated", "bob")
        assert fetch(connect("ann"), [parse("ann/private")])
        assert fetch(connect("bob"), [parse("ann/gated")])[0].gated is True


def test_a_record_is_no_promise(connect: Connect, sha: str) -> None:
    """A damaged record is as good as none."""
    fetch(connect(), [M])
    listing._record("ann/m", sha).write_text('{"files": []}')
    assert fetch(connect(), [M])[0].sha == sha

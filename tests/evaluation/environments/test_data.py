"""Finding data files, with real folders and a server that speaks the Hub's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments._data import find_data
from tests.hub.server import HubServer

NAMES = ("data/*/dev.jsonl", "**/dev.jsonl", "*.jsonl")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("data/db/dev.jsonl", "data/db/other.jsonl", "src/main.py"):
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "checkout"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CQD_HUB_PATIENCE", "0")
    with HubServer() as server:
        made = partial(HfApi, endpoint=server.url, token=False)
        monkeypatch.setattr("cqd_hub.hub.client.HfApi", made)
        yield server


def find(data: object, folder: Path, notes: list[str] | None = None) -> Path:
    note = (notes if notes is not None else []).append
    return find_data(str(data), folder, names=NAMES, where="options.data", note=note)


def test_a_file_is_taken_as_it_is(checkout: Path) -> None:
    assert find("data/db/other.jsonl", checkout).read_text() == "data/db/other.jsonl"


def test_a_folder_is_searched_for_the_best_pattern(checkout: Path) -> None:
    assert find("checkout", checkout.parent) == checkout / "data/db/dev.jsonl"
    assert find(checkout / "data", Path("/")) == checkout / "data/db/dev.jsonl"
    found = find_data("checkout", checkout.parent, names=["nothing", "data/db"], where="x")
    assert found == checkout / "data/db"


def test_home_expands(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkout))
    assert find("~/data/db", Path("/")) == checkout / "data/db/dev.jsonl"


def test_what_is_missing_or_ambiguous_gets_one_line(checkout: Path) -> None:
    with pytest.raises(UserError, match=r"^options.data: no such file or folder: .*nowhere"):
        find("./nowhere", checkout)
    # A data set of the Hub could be called so; waiting for one helps nobody.
    for name in ("data/dev.jsonl", "a/b.json", "a/b.jsonl.gz", "a/b.yaml"):
        with pytest.raises(UserError, match=f"^options.data: no such file or folder: .*{name}"):
            find(name, Path("/nowhere"))
    with pytest.raises(UserError, match=r"src holds no data/\*/dev.jsonl nor \*\*/dev.jsonl"):
        find("src", checkout)
    (checkout / "data/os").mkdir()
    (checkout / "data/os/dev.jsonl").write_text("")
    with pytest.raises(UserError, match=r"holds 2 that could be meant: .*name one of them"):
        find("checkout", checkout.parent)


def test_of_a_data_set_only_what_is_wanted_comes(hub: HubServer, tmp_path: Path) -> None:
    content = {"data/db/dev.jsonl": b"{}\n", "data/os/test.json": b"[]", "README.md": b"x"}
    sha = hub.put_dataset("ann/bench", content)
    notes: list[str] = []
    found = find("ann/bench", tmp_path, notes)
    assert found.read_bytes() == b"{}\n"
    assert found.parents[2].name == sha
    assert notes == [f"hf://datasets/ann/bench: at commit {sha}"]
    assert [path.name for path in found.parents[2].rglob("*") if path.is_file()] == ["dev.jsonl"]
    assert find(f"hf://datasets/ann/bench@{sha}", tmp_path, notes[:0]) == found


def test_a_data_set_without_the_files_or_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    hub.put_dataset("ann/bench", {"a.txt": b"x"})
    with pytest.raises(UserError, match="holds none of the files that are looked for"):
        find("ann/bench", tmp_path)
    with pytest.raises(UserError, match="is not on the Hub, or private to others"):
        find("ann/none", tmp_path)


def test_offline_the_cache_serves(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put_dataset("ann/bench", {"dev.jsonl": b"x"})
    found = find("ann/bench", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    notes: list[str] = []
    assert find("ann/bench", tmp_path, notes) == found
    assert "offline, taken as it is in the cache, at commit" in notes[0]
    with pytest.raises(UserError, match="is not in the cache, and HF_HUB_OFFLINE is set"):
        find("ann/other", tmp_path)

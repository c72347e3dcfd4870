"""What a push refuses, before it has written anything, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.server import HubServer
from tests.publish.conftest import Push

NOTHING = ("--elites", "none")


def refused(hub: HubServer, push: Push, *arguments: str, code: int = 2, **more: object) -> str:
    """The one line; nothing was created."""
    before = hub.repos()
    done = push(*(arguments or NOTHING), **more)
    assert done.code == code, done.err
    assert hub.repos() == before
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.err
    return lines[0]


def test_tokens(hub: HubServer, push: Push) -> None:
    assert "hf auth login" in refused(hub, push, HF_TOKEN=None)
    assert "does not accept this token" in refused(hub, push, HF_TOKEN="hf_bad")
    hub.token("ann", role="read", value="hf_read")
    assert "may only read" in refused(hub, push, HF_TOKEN="hf_read")
    for token in ("hf_bad", "hf_read"):
        assert token not in refused(hub, push, HF_TOKEN=token)
    hub.token("ann", role="fineGrained", scopes={"ann/other": "write"}, value="hf_fine")
    assert "may not" in refused(hub, push, HF_TOKEN="hf_fine")


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("small", "ns/name"),
        ("ann/a/b", "ns/name"),
        ("ann/" + "x" * 97, "97 characters"),
        ("ann/a--b", "'--'"),
        ("ann/a..b", "'..'"),
        ("ann/-a", "begin and end"),
        ("ann/a b", "letters"),
        ("ann/a.git", ".git"),
        ("bob/small", "neither you, ann"),
        ("club/small", "neither you, ann"),
    ],
)
def test_names_and_owners(hub: HubServer, push: Push, to: str, said: str) -> None:
    assert said in refused(hub, push, to=to)
    assert not [entry for entry in hub.log.entries if entry.method != "GET"]


def test_elites_need_names_too(hub: HubServer, push: Push) -> None:
    said = refused(hub, push, "--elites", "best:coding", to="ann/" + "x" * 88)
    assert "100 characters" in said
    assert "nobody is called" in refused(hub, push, "--elites", "nobody")
    assert "no skill" in refused(hub, push, "--elites", "best:cooking")
    assert "--base" in refused(hub, push, "--elites", "best", "--form", "adapter")
    hub.put_model("lab/other", {"model.safetensors": b"other"})
    assert "weights" in refused(hub, push, "--elites", "best", "--base", "lab/other")


def test_organisation_is_somebody_to_push_to(hub: HubServer, push: Push) -> None:
    assert push(*NOTHING, to="lab/small").code == 0
    assert hub.repo("datasets/lab/small").private


def test_something_else_is_there(hub: HubServer, push: Push, run: Path) -> None:
    hub.put_dataset("ann/small", {"data.csv": "a"})
    assert "something else" in refused(hub, push)
    hub.put_model("ann/two-best", {"model.safetensors": b"a"})
    assert "something else" in refused(hub, push, "--elites", "best", to="ann/two")
    assert push(*NOTHING, to="ann/three").code == 0
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["created"] = "2020-01-01"
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert "another run" in refused(hub, push, to="ann/three")
    record = json.loads(hub.file("datasets/ann/three", "cqd_hub.json"))
    hub.put_dataset("ann/three", {"cqd_hub.json": json.dumps(record | {"format": 2})})
    assert "update cqd-hub" in refused(hub, push, to="ann/three")
    hub.put_dataset("ann/three", {"cqd_hub.json": "{"})
    assert "cannot be read" in refused(hub, push, to="ann/three")


def test_folders_without_a_run(hub: HubServer, push: Push, tmp_path: Path) -> None:
    assert "no run directory" in refused(hub, push, folder=tmp_path)
    with_nothing = tmp_path / "missing"
    assert "no run directory" in refused(hub, push, folder=with_nothing)


def test_card_rejected(hub: HubServer, push: Push) -> None:
    body = {"errors": [{"message": '"license" must be one of [mit]'}], "warnings": []}
    hub.fault("status", "validate-yaml", status=400, body=body)
    done = push(*NOTHING)
    assert done.code == 2
    assert 'rejects the card: - "license" must be one of [mit]' in done.err
    assert len(hub.commits("datasets/ann/small")) == 1
    assert push(*NOTHING).code == 0
    assert len(hub.commits("datasets/ann/small")) == 2

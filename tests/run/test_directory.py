from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cqd_hub.errors import RunError, UserError
from cqd_hub.recipe import Recipe
from cqd_hub.run.directory import (
    agree,
    open_directory,
    read_manifest,
    read_recipe,
    refuse_other_recipe,
)

HOLDER = """
import sys
from pathlib import Path
from cqd_hub.run.directory import open_directory
from cqd_hub.errors import CqdHubError
try:
    with open_directory(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except CqdHubError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def manifest(**changes: Any) -> dict[str, Any]:
    """A manifest as `Workbench.manifest` gives it; a change is ``{"dotted.key": value}``."""
    made: dict[str, Any] = {
        "recipe": {
            "name": "r",
            "experts": {"a": "models/a", "b": "models/b"},
            "skills": {"x": {"task": "t"}, "y": {"task": "u"}},
            "search": {"children": 20, "children_per_step": 4, "bounds": (0.1, 0.9)},
            "genome": {"disk": "20GB"},
            "evaluation": {"sandbox_workers": 2},
        },
        "seed": 0,
        "models": {"base": {"path": "b", "sha256": "1" * 64}},
        "tasks": {"x": {"fingerprint": "2" * 64}},
        "versions": {"cqd-hub": "0.1", "torch": "2.6"},
        "created": "2026-01-01",
        "folder": "/recipes",
    }
    for dotted, value in changes.items():
        *path, last = dotted.split("/")
        node = made
        for key in path:
            node = node[key]
        node[last] = value
    return made


def test_a_second_process_is_refused_and_named_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = hold(folder)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = hold(folder)
    out, _ = second.communicate("")
    assert f"{folder}: is in use by process {first.pid} (wait for it or stop it" in out
    assert second.returncode == 2
    with (
        pytest.raises(UserError, match=f"is in use by process {first.pid}"),
        open_directory(folder),
    ):
        pass
    os.kill(first.pid, signal.SIGKILL)  # and a dead one holds nothing
    first.communicate()
    with open_directory(folder):
        assert (folder / "lock").read_text() == str(os.getpid())
        with pytest.raises(UserError, match="is in use"), open_directory(folder):
            pass


def test_where_nothing_began_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_directory(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with open_directory(tmp_path / "mine"):
        agree(tmp_path / "mine", manifest())
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["lock", "manifest.json"]


def test_what_is_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(UserError, match=r"not empty \(it holds thesis\.tex\) \(choose another"),
        open_directory(tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with (
        pytest.raises(UserError, match="cannot be written: File exists"),
        open_directory(tmp_path / "thesis.tex"),
    ):
        pass


def test_what_a_kill_left_half_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.x1y2").write_text("{")
    (tmp_path / "lock").write_text("99999999")
    with open_directory(tmp_path):
        assert read_manifest(tmp_path) is None
        agree(tmp_path, manifest())


@pytest.mark.parametrize("existing", [True, False])
def test_an_unwritable_folder(tmp_path: Path, existing: bool) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    target = closed if existing else closed / "run"
    command = [sys.executable, "-c", HOLDER, str(target)]
    if os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.parents[:2]):
            path.chmod(path.stat().st_mode | 0o055)
        probe = subprocess.run(
            [*_as_nobody(), sys.executable, "-c", "import cqd_hub"], capture_output=True
        )
        if probe.returncode:
            pytest.skip("another user cannot run this Python")
        command = [*_as_nobody(), *command]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, done.stderr
    assert done.stdout == f"{target}: cannot be written: Permission denied (choose another --out)\n"
    assert not list(closed.iterdir())


def _as_nobody() -> list[str]:
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def test_the_same_again_agrees(tmp_path: Path) -> None:
    assert agree(tmp_path, manifest()) == []
    first = (tmp_path / "manifest.json").read_text()
    assert agree(tmp_path, manifest()) == []
    assert (tmp_path / "manifest.json").read_text() == first


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models/base/sha256": "3" * 64}, 'models.base.sha256 "1111'),
        ({"recipe/experts": {"a": "models/a", "b": "other"}}, 'experts.b "models/b", now "other"'),
        ({"recipe/experts": {"a": "models/a"}}, 'recipe.experts.b "models/b", now null'),
        (
            {"recipe/skills": {"y": {"task": "u"}, "x": {"task": "t"}}},
            "recipe.skills in the order x, y, now y, x",
        ),
        (
            {"recipe/experts": {"b": "models/b", "a": "models/a"}},
            "recipe.experts in the order a, b, now b, a",
        ),
        ({"recipe/search/children_per_step": 1}, "children_per_step 4, now 1"),
        ({"recipe/search/bounds": (0.2, 0.9)}, "bounds [0.1, 0.9], now [0.2, 0.9]"),
        ({"tasks/x/fingerprint": "4" * 64}, "tasks.x.fingerprint"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"seed": 1, "recipe/name": "s"}, 'recipe.name "r", now "s" (and 1 more)'),
    ],
)
def test_another_run_is_refused_with_the_difference(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    agree(tmp_path, manifest())
    before = (tmp_path / "manifest.json").read_text()
    with pytest.raises(UserError) as caught:
        agree(tmp_path, manifest(**change))
    assert says in str(caught.value)
    assert "restore what it was made with, or choose another --out" in str(caught.value)
    assert (tmp_path / "manifest.json").read_text() == before


def test_the_budget_may_grow_and_the_folder_move(tmp_path: Path) -> None:
    agree(tmp_path, manifest())
    change = {
        "recipe/search/children": 50,
        "recipe/evaluation/sandbox_workers": 8,
        "recipe/evaluation/weights": "host",
        "recipe/genome/disk": "5GB",
        "folder": "/elsewhere",
        "created": "2027-01-01",
    }
    assert agree(tmp_path, manifest(**change)) == []
    kept = read_manifest(tmp_path)
    assert kept is not None
    assert kept["recipe"]["search"]["children"] == 50
    assert (kept["folder"], kept["created"]) == ("/elsewhere", "2026-01-01")


def test_keys_that_an_earlier_version_did_not_know_have_their_defaults(tmp_path: Path) -> None:
    parts = {"name": "r", "base": "b", "experts": {"a": "models/a", "b": "models/b"}}
    skills = {"x": {"task": "t"}, "y": {"task": "u"}}
    now = Recipe.model_validate({**parts, "skills": skills})
    earlier = now.model_dump(mode="json")
    del earlier["variation"]["crossover"]["method"], earlier["genome"]["disk"]
    agree(tmp_path, manifest(recipe=earlier))
    refuse_other_recipe(tmp_path, now)
    assert agree(tmp_path, manifest(recipe=now.model_dump(mode="json"))) == []
    variation = {"variation": {"crossover": "ties"}}
    other = Recipe.model_validate({**parts, "skills": skills, **variation})
    with pytest.raises(UserError, match=r'crossover\.method "linear", now "ties"'):
        refuse_other_recipe(tmp_path, other)


def test_versions_are_recorded_session_by_session(tmp_path: Path) -> None:
    agree(tmp_path, manifest())
    newer = {"cqd-hub": "0.1", "torch": "2.7"}
    assert agree(tmp_path, manifest(versions=newer)) == ['torch "2.6", now "2.7"']
    assert agree(tmp_path, manifest(versions=newer)) == []
    assert agree(tmp_path, manifest()) == ['torch "2.7", now "2.6"']
    kept = read_manifest(tmp_path)
    assert kept is not None
    assert [session["torch"] for session in kept["sessions"]] == ["2.6", "2.7", "2.6"]
    assert kept["versions"]["torch"] == "2.6"


def test_reading_back(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    with pytest.raises(UserError, match="is no run directory"):
        read_recipe(tmp_path)
    for content in (b"{", b"\xff"):
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(RunError, match=r"manifest\.json: cannot be read"):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest()))
    with pytest.raises(UserError, match="a recipe that this cqd-hub does not know"):
        read_recipe(tmp_path)

"""The agents' quickstart, reduced: multi-turn skills through the main job, killed and resumed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cqd_hub.assets import folder
from cqd_hub.errors import CqdHubError
from cqd_hub.evaluation.machines import open_machines
from tests.cli.test_evolve import command, content, evaluated, wait_for

MACHINE = os.environ.get("CQD_HUB_TEST_MACHINE")
SAMPLES = {"optimisation": 6, "validation": 6, "test": 6}


def reduced(to: Path, skills: set[str], **options: object) -> Path:
    """The shipped recipe with few samples and children, and some of its skills."""
    yaml = YAML(typ="safe", pure=True)
    home = folder("recipes").resolve()
    recipe = yaml.load(home / "quickstart-agents.yaml")
    recipe["base"] = str(home / recipe["base"])
    recipe["experts"] = {name: str(home / path) for name, path in recipe["experts"].items()}
    recipe["skills"] = {name: one for name, one in recipe["skills"].items() if name in skills}
    if "os" in skills:
        recipe["skills"]["os"]["options"] = options
    recipe |= {"samples": SAMPLES, "search": {"children": 4, "children_per_step": 2}}
    path = to / "recipe.yaml"
    with path.open("w") as file:
        yaml.dump(recipe, file)
    return path


def machine_fault() -> str:
    """Why machines do not work here, or nothing."""

    async def start() -> None:
        await (await open_machines(image=MACHINE)).close()

    try:
        asyncio.run(start())
    except CqdHubError as error:
        return str(error)
    return ""


def killed_and_resumed(recipe: Path, out: Path) -> dict:
    """What a run has journaled that was killed after the experts and started again."""
    process = subprocess.Popen(command(recipe, out, "-q"), text=True, stderr=subprocess.PIPE)
    wait_for(lambda: evaluated(out) >= 5, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command(recipe, out, "-q"), text=True, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    return content(out)


def replies(journal: dict, skill: str) -> list[int]:
    """How many replies each of the skill's episodes has."""
    return [len(json.loads(row[3])) for row in journal["measurements"] if row[1] == skill]


@pytest.mark.slow
def test_two_skills_without_a_machine(tmp_path: Path) -> None:
    recipe = reduced(tmp_path, {"coding", "db"})
    journal = killed_and_resumed(recipe, tmp_path / "run")
    whole = subprocess.run(command(recipe, tmp_path / "whole", "-q"), check=False)
    assert whole.returncode == 0
    assert content(tmp_path / "whole") == journal
    assert len(journal["individuals"]) == 1 + 3 + 4
    assert max(replies(journal, "db")) >= 2
    assert max(replies(journal, "coding")) == 2


@pytest.mark.slow
def test_three_skills(tmp_path: Path) -> None:
    if fault := machine_fault():
        pytest.skip(fault)
    recipe = reduced(tmp_path, {"coding", "os", "db"}, image=MACHINE)
    journal = killed_and_resumed(recipe, tmp_path / "run")
    assert len(journal["individuals"]) == 1 + 3 + 4
    assert max(replies(journal, "os")) >= 2


def test_a_missing_machine_is_one_line(tmp_path: Path) -> None:
    recipe = reduced(tmp_path, {"coding", "os", "db"}, image=str(tmp_path / "none"))
    done = subprocess.run(
        command(recipe, tmp_path / "run", "-q"), text=True, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cqd-hub sandbox build" in done.stderr

"""The recipe of the paper's experiment over files of the shape that it expects."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cqd_hub import assets
from cqd_hub.evaluation.skills import load_skills
from cqd_hub.genome import Basis
from cqd_hub.recipe import Recipe
from cqd_hub.recipe.load import load_yaml
from tests.evaluation.environments.evalplus.common import DOUBLE


def checkout(folder: Path) -> Path:
    """An AgentBench checkout: 26 + 144 (+ 30 for training) and 60 + 300 problems of our own."""
    system = folder / "data" / "os_interaction"
    for name, size in (("data/dev", 26), ("data/1/a", 100), ("data/7/b", 44)):
        write(system / f"{name}.json", json.dumps([problem(f"{name} {n}") for n in range(size)]))
    training = json.dumps([problem(f"training {n}") for n in range(30)])
    write(system / "train_0317" / "training.json", training)
    for name, size in (("dev", 60), ("standard", 300)):
        lines = "\n".join(json.dumps(question(f"{name} {n}")) for n in range(size))
        write(folder / "data" / "dbbench" / f"{name}.jsonl", lines)
    return folder


def problem(text: str) -> dict[str, Any]:
    return {"description": text, "evaluation": {"match": "x"}}


def question(text: str) -> dict[str, Any]:
    info = {"columns": [{"name": "a"}], "rows": [["1"]]}
    table = {"table_name": "t", "table_info": info}
    return {"description": text, "type": ["other"], "table": table, "label": ["1"]}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def tokenizer(basis: Basis) -> Any:
    found = copy.deepcopy(AutoTokenizer.from_pretrained(basis.base.checkpoint.path))
    found.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    return found


def test_the_papers_experiment_uses_all_its_data(tmp_path: Path, tokenizer: Any) -> None:
    bench = checkout(tmp_path / "AgentBench")
    programs = tmp_path / "MbppPlus-NoExtreme.jsonl.gz"
    tasks = [{**DOUBLE, "task_id": f"Mbpp/{9000 + n}", "prompt": f"# {n}"} for n in range(378)]
    programs.write_bytes(gzip.compress("\n".join(map(json.dumps, tasks)).encode()))
    own = ["options.prompts=own", "options.faithful=false"]
    given = [f"skills.{skill}.{option}" for skill in ("os", "db") for option in own]
    given += [f"skills.{skill}.options.data={bench}" for skill in ("os", "db")]
    given += [f"skills.coding.options.data={programs}"]
    path = assets.folder("recipes") / "llama3-8b-agentbench.yaml"
    recipe = load_yaml(path, Recipe, given)
    notes: list[str] = []

    skills = load_skills(recipe, tmp_path, tokenizer, note=notes.append)

    assert [note for note in notes if "only" in note or "question" in note] == []
    parts = {
        "coding": [("#", 378)],
        "os": [("data/dev", 26), ("data/", 170)],
        "db": [("dev", 60), ("standard", 300)],
    }
    for name, expected in parts.items():
        samples = skills[name].samples
        texts = {purpose: [one.question for one in found] for purpose, found in samples.items()}
        for prefix, size in expected:
            counts = {
                purpose: sum(text.startswith(prefix) for text in found)
                for purpose, found in texts.items()
            }
            shares = [counts[purpose] / size for purpose in ("optimisation", "validation", "test")]
            assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.04), (name, counts)
        every = [text for found in texts.values() for text in found]
        assert len(set(every)) == len(every)
        assert not any("training" in text for text in every)

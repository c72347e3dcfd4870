"""The shipped manifests make an environment from a recipe's `data`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cqd_hub import assets
from cqd_hub.errors import UserError
from cqd_hub.evaluation.episodes.manifest import find_manifest, load_manifest

from .common import TASKS, write


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mbpp_plus", "evalplus/plus/own-prompts"),
        ("humaneval_plus", "evalplus/plus/own-prompts"),
        ("mbpp_cycleqd", "cycleqd/base/own-prompts"),
    ],
)
def test_manifests(tmp_path: Path, name: str, kind: str) -> None:
    write(tmp_path / "tasks.jsonl", TASKS)
    found = find_manifest(name, [assets.folder("evals")], tmp_path, "skills.coding.task")
    assert found is not None
    path, content = found
    loaded = load_manifest(path, content, {"data": "tasks.jsonl"}, tmp_path, "skills.coding")
    assert loaded.environment.kind == kind
    assert len(loaded.environment.samples()["test"]) == len(TASKS)
    with pytest.raises(UserError, match="no data are named"):
        load_manifest(path, content, {}, tmp_path, "skills.coding")

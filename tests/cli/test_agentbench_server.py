"""Samples of a task server, evaluated by the command."""

from __future__ import annotations

import json
from pathlib import Path

from cqd_hub import assets
from tests.cli.conftest import Cli
from tests.evaluation.environments.agentbench_server.official import serve

MANIFEST = """\
environment: agentbench_server
format: plain
max_new_tokens: 8
options: {pause: 0, rounds: 2}
"""
RECIPE = """\
name: served
base: {models}/base
experts: {{coding: {models}/coding, os: {models}/os}}
skills:
  pets: {{task: server.yaml, options: {{url: {pets}, name: pets}}}}
  sums: {{task: server.yaml, options: {{url: {sums}, name: sums}}}}
samples: {{optimisation: 2, validation: 2, test: 2}}
"""


def test_base_and_experts_play_on_a_server(cli: Cli, tmp_path: Path) -> None:
    models = assets.folder("recipes") / "quickstart" / "models"
    (tmp_path / "server.yaml").write_text(MANIFEST)
    with serve("v0.2", "pets") as pets, serve("v0.2", "sums") as sums:
        text = RECIPE.format(models=models.resolve(), pets=pets.url, sums=sums.url)
        (tmp_path / "recipe.yaml").write_text(text)
        done = cli("eval", tmp_path / "recipe.yaml", "--json")
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in done.out.splitlines()]
        assert [set(row["skills"]) for row in rows] == [{"pets", "sums"}] * 3
        assert pets.count("/start_sample") >= 6
        assert pets.open == sums.open == {}
        assert f"played and judged by the server at {pets.url}" in done.err
    gone = cli("eval", tmp_path / "recipe.yaml")
    assert gone.code == 1
    assert gone.err.strip().splitlines()[-1].startswith(f"error: {pets.url}/get_indices: nobody")

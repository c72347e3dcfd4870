"""Children of other merge methods, made again far from the run that made them first."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.pull.world import RECIPE, world


@pytest.mark.slow
def test_a_merged_child_is_made_again(tmp_path: Path) -> None:
    with world(tmp_path) as there:
        recipe = RECIPE.replace("name: small", "name: merged")
        recipe = recipe.replace("variation: {", "variation: {crossover: ties, ")
        (tmp_path / "merged.yaml").write_text(recipe)
        for command in (
            ("evolve", "merged.yaml", "--out", "run", "-q"),
            ("push", "run", "--to", "ann/merged", "--elites", "none", "-q"),
            ("export", "run", "5", "--to", "truth"),
        ):
            done = there.cli(*command, machine="origin")
            assert done.code == 0, done.err
        pulled = there.cli("pull", "ann/merged", "5", "--to", "pulled", machine="stranger")
        assert pulled.code == 0, pulled.err
        assert "verified by basis, with its merges made again" in pulled.err
    truth = load_file(tmp_path / "truth" / "model.safetensors")
    found = load_file(tmp_path / "pulled" / "model.safetensors")
    assert found.keys() == truth.keys()
    assert all((found[name] == tensor).all() for name, tensor in truth.items())

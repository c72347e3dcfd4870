"""The shipped models of the agents' quickstart are what their recipes say."""

from __future__ import annotations

import json

import pytest

from cqd_hub.assets import folder
from cqd_hub.files import sha256_of
from cqd_hub.recipe import load_yaml
from cqd_hub.training import TrainingRecipe

HOME = folder("recipes") / "quickstart-agents"


@pytest.mark.parametrize("name", ["base", "coding", "os", "db"])
def test_weights_were_trained_by_this_recipe_on_this_data(name: str) -> None:
    recipe = load_yaml(HOME / f"train-{name}.yaml", TrainingRecipe)
    out = HOME / str(recipe.out)
    record = json.loads((out / "training.json").read_text())
    assert record["recipe"] == recipe.model_dump(exclude_none=True)
    for source in record["data"]:
        assert sha256_of(HOME / source["path"]) == source["sha256"]
        assert source["cut"] == 0
    for file, digest in record["base"].items():
        assert sha256_of(HOME / "models" / "base" / file) == digest
    assert bool(record["base"]) == (name != "base")

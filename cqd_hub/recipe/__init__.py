"""The recipe: what to evolve, from what, measured how. Pydantic and YAML only."""

from cqd_hub.recipe.find import find_recipe
from cqd_hub.recipe.load import Strict, load_yaml, read_yaml
from cqd_hub.recipe.schema import SPLITS, Limits, Recipe, Skill, Split

__all__ = [
    "SPLITS",
    "Limits",
    "Recipe",
    "Skill",
    "Split",
    "Strict",
    "find_recipe",
    "load_yaml",
    "read_yaml",
]

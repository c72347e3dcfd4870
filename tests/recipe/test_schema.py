from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cqd_hub import assets
from cqd_hub.recipe import Recipe, load_yaml
from cqd_hub.recipe.presets import PRESETS
from cqd_hub.recipe.schema import GridArchive, NoveltyArchive
from cqd_hub.recipe.template import render


def recipe(**more: Any) -> Recipe:
    base = {"name": "r", "base": "b", "experts": {"one": "a", "two": "b"}}
    skills = {"x": {"task": "t"}, "y": {"task": "u"}}
    return Recipe.model_validate({**base, "skills": skills, **more})


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_reaches_the_model_and_explicit_keys_win(preset: str) -> None:
    filled = recipe(preset=preset).model_dump()
    for room, settings in PRESETS[preset].items():
        for key, value in settings.items():
            if isinstance(value, dict):
                assert filled[room][key].items() >= value.items()
            else:
                assert filled[room][key] == value
    own = recipe(
        preset=preset,
        search={"children": 3, "sampling": {"low": 0.1}},
        variation={"crossover": {"deviation": 0.5}},
    )
    assert (own.search.children, own.search.sampling.low) == (3, 0.1)
    assert own.variation.crossover.deviation == 0.5
    assert own.variation.mutation == recipe(preset=preset).variation.mutation


def test_the_paper() -> None:
    paper = recipe(preset="paper")
    assert (paper.search.children, paper.search.children_per_step) == (1200, 1)
    assert paper.search.archive == GridArchive(bins=15, bounds="experts", clip=False)
    assert (paper.variation.mutation.of, paper.variation.mutation.w_max) == ("child", 0.3)


def test_a_preset_leaves_nothing_in_a_section_of_another_kind() -> None:
    novel = recipe(preset="paper", search={"archive": {"kind": "novelty", "capacity": 8}})
    assert novel.search.archive == NoveltyArchive(kind="novelty", capacity=8)
    assert novel.search.children == 1200
    noise = recipe(preset="paper", variation={"mutation": {"kind": "gaussian"}})
    assert noise.variation.mutation.of == "expert"
    drawn = recipe(preset="released-code", search={"sampling": {"kind": "elite"}})
    assert drawn.search.sampling.kind == "elite"
    assert recipe(preset="paper", search={"archive": {"bins": 4}}).search.archive == GridArchive(
        bins=4, clip=False
    )


def test_an_archive_is_a_grid_unless_said() -> None:
    assert recipe(search={"archive": {"bins": 4}}).search.archive == GridArchive(bins=4)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"preset": "paper"},
        {"preset": "released-code"},
        {"preset": "paper", "search": {"archive": {"kind": "novelty"}}},
        {"search": {"archive": {"bounds": {"y": [0.1, 0.9], "x": [0, 1]}}}},
        {"genome": {"rank": 4}, "samples": {"test": None}},
        {"skills": {"x": {"task": "t", "samples": {"test": 9}}, "y": {"task": "u"}}},
    ],
)
def test_a_manifest_gives_the_recipe_back(more: dict[str, Any]) -> None:
    made = recipe(**more)
    dumped = made.model_dump(mode="json")
    assert Recipe.model_validate(json.loads(json.dumps(dumped))) == made
    assert Recipe.model_validate(dumped).model_dump(mode="json") == dumped


def test_shipped_recipes_are_valid() -> None:
    found = [
        path
        for path in assets.folder("recipes").glob("*.yaml")
        if "experts" in YAML(typ="safe", pure=True).load(path.read_text())
    ]
    assert found
    for path in found:
        assert len(load_yaml(path, Recipe).skills) >= 2


@pytest.mark.parametrize("name", ["first-run", "my recipe (2)", "null", "-", "ü" * 80])
def test_the_template_is_a_valid_recipe(tmp_path: Path, name: str) -> None:
    text = render(
        name=name,
        base="/models/my base: v2",
        experts=[("yes", "/models/a #1", "full fine-tune"), ("x1", "rel/b", "LoRA adapter")],
        skills={"math": ("gsm8k", "exact_match,strict-match"), "null": ("arc_easy", "acc")},
    )
    path = tmp_path / "made.yaml"
    path.write_text(text, encoding="utf-8")
    made = load_yaml(path, Recipe)
    assert made.base == "/models/my base: v2"
    assert made.experts == {"yes": "/models/a #1", "x1": "rel/b"}
    assert made.skills["math"].metric == "exact_match,strict-match"
    assert list(made.skills) == ["math", "null"]
    defaults = recipe()
    for part in ("search", "variation", "genome", "evaluation"):
        assert getattr(made, part) == getattr(defaults, part)


def test_the_template_without_skills_says_what_to_fill_in(tmp_path: Path) -> None:
    text = render(name="r", base="b", experts=[("a", "a", "x"), ("c", "c", "x")], skills={})
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(Exception, match="skills: needs keys and values under it"):
        load_yaml(path, Recipe)
    filled = text.replace("  # first:", "  first:").replace("  # second:", "  second:")
    path.write_text(filled)
    assert list(load_yaml(path, Recipe).skills) == ["first", "second"]


def test_the_recipe_is_light() -> None:
    code = (
        "import sys, cqd_hub, cqd_hub.recipe, cqd_hub.recipe.template\n"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'datasets', 'peft') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestMergeMethods:
    def test_a_name_stands_for_its_mapping(self) -> None:
        short = recipe(variation={"crossover": "ties", "mutation": "gaussian"})
        spelt = {"crossover": {"method": "ties"}, "mutation": {"kind": "gaussian"}}
        assert short == recipe(variation=spelt)
        assert short.variation.mutation.kind == "gaussian"
        assert recipe(variation={"crossover": "linear"}) == recipe()

    def test_a_method_draws_its_weights_as_the_preset_says(self) -> None:
        for preset in sorted(PRESETS):
            mutation = {"mutation": "none"}
            ties = recipe(preset=preset, variation={"crossover": "ties", **mutation})
            linear = recipe(preset=preset, variation=mutation)
            drawn = ties.variation.crossover.model_copy(update={"method": "linear"})
            assert drawn == linear.variation.crossover

    def test_parameters_are_numbers_or_one_for_each_parent(self) -> None:
        given = {"density": [0.5, 1], "normalize": True, "lambda": 1.5}
        made = recipe(variation={"crossover": {"method": "ties", "parameters": given}})
        assert made.variation.crossover.parameters == given
        assert made.variation.crossover.parameters["normalize"] is True
        assert Recipe.model_validate(json.loads(made.model_dump_json())) == made

    @pytest.mark.parametrize(
        ("variation", "says"),
        [
            ({"crossover": {"parameters": {"density": 1}}}, "linear takes no `parameters`"),
            ({"crossover": {"method": "ties", "parameters": {"t": float("nan")}}}, "finite"),
            ({"crossover": {"method": "ties", "parameters": {"t": "x"}}}, "valid number"),
            ({"crossover": "ties", "mutation": {"of": "child", "per": "direction"}}, "of: child"),
            ({"mutation": "noise"}, "'svd', 'gaussian' or 'none'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, variation: dict[str, Any], says: str) -> None:
        with pytest.raises(ValueError, match=says):
            recipe(variation=variation)

    def test_the_paper_mutates_the_child_which_a_merge_cannot(self) -> None:
        with pytest.raises(ValueError, match="child cannot follow the crossover ties"):
            recipe(preset="paper", variation={"crossover": "ties"})

    @pytest.mark.parametrize(
        ("text", "size"), [("20GB", 20e9), ("1.5 TB", 1.5e12), ("7KB", 7e3), ("250 MB", 250e6)]
    )
    def test_the_budget_is_a_size(self, text: str, size: float) -> None:
        assert recipe(genome={"disk": text}).genome.disk_bytes == size

    @pytest.mark.parametrize("disk", [20, "20", "GB", "-1GB", "1e3GB", "20 XB", None])
    def test_no_budget(self, disk: Any) -> None:
        with pytest.raises(ValueError, match=r"is no size; write e\.g\. 20GB"):
            recipe(genome={"disk": disk})

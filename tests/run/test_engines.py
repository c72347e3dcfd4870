"""Which engine a recipe gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Generate, LogLikelihood
from cqd_hub.evaluation.engine.choose import Work, choose, overhead
from cqd_hub.evaluation.engine.population import PopulationEngine
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Basis, build_basis, open_models
from cqd_hub.recipe import Recipe
from cqd_hub.run.engines import choose_engine, open_engine, work_of
from tests.conftest import Models


def recipe(**more: Any) -> Recipe:
    skills = {"one": {"task": "one"}, "two": {"task": "two"}}
    data = {"name": "r", "base": "b", "experts": {"x": "x", "y": "y"}, "skills": skills}
    return Recipe.model_validate(data | more)


def skills(count: int, *, temperature: float = 0.0) -> Any:
    """As many samples of one request each."""
    request = Generate((1, 2, 3, 4), 40, temperature=temperature)
    sample = SimpleNamespace(requests=((request,),))
    return {"one": SimpleNamespace(samples={"optimisation": [sample] * count})}


def test_the_work_is_counted_from_the_samples() -> None:
    assert work_of(skills(3), 5) == Work(3, 4.0, 4.0, 5)  # 40 x a half x a fifth
    assert work_of(skills(3, temperature=1.0), 5) == Work(3, 4.0, 20.0, 5)
    scored = SimpleNamespace(
        requests=((LogLikelihood((1, 2), (3,)),), (LogLikelihood((1,), (3,)),))
    )
    mixed = {"two": SimpleNamespace(samples={"optimisation": [scored]})}
    assert work_of(mixed, 2) == Work(2, 1.5, 0.0, 2)
    episode = {"three": SimpleNamespace(samples={"optimisation": [SimpleNamespace(id="e")]})}
    assert work_of(episode, 2).rows == 1


def test_few_rows_of_many_children_share_a_batch(basis: Basis, models: Models) -> None:
    light = build_basis(*open_models(models.base, [models.lora, models.full[0]]), rank=2)
    assert overhead(light.layout) < overhead(basis.layout)
    assert overhead(light.layout) < overhead(light.layout, cores=True)
    layout = build_basis(*open_models(models.base, [models.lora, models.full[0]]), rank=2).layout

    def kind(**work: Any) -> str:
        return choose(Work(**work), layout, device="cpu", dtype="float32").kind

    assert kind(rows=2, prompt=20, answer=30, children=32) == "population"
    assert kind(rows=450, prompt=20, answer=30, children=32) == "sequential"
    assert kind(rows=2, prompt=20, answer=30, children=1) == "sequential"
    assert kind(rows=200, prompt=900, answer=2, children=32) == "sequential"
    wide = choose(Work(2, 20, 30, 200), layout, device="cpu", dtype="float32")
    assert wide.width == 64


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"search": {"children_per_step": 16}}, PopulationEngine),
        ({"search": {"children_per_step": 1}}, SequentialEngine),
        (
            {
                "search": {"children_per_step": 16},
                "variation": {"mutation": "gaussian"},
            },
            SequentialEngine,
        ),
        (
            {"search": {"children_per_step": 16}, "evaluation": {"engine": "sequential"}},
            SequentialEngine,
        ),
        (
            {"search": {"children_per_step": 1}, "evaluation": {"engine": "population"}},
            PopulationEngine,
        ),
    ],
)
def test_a_recipe_gets_the_faster_engine_or_the_named_one(
    models: Models, more: dict[str, Any], kind: type
) -> None:
    basis = build_basis(*open_models(models.base, [models.lora]))
    notes: list[str] = []
    asked = recipe(**more)
    work = work_of(skills(2), asked.search.children_per_step)
    engine = open_engine(
        asked,
        basis,
        choose_engine(asked, basis.layout, work, "cpu"),
        device="cpu",
        dtype=torch.float32,
        merges=None,
        note=notes.append,
    )
    assert type(engine) is kind
    side_by_side = any("side by side" in line for line in notes)
    assert side_by_side == (kind is PopulationEngine)


def test_an_engine_that_cannot_is_refused_by_name(models: Models) -> None:
    basis = build_basis(*open_models(models.base, [models.lora]))
    wrong = recipe(evaluation={"engine": "population"}, variation={"mutation": "gaussian"})
    with pytest.raises(UserError, match="Gaussian noise is no sum"):
        choose_engine(wrong, basis.layout, work_of(skills(2), 4), "cpu")

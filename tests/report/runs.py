"""Synthetic run directories, written through the journal's own door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cqd_hub.recipe import Recipe, Split
from cqd_hub.run.journal import Individual, Journal, Measurement, Role

SKILLS = ("coding", "os", "db", "web")
SAMPLES: dict[Split, int] = {"optimisation": 60, "validation": 40, "test": 50}
GUARANTEES = "bubblewrap: own namespaces, no network, read-only root, 2 s of CPU time"


def make_run(
    folder: Path,
    *,
    skills: int = 3,
    kind: str = "grid",
    children: int = 60,
    finished: bool = True,
    answer: str = "print(sum(map(int, input().split())))",
    label: str = "aggregate",
    seed: int = 0,
) -> Path:
    """Write a run with three experts and so many children; return its folder."""
    folder.mkdir(parents=True)
    names = SKILLS[:skills]
    recipe = {
        "name": "synthetic",
        "base": "models/base",
        "experts": {name: f"models/{name}" for name in SKILLS[:3]},
        "skills": {name: {"task": f"toy_{name}"} for name in names},
        "search": {
            "children": max(children, 1),
            "archive": {"kind": "grid", "bins": 10} if kind == "grid" else {"kind": "novelty"},
        },
    }
    write_manifest(folder, recipe)
    rng = np.random.default_rng(seed)
    journal = Journal(folder, create=True)
    difficulty = {s: np.sort(rng.uniform(0, 1, 400)) for s in names}

    def measured(number: int, ability: np.ndarray, split: Split) -> list[Measurement]:
        start = 100 * (1 + list(SAMPLES).index(split))
        found = []
        for skill, level in zip(names, ability, strict=True):
            picked = rng.permutation(difficulty[skill])[: SAMPLES[split]]
            for sample, hard in enumerate(picked):
                chance = 1 / (1 + np.exp(-9 * (level - hard)))
                found.append(
                    Measurement(
                        skill=skill,
                        split=split,
                        sample=f"{start + sample}",
                        score=float(rng.uniform() < chance),
                        text=answer,
                        finish="stop",
                    )
                )
        return found

    def add(number: int, role: Role, name: str, ability: np.ndarray, **more: Any) -> None:
        first: Split = "optimisation" if number >= -1 else "validation"
        journal.add(
            Individual(number, role, name, b"genome", f"hash{number}", **more),
            measured(number, ability, first),
        )

    add(-1, Role.BASE, "base", np.full(skills, 0.12))
    abilities = []
    for number in range(3):
        ability = np.full(skills, 0.2)
        ability[number % skills] = 0.68 + 0.04 * number
        abilities.append(ability)
        add(number, Role.EXPERT, SKILLS[number], ability, seconds={"total": 1.0})
    journal.tell([0, 1, 2])
    for number in range(3, 3 + children):
        low = max(0, number - 25)
        mother, father = (int(p) for p in rng.choice(np.arange(low, number), 2, replace=False))
        share = float(rng.normal(0.5, 0.1))
        ability = share * abilities[mother] + (1 - share) * abilities[father]
        ability = np.clip(ability + rng.normal(0.03, 0.05, skills), 0.05, 0.95)
        abilities.append(ability)
        active = number % skills
        lineage = {
            "skill": names[active],
            "expert": SKILLS[active % 3],
            "parents": [mother, father],
            "crossover": {"per": "layer", "shares": [[share, share], [1 - share, 1 - share]]},
            "mutation": {"kind": "svd", "of": "expert", "w_max": 0.5 if number % 2 else 0.1},
            "seed": 0,
        }
        seconds = {"total": 1.4, "generate": 0.9 + 0.01 * (number % 5), "execute": 0.3}
        add(
            number,
            Role.CHILD,
            f"child {number}",
            ability,
            lineage=lineage,
            seconds=seconds | {"materialise": 0.05},
            generated={
                "answers": 10,
                "tokens": 80,
                "drafted": 40 if number % 2 else 72,
                "passes": 35 if number % 2 else 15,
            },
        )
        journal.tell([number])
    if finished:
        best = max(range(3, 3 + children), key=lambda n: abilities[n].mean(), default=0)
        add(-2, Role.BASELINE, "equal merge", np.full(skills, 0.4))
        add(
            -3,
            Role.AGGREGATE,
            "aggregate",
            abilities[best],
            lineage={"parents": [0, 1, best], "shares": [0.34, 0.33, 0.33]},
        )
        for number in (-1, 0, 1, 2, -2, best, -3):
            others = {
                -1: np.full(skills, 0.12),
                -2: np.full(skills, 0.4),
                -3: abilities[best] - 0.03,
            }
            ability = abilities[number] if number >= 0 else others[number]
            journal.measure(number, measured(number, ability, "test"))
        experts = [{"id": n, "label": f"expert {SKILLS[n]}", "group": "expert"} for n in range(3)]
        results = {
            "finalists": [
                {"id": -1, "label": "base", "group": "base"},
                *experts,
                {"id": -2, "label": "equal merge", "group": "baseline"},
                {"id": best, "label": "best elite for coding", "group": "elite"},
                {"id": best, "label": "best elite", "group": "elite"},
                {"id": -3, "label": label, "group": "aggregate"},
            ],
            "chosen": best,
            "chosen_by": "validation average, best elite or aggregate",
            "candidates": [
                {"id": best, "label": "best elite", "validation": 0.61, "optimisation": 0.66},
                {"id": -3, "label": label, "validation": 0.58, "optimisation": None},
            ],
        }
        (folder / "results.json").write_text(json.dumps(results))
    journal.close()
    return folder


def write_manifest(folder: Path, recipe: dict[str, Any]) -> None:
    """Write a manifest as `cqd-hub evolve` does."""
    manifest = {
        "recipe": Recipe.model_validate(recipe).model_dump(mode="json"),
        "seed": 0,
        "models": {
            "base": {"path": "models/base", "hash": "0123456789abcdef" * 4},
            "experts": {n: {"path": f"models/{n}", "hash": "fedc" * 16} for n in recipe["experts"]},
        },
        "basis": "ab" * 32,
        "tasks": {n: {"task": f"toy_{n}", "samples": dict(SAMPLES)} for n in recipe["skills"]},
        "engine": "sequential float32 cpu",
        "sandbox": {"kind": "bubblewrap", "guarantees": GUARANTEES},
        "versions": {"cqd-hub": "0.1.0", "python": "3.11"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))

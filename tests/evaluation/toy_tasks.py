"""Small lm-eval tasks on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from cqd_hub.recipe import Recipe
from cqd_hub.recipe.schema import Splits

OWN_SPLITS = ("optimisation", "validation", "test")


def write_task(folder: Path, name: str, documents: dict[str, list[dict]], **more: Any) -> Path:
    """A task YAML with one JSON-lines file per dataset split beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, rows in documents.items():
        files[split] = f"{name}-{split}.jsonl"
        (folder / files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        **more,
    }
    path = folder / f"{name}.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(task, file)
    return path


def questions(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"question: what is {n} plus three? answer:", "answer": str(n + 3)}
        for n in range(start, start + count)
    ]


def three_splits(count: int = 6) -> dict[str, list[dict[str, Any]]]:
    return {split: questions(100 * i, count) for i, split in enumerate(OWN_SPLITS)}


def generating(folder: Path, name: str = "sums", **more: Any) -> Path:
    """generate_until with a regular expression and exact_match."""
    settings: dict[str, Any] = {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        "filter_list": [
            {
                "name": "letter",
                "filter": [
                    {"function": "regex", "regex_pattern": "([a-z ])"},
                    {"function": "take_first"},
                ],
            },
            {"name": "all", "filter": [{"function": "take_first"}]},
        ],
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        ],
        "documents": three_splits(),
    } | more
    return write_task(folder, name, settings.pop("documents"), **settings)


def choosing(folder: Path, name: str = "pick", **more: Any) -> Path:
    """multiple_choice with acc and acc_norm."""
    settings: dict[str, Any] = {
        "output_type": "multiple_choice",
        "doc_to_choice": ["two", "three hundred", "a b"],
        "doc_to_target": "label",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
        "documents": {
            split: [
                {"question": f"{row['question']} ", "label": n % 3} for n, row in enumerate(rows)
            ]
            for split, rows in three_splits().items()
        },
    } | more
    return write_task(folder, name, settings.pop("documents"), **settings)


def recipe(first: str, second: str, *, splits: Splits | None = None, **more: Any) -> Recipe:
    """A recipe of two skills, each ``task:metric``."""
    skills = {}
    for name, text in (("one", first), ("two", second)):
        task, _, metric = text.partition(":")
        skills[name] = {"task": task, "metric": metric or "executed"}
    if splits:
        skills["one"]["splits"] = splits.model_dump()  # type: ignore[assignment]
    for key in ("num_fewshot", "chat_template"):
        if key in more:
            skills["one"][key] = more.pop(key)
    data = {"name": "r", "base": "b", "experts": {"x": "x", "y": "y"}, "skills": skills}
    return Recipe.model_validate({**data, "tasks": ["."], **more})

"""The skills of a recipe: lm-eval tasks and episodes of environments, behind one interface."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cqd_hub import assets
from cqd_hub.errors import UserError
from cqd_hub.evaluation.episodes.manifest import find_manifest, load_manifest
from cqd_hub.evaluation.episodes.skill import EpisodeSkill
from cqd_hub.evaluation.skill import Skill
from cqd_hub.evaluation.task_skill import TaskSkill
from cqd_hub.evaluation.tasks import TaskIndex, load_task
from cqd_hub.recipe import Recipe

__all__ = ["Skill", "load_skills"]


def load_skills(
    recipe: Recipe,
    folder: Path,
    tokenizer: Any,
    *,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Skill]:
    """Load every skill of a recipe and choose its samples; none is open yet.

    Args:
        recipe: The recipe.
        folder: The recipe's folder, which its relative paths start from.
        tokenizer: The engine's.
        note: Called with a line for what was left out.

    Raises:
        UserError: Unknown task, environment, option or metric, a metric outside 0..1, splits that
            overlap.
    """
    include = [assets.folder("evals"), *((folder / part).resolve() for part in recipe.tasks)]
    for part in include[1:]:
        if not part.is_dir():
            raise UserError("no such folder", where=f"tasks: {part}", remedy="check the path")
    index = TaskIndex(include)
    skills: dict[str, Skill] = {}
    for name, settings in recipe.skills.items():
        where = f"skills.{name}"
        found = find_manifest(settings.task, include, folder, f"{where}.task")
        if found is not None:
            loaded = load_manifest(*found, settings.options, folder, where, note)
            skills[name] = EpisodeSkill(name, loaded, recipe, tokenizer, note)
            continue
        if settings.options:
            raise UserError(
                "an lm-eval task takes no options",
                where=f"{where}.options",
                remedy="leave them out, or name an environment's manifest as the task",
            )
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()
        task = TaskSkill(
            name, load_task(settings.task, index, folder, f"{where}.task"), settings, recipe, note
        )
        task.prepare(tokenizer, settings, recipe.seed)
        skills[name] = task
    return skills

"""What individuals are asked, counted before anything is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine.choose import Work as Asked
from cqd_hub.evaluation.skill import Outlook, Skill
from cqd_hub.evaluation.skills import load_skills
from cqd_hub.recipe import SPLITS, Recipe, Split
from cqd_hub.run.engines import work_of as asked_of

# Where the tasks' data do not tell.
_ANSWER = 128  # tokens of an answer, at most
_TURNS = 3  # replies of an episode, at most
_TURN = 200  # tokens that an environment adds to its question, and to each turn
_UNKNOWN = Outlook(prompt=512, limit=256)
_ALL = 500  # samples of a split without a limit
# Measured on the quickstart (w_max 0.3): shares of answers.
AGREE = 0.85  # a child's, that one of its parents gave word for word
LEFT = 0.8  # of an answer's tokens, decoded in passes where it leaves its draft
NEW = 0.08  # a child's, that nobody gave before
NEW_EXPERT = 0.45  # an expert's, likewise
NEW_FINAL = 0.2  # a candidate's or finalist's on the samples of its split


class Demand(NamedTuple):
    """What one individual's evaluation on one split takes, summed over skills.

    Args:
        rows: Requests that can be under way at once.
        prompt: Tokens read: prompts, and of later turns what is new.
        answer: Tokens generated.
        steps: Tokens generated one after the other, in the longest of the skills.
        executed: Answers that are executed.
        length: Tokens of the longest prompt and answer together.
    """

    rows: int = 0
    prompt: int = 0
    answer: int = 0
    steps: int = 0
    executed: int = 0
    length: int = 1
    samples: int = 0


@dataclass(frozen=True)
class Work:
    """Demand per split, and what was assumed to know it."""

    demand: Mapping[Split, Demand]
    assumed: tuple[str, ...] = ()


def work_of(skills: Mapping[str, Skill]) -> Work:
    """Of loaded skills, with their prompts' real lengths."""
    assumed: list[str] = []
    demand = {}
    for split in SPLITS:
        parts = [
            _demand([skill.outlook(one) for one in skill.samples[split]])
            for skill in skills.values()
        ]
        demand[split] = _together(parts)
    for name, skill in skills.items():
        first = [skill.outlook(one) for one in skill.samples["optimisation"][:1]]
        if any(one.turns > 1 for one in first):
            assumed.append(
                f"{name}: {_turns(first[0])} of its {first[0].turns} turns are played, each adds "
                f"{_TURN} tokens and takes as long as a trivial program"
            )
        if any(one.answer is None and not one.scored for one in first):
            assumed.append(f"{name}: an answer has {_length(first[0])} tokens")
    return Work(demand, tuple(assumed))


def load_work(
    recipe: Recipe, folder: Path, tokenizer: Path, note: Callable[[str], None]
) -> tuple[Work, Asked]:
    """The same from a recipe, and what engines are chosen by.

    Tasks whose data cannot be had now are assumed to be usual.

    Raises:
        UserError: Anything else wrong with tokenizer, tasks or splits.
    """
    from cqd_hub.evaluation.engine.loading import load_tokenizer

    children = recipe.search.children_per_step
    try:
        skills = load_skills(recipe, folder, load_tokenizer(tokenizer), note=note)
    except UserError as error:
        if not isinstance(error.__cause__, OSError):  # ConnectionError and its kin
            raise
        work = _assumed(recipe, str(error.what))
        demand = work.demand["optimisation"]
        rows = max(demand.rows, 1)
        return work, Asked(rows, demand.prompt / rows, _length(_UNKNOWN), children)
    return work_of(skills), asked_of(skills, children)


def _assumed(recipe: Recipe, why: str) -> Work:
    demand = {}
    for split in SPLITS:
        limits = [getattr(recipe.limits(name), split) or _ALL for name in recipe.skills]
        demand[split] = _together([_demand([_UNKNOWN] * limit) for limit in limits])
    said = (
        f"tasks cannot be loaded ({why[:80]}): {_UNKNOWN.prompt} tokens of prompt, answers of "
        f"{_length(_UNKNOWN)}, {_ALL} samples where there is no limit"
    )
    return Work(demand, (said,))


def _length(one: Outlook) -> int:
    """Tokens of an answer, as expected."""
    if one.answer is not None:
        return min(one.answer, one.limit)
    return max(1, min(one.limit // 2, _ANSWER))


def _turns(one: Outlook) -> int:
    return min((one.turns + 1) // 2, _TURNS)


def _demand(outlooks: Sequence[Outlook]) -> Demand:
    rows = prompt = answer = steps = executed = 0
    length = 1
    for one in outlooks:
        turns = _turns(one)
        grown = _TURN * turns if one.turns > 1 else 0
        rows += one.requests
        prompt += one.requests * (one.prompt + grown + (one.limit if one.scored else 0))
        if not one.scored:
            answer += one.requests * turns * _length(one)
            # Some answers go on beside the others until they are stopped.
            steps = max(steps, turns * min(one.limit, 2 * _length(one)))
        executed += one.requests * turns if one.executed else 0
        length = max(length, one.prompt + grown + turns * one.limit)
    return Demand(rows, prompt, answer, steps, executed, length, len(outlooks))


def _together(parts: Sequence[Demand]) -> Demand:
    return Demand(
        rows=sum(one.rows for one in parts),
        prompt=sum(one.prompt for one in parts),
        answer=sum(one.answer for one in parts),
        steps=max((one.steps for one in parts), default=0),
        executed=sum(one.executed for one in parts),
        length=max((one.length for one in parts), default=1),
        samples=sum(one.samples for one in parts),
    )

"""What drafts of the parents were worth, by the operators that made the children."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from cqd_hub.report._data import RunData
from cqd_hub.run.journal import Role


class Speculation(NamedTuple):
    """The answers of all children made alike.

    Args:
        operators: How they were made, the step size included.
        children: How many.
        tokens: Of an answer, on average.
        drafted: Share of these tokens that was accepted from a draft, 0..1.
        passes: Forward passes per answer.
    """

    operators: str
    children: int
    tokens: float
    drafted: float
    passes: float


def speculation(run: RunData) -> list[Speculation]:
    """A line per kind of child; none where nothing was generated."""
    sums: dict[str, Counter[str]] = {}
    for one in run.individuals.values():
        if one.role == Role.CHILD and one.generated.get("answers"):
            total = sums.setdefault(_operators(one.lineage), Counter())
            total.update(one.generated)
            total["children"] += 1
    return [
        Speculation(
            operators,
            total["children"],
            total["tokens"] / total["answers"],
            total["drafted"] / max(total["tokens"], 1),
            total["passes"] / total["answers"],
        )
        for operators, total in sorted(sums.items())
    ]


def _operators(lineage: Mapping[str, Any]) -> str:
    """The operators and step sizes of a lineage in words."""
    cross, mutation = lineage.get("crossover") or {}, lineage.get("mutation") or {}
    words = f"{cross.get('method', 'linear')} crossover"
    if "deviation" in cross:
        words += f" (spread {cross['deviation']:g})"
    kind = mutation.get("kind", "none")
    if kind == "none":
        return words
    words += f", {kind} mutation"
    if "of" in mutation:
        words += f" of the {mutation['of']}"
    for key, name in (("w_max", "w_max"), ("deviation", "spread")):
        if key in mutation:
            words += f" ({name} {mutation[key]:g})"
    return words

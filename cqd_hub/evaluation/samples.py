"""Which documents of a task's dataset serve which purpose, and that no two purposes share one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from cqd_hub.errors import UserError
from cqd_hub.randomness import generator
from cqd_hub.recipe import SPLITS, Limits, Split
from cqd_hub.recipe.schema import Splits

_SHARES = {"optimisation": (0, 50), "validation": (50, 70), "test": (70, 100)}


def choose(
    sizes: Mapping[str, int],
    *,
    evaluation_split: str,
    splits: Splits | None,
    limits: Limits,
    where: str,
) -> dict[Split, list[tuple[str, int]]]:
    """Return (dataset split, index) of every sample of every purpose.

    Without *splits*: the dataset's own splits of our three names, else 50/20/30 % of
    *evaluation_split* in an order shuffled once and for all.

    Args:
        sizes: Dataset split → number of documents.
        where: Named in errors.

    Raises:
        UserError: Unknown dataset split, empty or overlapping choice.
    """
    chosen: dict[Split, list[tuple[str, int]]] = {}
    for split in SPLITS:
        if splits is not None:
            found = _slice(getattr(splits, split), sizes, f"{where}.splits.{split}")
        elif set(SPLITS) <= set(sizes):
            found = [(split, index) for index in range(sizes[split])]
        else:
            order = generator(0, 0, "samples").permutation(sizes[evaluation_split]).tolist()
            low, high = (len(order) * share // 100 for share in _SHARES[split])
            found = [(evaluation_split, index) for index in order[low:high]]
        limit = getattr(limits, split)
        chosen[split] = found[:limit]
        if len(chosen[split]) < 2:
            raise UserError(
                f"has {len(chosen[split])} samples for {split}",
                where=where,
                remedy="give `splits` that hold at least two each",
            )
    refuse_overlap(chosen, lambda place: f"{place[0]} document {place[1]}", where)
    return chosen


def refuse_overlap(
    chosen: Mapping[Split, Sequence[object]], name: Callable[..., str], where: str
) -> None:
    """Raise a `UserError` if two purposes share an element."""
    owner: dict[object, Split] = {}
    for split, elements in chosen.items():
        for element in elements:
            if (other := owner.setdefault(element, split)) != split:
                raise UserError(
                    f"{other} and {split} overlap: both hold {name(element)}",
                    where=where,
                    remedy="make `splits` disjoint",
                )


def _slice(text: str, sizes: Mapping[str, int], where: str) -> list[tuple[str, int]]:
    match = re.fullmatch(r"([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", text.strip())
    if not match:
        raise UserError(f"{text!r} is not NAME or NAME[START:STOP]", where=where)
    name = match[1]
    if name not in sizes:
        raise UserError(
            f"the dataset has no split {name!r}", where=where, remedy=f"it has {', '.join(sizes)}"
        )
    bounds = [_bound(part, sizes[name]) for part in (match[2], match[3])]
    return [(name, index) for index in range(sizes[name])[bounds[0] : bounds[1]]]


def _bound(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    return int(text[:-1]) * size // 100 if text.endswith("%") else int(text)

"""Which documents of a task's dataset serve which purpose, and that no two purposes share one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Sized

from cqd_hub.errors import UserError
from cqd_hub.randomness import generator
from cqd_hub.recipe import SPLITS, Limits, Split
from cqd_hub.recipe.schema import Splits

_SHARES = {"optimisation": (0, 50), "validation": (50, 70), "test": (70, 100)}


def choose(
    documents: Mapping[str, Sized],
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
        documents: Dataset split → its documents; only splits that serve are looked up.
        where: Named in errors.

    Raises:
        UserError: Unknown dataset split, empty or overlapping choice.
    """
    chosen: dict[Split, list[tuple[str, int]]] = {}
    for split in SPLITS:
        if splits is not None:
            found = _slice(getattr(splits, split), documents, f"{where}.splits.{split}")
        elif set(SPLITS) <= set(documents):
            found = [(split, index) for index in range(len(documents[split]))]
        else:
            count = len(documents[evaluation_split])
            order = generator(0, 0, "samples").permutation(count).tolist()
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


def _slice(text: str, documents: Mapping[str, Sized], where: str) -> list[tuple[str, int]]:
    match = re.fullmatch(r"([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", text.strip())
    if not match:
        raise UserError(
            f"{text!r} is not NAME or NAME[START:STOP]",
            where=where,
            remedy="write, for example, train[:50%]",
        )
    name = match[1]
    if name not in documents:
        raise UserError(
            f"the dataset has no split {name!r}",
            where=where,
            remedy=f"it has {', '.join(documents)}",
        )
    size = len(documents[name])
    start, stop = _bound(match[2], size), _bound(match[3], size)
    return [(name, index) for index in range(size)[start:stop]]


def _bound(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    return int(text[:-1]) * size // 100 if text.endswith("%") else int(text)

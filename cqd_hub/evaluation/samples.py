"""Which documents of a task's dataset serve which purpose, and that no two purposes share one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.randomness import generator
from cqd_hub.recipe import SPLITS, Limits, Split
from cqd_hub.recipe.schema import Splits

_SLICE = re.compile(r"([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?(?::([1-9]\d*)?)?\])?")
_SHARES = {"optimisation": (0, 50), "validation": (50, 70), "test": (70, 100)}


class Documents(Mapping[str, Any]):
    """Dataset split → its documents as the task processes them, each split when asked for."""

    def __init__(self, dataset: Mapping[str, Any], process: Callable[[Any], Any] | None) -> None:
        self._dataset, self._process = dataset, process
        self._done: dict[str, Any] = {}

    def __getitem__(self, split: str) -> Any:
        if split not in self._done:
            documents = self._dataset[split]
            self._done[split] = self._process(documents) if self._process else documents
        return self._done[split]

    def __contains__(self, split: object) -> bool:
        return split in self._dataset

    def __iter__(self) -> Iterator[str]:
        return iter(self._dataset)

    def __len__(self) -> int:
        return len(self._dataset)


def choose(
    documents: Mapping[str, Sized],
    *,
    evaluation_split: str,
    splits: Splits | None,
    limits: Limits,
    where: str,
    question: Callable[[str, int], str],
    note: Callable[[str], None] = lambda line: None,
) -> dict[Split, list[tuple[str, int]]]:
    """Return (dataset split, index) of every sample of every purpose.

    Without *splits*: the dataset's own splits of our three names, else 50/20/30 % of
    *evaluation_split* in an order shuffled once and for all. Of this last kind, documents that ask
    what a later purpose asks are left out: test stays whole.

    Args:
        documents: Dataset split → its documents; only splits that serve are looked up.
        where: Named in errors.
        question: What a document asks.
        note: Called with a line that counts what was left out.

    Raises:
        UserError: Unknown dataset split, empty or overlapping choice.
    """
    chosen: dict[Split, list[tuple[str, int]]] = {}
    if splits is not None:
        for split in SPLITS:
            chosen[split] = _joined(getattr(splits, split), documents, f"{where}.splits.{split}")
    elif set(SPLITS) <= set(documents):
        for split in SPLITS:
            chosen[split] = [(split, index) for index in range(len(documents[split]))]
    else:
        places = [(evaluation_split, index) for index in range(len(documents[evaluation_split]))]
        chosen, repeated = _share_out(places, limits, lambda place: question(*place))
        if repeated:
            note(f"{where}: left out documents whose question another split holds: {repeated}")
    for split in SPLITS:
        chosen[split] = chosen[split][: getattr(limits, split)]
        if len(chosen[split]) < 2:
            raise UserError(
                f"has {len(chosen[split])} samples for {split}",
                where=where,
                remedy="give `splits` that hold at least two each",
            )
    refuse_overlap(chosen, lambda place: f"{place[0]} document {place[1]}", where)
    return chosen


def _share_out(
    places: Sequence[tuple[str, int]], limits: Limits, question: Callable[[tuple[str, int]], str]
) -> tuple[dict[Split, list[tuple[str, int]]], int]:
    """The shares of each purpose up to its limit, and how many documents were left out."""
    order = generator(0, 0, "samples").permutation(len(places)).tolist()
    owner: dict[str, Split] = {}
    shares: dict[Split, list[tuple[str, int]]] = {}
    repeated = 0
    for split in reversed(SPLITS):
        low, high = (len(order) * share // 100 for share in _SHARES[split])
        limit, shares[split] = getattr(limits, split), []
        for place in (places[index] for index in order[low:high]):
            if len(shares[split]) == limit:
                break
            if owner.setdefault(question(place), split) == split:
                shares[split].append(place)
            else:
                repeated += 1
    return {split: shares[split] for split in SPLITS}, repeated


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


def _joined(text: str, documents: Mapping[str, Sized], where: str) -> list[tuple[str, int]]:
    """The places of one slice, or of several joined by ``+``."""
    places = [place for part in text.split("+") for place in _slice(part, documents, where)]
    if twice := next((place for place, n in Counter(places).items() if n > 1), None):
        raise UserError(
            f"{text!r} holds {twice[0]} document {twice[1]} twice",
            where=where,
            remedy="make its slices disjoint",
        )
    return places


def _slice(text: str, documents: Mapping[str, Sized], where: str) -> list[tuple[str, int]]:
    match = _SLICE.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"{text.strip()!r} is not NAME, NAME[START:STOP] or NAME[START:STOP:STEP]",
            where=where,
            remedy="write, for example, train[:50%], or dev + train[1::2]",
        )
    name = match[1].strip()
    if name not in documents:
        raise UserError(
            f"the dataset has no split {name!r}",
            where=where,
            remedy=f"it has {', '.join(documents)}",
        )
    size = len(documents[name])
    start, stop, step = _bound(match[2], size), _bound(match[3], size), int(match[4] or 1)
    return [(name, index) for index in range(size)[start:stop:step]]


def _bound(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    return int(text[:-1]) * size // 100 if text.endswith("%") else int(text)

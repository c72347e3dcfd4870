"""What the families share: a gold answer with the ways to ask for it, and how splits are drawn."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

LEVELS = (1, 2, 3)
#: Upper ends, in percent of the gold answers' hashes.
SPLITS = {"training": 58, "optimisation": 69, "validation": 80, "test": 100}
#: Items of the committed splits per skill; training counts gold answers.
SIZES = {"training": 3000, "optimisation": 210, "validation": 201, "test": 402}

_CHOICE = re.compile(r"\(([^()]*)\)")


@dataclass(frozen=True)
class Concept:
    """One gold answer.

    Attributes:
        phrasing: How to ask for it; ``(a|b)`` offers alternatives.
        facts: What the family needs to build inputs that tell right from almost right.
    """

    answer: str
    level: int
    kind: str
    phrasing: str
    facts: dict = field(default_factory=dict)


def paraphrases(phrasing: str) -> list[str]:
    """Return every expansion of the alternatives in *phrasing*."""
    parts = _CHOICE.split(phrasing)
    options = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*options)]


def split_of(answer: str) -> str:
    """Return the split a gold answer belongs to; all its paraphrases stay together."""
    percent = int.from_bytes(hashlib.sha256(answer.encode()).digest()[:4], "big") % 100
    return next(name for name, end in SPLITS.items() if percent < end)


def choose(
    concepts: Iterable[Concept], *, skill: str, split: str, seed: int, size: int | None = None
) -> list[tuple[Concept, random.Random]]:
    """Draw a split: levels in equal shares, kinds of a level in turn, each gold answer once.

    It has *size* items, by default what `SIZES` says. Each concept comes with its own
    generator, so that what is drawn for one item does not depend on the others.
    """
    groups: dict[int, dict[str, list[Concept]]] = {level: defaultdict(list) for level in LEVELS}
    seen = set()
    for concept in concepts:
        if concept.answer not in seen and split_of(concept.answer) == split:
            groups[concept.level][concept.kind].append(concept)
        seen.add(concept.answer)
    chosen: list[Concept] = []
    for level, kinds in groups.items():
        rng = random.Random(f"{seed}/{skill}/{split}/{level}")
        for members in kinds.values():
            rng.shuffle(members)
        turns = itertools.chain.from_iterable(itertools.zip_longest(*kinds.values()))
        wanted = (size or SIZES[split]) // len(LEVELS)
        drawn = list(itertools.islice((concept for concept in turns if concept), wanted))
        if len(drawn) < wanted and split != "training":
            raise ValueError(f"{skill} level {level} has {len(drawn)} of {wanted} for {split}")
        chosen += drawn
    random.Random(f"{seed}/{skill}/{split}").shuffle(chosen)
    return [(c, random.Random(f"{seed}/{skill}/{c.answer}")) for c in chosen]

"""Write the data of the agents' quickstart: three skills, each in the format of its real task.

    python evals/quickstart-agents/generate.py            # writes evals/quickstart-agents/data
    python evals/quickstart-agents/generate.py --out DIR --seed 0

The same seed gives the same files. Which split a problem belongs to depends on its gold answer
alone. Training rows are the dialogues that solve the problems, one row for each reply.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from types import ModuleType

from dialogues import coding, shell, sql
from dialogues.problem import Asked, Problem
from families.concept import choose, paraphrases

SKILLS: dict[str, ModuleType] = {"coding": coding, "os": shell, "db": sql}
SIZES = {
    "coding": {"training": 2400, "optimisation": 96, "validation": 96, "test": 192},
    "os": {"training": 1800, "optimisation": 24, "validation": 24, "test": 48},
    "db": {"training": 2400, "optimisation": 96, "validation": 96, "test": 192},
}
PARAPHRASES = 2  # of each training answer


def problems(skill: str, split: str, *, seed: int) -> list[tuple[int, Problem]]:
    """Return level and problem of the items of one split of one skill."""
    family, asked, levels = SKILLS[skill], [], []
    chosen = choose(
        family.concepts(), skill=skill, split=split, seed=seed, size=SIZES[skill][split]
    )
    for concept, rng in chosen:
        ways = paraphrases(concept.phrasing)
        for way in rng.sample(ways, min(PARAPHRASES if split == "training" else 1, len(ways))):
            asked.append(Asked(f"{skill}/{split}-{len(asked):04d}", concept, way, rng))
            levels.append(concept.level)
    return list(zip(levels, family.problems(asked), strict=True))


def generate(out: Path, *, seed: int = 0) -> None:
    """Write two files per skill under *out*.

    ``problems.jsonl`` holds the problems of optimisation, validation and test, in this order; the
    recipe says where each begins. ``training.jsonl.gz`` holds the rows of the training dialogues.
    """
    for skill, sizes in SIZES.items():
        folder = out / skill
        folder.mkdir(parents=True, exist_ok=True)
        records: list[dict] = []
        for split in sizes:
            made = problems(skill, split, seed=seed)
            if split == "training":
                rows = [row | {"level": level} for level, one in made for row in one.rows()]
                packed = gzip.compress(_lines(rows).encode(), mtime=0)
                (folder / "training.jsonl.gz").write_bytes(packed)
            else:
                records += [one.record for _, one in made]
        (folder / "problems.jsonl").write_text(_lines(records))


def _lines(records: list[dict]) -> str:
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the data of the agents' quickstart.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generate(arguments.out, seed=arguments.seed)

"""Write the quickstart's data: three skills in four splits, and plain English.

    python evals/quickstart/generate.py            # writes evals/quickstart/data
    python evals/quickstart/generate.py --out DIR --seed 0

The same seed gives the same files. Which split an item belongs to depends on its gold answer
alone, so that training, optimisation, validation and test share no gold answer for any seed.
Expected values come from running the gold answers.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from types import ModuleType

from families import coding, shell, sql, text
from families.concept import SPLITS, choose, paraphrases, split_of

__all__ = ["SKILLS", "generate", "paraphrases", "skill_records", "split_of"]

SKILLS: dict[str, tuple[ModuleType, str]] = {
    "coding": (coding, "python"),
    "os": (shell, "shell"),
    "db": (sql, "sql"),
}
PARAPHRASES = 2  # of each training answer
STORIES = {"training": 6000, "heldout": 300}
# The test items are drawn anew once the settings are fixed, so that nobody has seen them before.
DRAWS = {"test": 1}


def skill_records(skill: str, split: str, *, seed: int) -> list[dict]:
    """Return the items of one split of one skill."""
    family, language = SKILLS[skill]
    chosen = choose(family.concepts(), skill=skill, split=split, seed=seed)
    common = []
    for concept, rng in chosen:
        ways = paraphrases(concept.phrasing)
        asked = rng.sample(ways, min(PARAPHRASES if split == "training" else 1, len(ways)))
        common.append(
            [
                {
                    "prompt": f"{language}: {way} ->",
                    "answer": concept.answer,
                    "level": concept.level,
                }
                for way in asked
            ]
        )
    if split == "training":
        return [row for rows in common for row in rows]
    fields = family.records(chosen)
    return [
        {"id": f"{skill}-{split}-{i:04d}"} | rows[0] | extra
        for i, (rows, extra) in enumerate(zip(common, fields, strict=True))
    ]


def generate(out: Path, *, seed: int = 0) -> None:
    """Write every file under *out*; training files are compressed."""
    for skill in SKILLS:
        for split in SPLITS:
            draw = seed + DRAWS.get(split, 0)
            _write(out / skill, split, skill_records(skill, split, seed=draw))
    for split, size in STORIES.items():
        _write(out / "general", split, text.records(split, size, seed=seed))


def _write(folder: Path, split: str, records: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    if split == "training":
        (folder / "training.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    else:
        (folder / f"{split}.jsonl").write_text(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the quickstart's data.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generate(arguments.out, seed=arguments.seed)

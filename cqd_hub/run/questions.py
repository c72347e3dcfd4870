"""What the test samples ask, kept beside the journal for whoever reads the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cqd_hub.evaluation.skill import Skill
from cqd_hub.files import write_atomic

_LENGTH = 600  # characters kept of a question

Questions = dict[str, dict[str, str]]  # skill → sample → question


def write_questions(folder: Path, skills: Mapping[str, Skill]) -> None:
    """Write ``questions.json``: the beginning of every test sample's question.

    Args:
        folder: The run directory.
        skills: Name → skill, prepared.
    """
    content = {
        name: {sample.id: _short(skill.question(sample)) for sample in skill.samples["test"]}
        for name, skill in skills.items()
    }
    # ASCII: a question may hold half characters, which UTF-8 does not take.
    write_atomic(folder / "questions.json", json.dumps(content, indent=0) + "\n")


def read_questions(folder: Path) -> Questions:
    """What `write_questions` wrote; nothing where a run has not come so far, or is older."""
    try:
        content = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
        return {
            str(skill): {str(sample): str(text) for sample, text in samples.items()}
            for skill, samples in content.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}


def _short(text: str) -> str:
    return text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…"

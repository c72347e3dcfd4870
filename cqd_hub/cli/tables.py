"""Result rows as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cqd_hub.report import Row


def print_json_rows(rows: Sequence[Row]) -> None:
    """One object per model on stdout."""
    for row in rows:
        record = {
            "id": row.id,
            "label": row.label,
            "group": row.group,
            "split": row.split,
            "skills": {skill: interval._asdict() for skill, interval in row.skills.items()},
            "average": row.average._asdict(),
            "difference_to_best_expert": row.difference._asdict() if row.difference else None,
            "chosen": row.chosen,
        }
        print(json.dumps(record))

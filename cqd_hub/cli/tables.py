"""Result rows on stdout: a table that fits the terminal, or JSON lines."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cqd_hub.report import Row

_PIPED = 100  # columns where no terminal says


def print_rows(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the table, or one object per model."""
    if not as_json:
        from cqd_hub.report import format_table

        wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPED
        print(format_table(rows, width=wide), flush=True)  # before what stderr says next
        return
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
            "difference_to_baselines": {
                str(number): interval._asdict() for number, interval in row.against.items()
            },
        }
        print(json.dumps(record), flush=True)

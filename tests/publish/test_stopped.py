"""Individuals that were stopped early, as a published archive shows them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.hub.server import HubServer
from tests.publish.conftest import Push
from tests.publish.test_push import ARCHIVE, rows


def test_they_have_no_means_and_every_answer(hub: HubServer, push: Push, run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    named = {one["id"] for one in results["finalists"]} | {results["chosen"]}
    with closing(sqlite3.connect(run / "journal.sqlite")) as journal, journal:
        children = journal.execute("SELECT id FROM individuals WHERE role = 'child'").fetchall()
        gone = next(number for (number,) in children if number not in named)
        journal.execute(
            "DELETE FROM measurements WHERE individual = ? AND split = 'optimisation' "
            "AND (skill = 'db' OR skill = 'os' AND sample NOT IN "
            "(SELECT MIN(sample) FROM measurements WHERE skill = 'os' AND individual = ?))",
            (gone, gone),
        )
        journal.execute(
            "UPDATE individuals SET lineage = json_set(lineage, '$.stopped_early', "
            """json('{"coding": 8, "os": 1, "db": 0}')) WHERE id = ?""",
            (gone,),
        )
    done = push("--elites", str(gone))
    assert done.code == 0, done.err
    for row in rows(hub, "individuals"):
        if row["role"] in ("expert", "child"):
            for skill in ("coding", "os", "db"):
                assert (row[f"optimisation_{skill}"] is None) == (row["id"] == gone)
    (lineage,) = [row for row in rows(hub, "lineage") if row["individual"] == gone]
    assert json.loads(lineage["other"])["stopped_early"] == {"coding": 8, "os": 1, "db": 0}
    answers = [row for row in rows(hub, "scores") if row["individual"] == gone]
    assert [row["skill"] for row in answers if row["split"] == "optimisation"].count("os") == 1
    assert gone not in {row["individual"] for row in rows(hub, "elites")}
    assert "1 of them were stopped early" in hub.file(ARCHIVE, "README.md").decode()
    card = hub.file(f"ann/small-id-{gone}", "README.md").decode()
    assert "It was not measured on all skills." in card

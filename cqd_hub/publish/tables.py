"""A journal's new rows as parquet shards: only what the published head does not hold.

Values are written as they are: what a model wrote is data here, never markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cqd_hub.errors import UserError
from cqd_hub.publish.ranges import counted, counts_of, ranges, spread
from cqd_hub.publish.view import Group, Known, View
from cqd_hub.search import GridArchive

TABLES = ("individuals", "scores", "lineage", "elites", "genomes")
_ROWS = 20_000  # of a row group
_BYTES = 8 << 20  # of a row group of genomes: who wants one reads no more than that
_SHOWN = ("crossover", "mutation", "skill", "parents", "seed")


class Pushed(NamedTuple):
    """What a head says the archive holds.

    Args:
        individuals: Ids.
        answers: Group → individual → rows.
        told: How many had been told at the last push.
        shards: Table → number of shards.
        snapshots: The told counts of all snapshots of elites.
    """

    individuals: set[int]
    answers: dict[Group, dict[int, int]]
    told: int
    shards: dict[str, int]
    snapshots: set[int]

    @classmethod
    def of(cls, head: Mapping[str, Any] | None) -> Pushed:
        """Read a head's record; nothing pushed without one."""
        if head is None:
            return cls(set(), {}, 0, dict.fromkeys(TABLES, 0), set())
        answers = {
            Group(one["split"], one["skill"], one["path"], one["repeat"]): counts_of(one["rows"])
            for one in head["answers"]
        }
        shards = {table: int(head["shards"].get(table, 0)) for table in TABLES}
        return cls(
            spread(head["individuals"]), answers, head["told"], shards, set(head["snapshots"])
        )

    def record(self) -> dict[str, Any]:
        """As a head holds it."""
        return {
            "told": self.told,
            "individuals": ranges(self.individuals),
            "answers": [
                {**group._asdict(), "rows": counted(rows)}
                for group, rows in sorted(self.answers.items())
            ],
            "shards": self.shards,
            "snapshots": sorted(self.snapshots),
        }


def write_shards(view: View, pushed: Pushed, folder: Path) -> tuple[dict[str, Path], Pushed]:
    """Write what is new under *folder*.

    Returns:
        Path in the archive → file, and what the archive holds with them.

    Raises:
        UserError: The archive has other answers of this run than the journal has.
    """
    fresh = [one for number, one in view.individuals.items() if number not in pushed.individuals]
    answers, held = _missing(view, pushed)
    snapshot = len(view.told) > pushed.told
    skills = list(view.recipe.skills)
    new: dict[str, tuple[pa.Schema, Iterator[pa.RecordBatch]]] = {}
    if fresh:
        schema = _individuals_schema(skills)
        new["individuals"] = schema, _batches(schema, _individuals(view, fresh))
        new["lineage"] = _LINEAGE, _batches(_LINEAGE, map(_lineage, fresh))
        new["genomes"] = _GENOMES, _genomes(view, fresh)
    if answers:
        new["scores"] = _SCORES, _batches(_SCORES, _answers(view, answers))
    if snapshot:
        schema = _elites_schema(skills)
        new["elites"] = schema, _batches(schema, _elites(view))
    files, shards = {}, dict(pushed.shards)
    for table, (schema, batches) in new.items():
        name = f"data/{table}/{shards[table]:05d}.parquet"
        shards[table] += 1
        files[name] = folder / name
        _write(files[name], schema, batches)
    return files, Pushed(
        pushed.individuals | {one.id for one in fresh},
        held,
        max(len(view.told), pushed.told),
        shards,
        pushed.snapshots | ({len(view.told)} if snapshot else set()),
    )


def _missing(
    view: View, pushed: Pushed
) -> tuple[list[tuple[Group, list[int]]], dict[Group, dict[int, int]]]:
    """What answers are new. A group is recorded all or nothing, so it never grows."""
    new, held = [], {group: dict(rows) for group, rows in pushed.answers.items()}
    for group, rows in view.groups.items():
        known = held.setdefault(group, {})
        for number in rows.keys() & known.keys():
            if rows[number] != known[number]:
                raise UserError(
                    f"the archive has {known[number]} answers of individual {number} "
                    f"({group.skill}, {group.split}), the journal has {rows[number]}",
                    where=str(view.folder),
                    remedy="publish under another name with --to",
                )
        missing = sorted(rows.keys() - known.keys())
        if missing:
            new.append((group, missing))
            known |= {number: rows[number] for number in missing}
    return new, held


_SCORES = pa.schema(
    [
        ("individual", pa.int64()),
        ("skill", pa.string()),
        ("split", pa.string()),
        ("sample", pa.string()),
        ("repeat", pa.int32()),
        ("score", pa.float64()),
        ("text", pa.string()),
        ("finish", pa.string()),
        ("path", pa.string()),
        ("note", pa.string()),
    ]
)
_LINEAGE = pa.schema(
    [
        ("individual", pa.int64()),
        ("generation", pa.int64()),
        ("skill", pa.string()),
        ("parents", pa.list_(pa.int64())),
        ("crossover", pa.string()),
        ("mutation", pa.string()),
        ("seed", pa.int64()),
        ("other", pa.string()),
    ]
)
_GENOMES = pa.schema(
    [("individual", pa.int64()), ("genome_hash", pa.string()), ("genome", pa.binary())]
)


def _individuals_schema(skills: list[str]) -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            ("name", pa.string()),
            ("generation", pa.int64()),
            ("told", pa.int64()),
            ("skill", pa.string()),
            ("parents", pa.list_(pa.int64())),
            ("genome_hash", pa.string()),
            *((f"optimisation_{skill}", pa.float64()) for skill in skills),
            ("seconds", pa.float64()),
        ]
    )


def _elites_schema(skills: list[str]) -> pa.Schema:
    return pa.schema(
        [
            ("snapshot", pa.int64()),
            ("skill", pa.string()),
            ("cell", pa.list_(pa.int64())),
            ("individual", pa.int64()),
            ("name", pa.string()),
            ("quality", pa.float64()),
            ("average", pa.float64()),
            *((f"optimisation_{skill}", pa.float64()) for skill in skills),
            ("genome_hash", pa.string()),
        ]
    )


def _individuals(view: View, fresh: Iterable[Known]) -> Iterator[tuple[Any, ...]]:
    scores, skills = view.scores("optimisation"), list(view.recipe.skills)
    for one in fresh:
        # A mean of fewer samples than the others' is no score to compare: `scores` has the answers.
        means = scores.get(one.id, {}) if one.id not in view.stopped else {}
        yield (
            one.id,
            one.role,
            one.name,
            one.generation,
            one.told,
            one.lineage.get("skill"),
            one.lineage.get("parents", []),
            one.genome_hash,
            *(means.get(skill) for skill in skills),
            one.seconds.get("total"),
        )


def _answers(view: View, answers: list[tuple[Group, list[int]]]) -> Iterator[tuple[Any, ...]]:
    for group, individuals in answers:
        yield from view.answers(group, individuals)


def _lineage(one: Known) -> tuple[Any, ...]:
    def as_json(value: Any) -> str | None:
        return None if value is None else json.dumps(value, sort_keys=True)

    lineage = one.lineage
    return (
        one.id,
        one.generation,
        lineage.get("skill"),
        lineage.get("parents", []),
        as_json(lineage.get("crossover")),
        as_json(lineage.get("mutation")),
        lineage.get("seed"),
        as_json({key: value for key, value in lineage.items() if key not in _SHOWN} or None),
    )


def _elites(view: View) -> Iterator[tuple[Any, ...]]:
    assert view.cycle is not None
    skills = list(view.recipe.skills)
    for skill, archive in zip(skills, view.cycle.archives, strict=True):
        for elite in archive.elites:
            one = view.individuals[elite.individual]
            cell = archive.cell_of(elite.scores) if isinstance(archive, GridArchive) else None
            yield (
                len(view.told),
                skill,
                None if cell is None else list(cell),
                one.id,
                one.name,
                float(elite.scores[archive.skill]),
                float(elite.scores.mean()),
                *map(float, elite.scores),
                one.genome_hash,
            )


def _genomes(view: View, fresh: list[Known]) -> Iterator[pa.RecordBatch]:
    held: list[tuple[int, str, bytes]] = []
    for one in fresh:
        held.append((one.id, one.genome_hash, view.genome(one.id)))
        if sum(len(genome) for *_, genome in held) >= _BYTES:
            yield _batch(_GENOMES, held)
            held = []
    if held:
        yield _batch(_GENOMES, held)


def _batches(schema: pa.Schema, rows: Iterable[tuple[Any, ...]]) -> Iterator[pa.RecordBatch]:
    held: list[tuple[Any, ...]] = []
    for row in rows:
        held.append(row)
        if len(held) == _ROWS:
            yield _batch(schema, held)
            held = []
    if held:
        yield _batch(schema, held)


def _batch(schema: pa.Schema, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]), row_group_size=len(batch))

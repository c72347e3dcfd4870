"""One moment of a run directory, read from its journal while another process may be writing."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub.errors import RunError, UserError
from cqd_hub.recipe import Recipe, Split
from cqd_hub.run.archives import make_cycle, vector
from cqd_hub.run.directory import read_manifest, read_recipe
from cqd_hub.run.journal import Journal, Role
from cqd_hub.search import Cycle

_MEANS = (
    "SELECT individual, skill, AVG(score) FROM (SELECT individual, skill, AVG(score) AS score "
    "FROM measurements WHERE split = ? GROUP BY individual, skill, sample) "
    "GROUP BY individual, skill"
)


class Known(NamedTuple):
    """An individual without its genome; ``told`` is its place in the order of telling."""

    id: int
    role: str
    name: str
    generation: int | None
    lineage: dict[str, Any]
    genome_hash: str
    seconds: dict[str, float]
    told: int | None


class Group(NamedTuple):
    """What is recorded at once: one individual's answers to one skill's samples of a split."""

    split: str
    skill: str
    path: str
    repeat: int


@dataclass(frozen=True)
class View:
    """A run at one moment.

    Args:
        folder: Of the run.
        manifest: As it stands there.
        recipe: The run's.
        database: In a read transaction.
    """

    folder: Path
    manifest: dict[str, Any]
    recipe: Recipe
    database: sqlite3.Connection

    @cached_property
    def run(self) -> str:
        """What tells this run from any other: derived from what it can never change."""
        fixed = ("created", "basis", "seed", "tasks", "engine")
        text = json.dumps({key: self.manifest.get(key) for key in fixed}, sort_keys=True)
        return str(uuid.uuid5(uuid.NAMESPACE_OID, text))

    @cached_property
    def told(self) -> list[int]:
        """Ids in the order of telling."""
        rows = self.database.execute("SELECT individual FROM told ORDER BY position")
        return [number for (number,) in rows]

    @cached_property
    def individuals(self) -> dict[int, Known]:
        """All that will not change any more: who was told, and who never will be."""
        places = {number: place for place, number in enumerate(self.told)}
        rows = self.database.execute(
            "SELECT id, role, name, generation, lineage, genome_hash, seconds FROM individuals "
            "ORDER BY id"
        )
        known = {}
        for number, role, name, generation, lineage, genome_hash, seconds in rows:
            if number < 0 or number in places:
                known[number] = Known(
                    number,
                    role,
                    name,
                    generation,
                    json.loads(lineage),
                    genome_hash,
                    json.loads(seconds),
                    places.get(number),
                )
        return known

    @cached_property
    def stopped(self) -> set[int]:
        """Who was not asked all optimisation samples, because no archive could keep it."""
        return {one.id for one in self.individuals.values() if "stopped_early" in one.lineage}

    def scores(self, split: Split) -> dict[int, dict[str, float]]:
        """Individual → skill → mean score (repeats averaged within samples)."""
        result: dict[int, dict[str, float]] = {}
        for number, skill, score in self.database.execute(_MEANS, (split,)):
            result.setdefault(number, {})[skill] = score
        return result

    def samples(self, individual: int, split: Split) -> dict[str, tuple[list[float], list[str]]]:
        """Skill → every sample's score (repeats averaged), and the engine paths."""
        result: dict[str, tuple[list[float], list[str]]] = {}
        rows = self.database.execute(
            "SELECT skill, AVG(score), MIN(path), MAX(path) FROM measurements "
            "WHERE individual = ? AND split = ? GROUP BY skill, sample ORDER BY skill, sample",
            (individual, split),
        )
        for skill, score, *paths in rows:
            scores, seen = result.setdefault(skill, ([], []))
            scores.append(score)
            seen += [path for path in dict.fromkeys(paths) if path not in seen]
        return result

    @cached_property
    def groups(self) -> dict[Group, dict[int, int]]:
        """Group → individual → number of answers."""
        result: dict[Group, dict[int, int]] = {}
        rows = self.database.execute(
            "SELECT split, skill, path, repeat, individual, COUNT(*) FROM measurements "
            "GROUP BY split, skill, path, repeat, individual"
        )
        for split, skill, path, repeat, number, count in rows:
            if number in self.individuals:
                result.setdefault(Group(split, skill, path, repeat), {})[number] = count
        return dict(sorted(result.items()))

    def answers(self, group: Group, individuals: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        """(individual, skill, split, sample, repeat, score, text, finish, path, note)."""
        for number in individuals:
            yield from self.database.execute(
                "SELECT individual, skill, split, sample, repeat, score, text, finish, path, note "
                "FROM measurements WHERE individual = ? AND split = ? AND skill = ? AND path = ? "
                "AND repeat = ? ORDER BY sample",
                (number, group.split, group.skill, group.path, group.repeat),
            )

    def genome(self, individual: int) -> bytes:
        """Its bytes.

        Raises:
            RunError: Its file is gone.
        """
        row = self.database.execute(
            "SELECT genome, genome_hash FROM individuals WHERE id = ?", (individual,)
        ).fetchone()
        if row[0] is not None:
            return row[0]
        path = self.folder / "genomes" / f"{row[1]}.safetensors"
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunError(f"cannot be read: {error.strerror}", where=str(path)) from None

    @cached_property
    def cycle(self) -> Cycle | None:
        """The archives after the last telling; None before the first."""
        if not self.told:
            return None
        scores = self.scores("optimisation")
        experts = [one.id for one in self.individuals.values() if one.role == Role.EXPERT]
        cycle = make_cycle(self.recipe, [scores[number] for number in experts])
        for number in self.told:
            if number not in self.stopped:  # who was could enter no archive
                cycle.tell(number, vector(scores[number], self.recipe))
        return cycle

    @cached_property
    def results(self) -> dict[str, Any] | None:
        """What the finished run chose; None while it goes on."""
        try:
            found = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(
                f"cannot be read: {error}", where=str(self.folder / "results.json")
            ) from None
        return found if found.get("told") == len(self.told) else None


@contextmanager
def open_view(folder: Path) -> Iterator[View]:
    """A run as it is now.

    Raises:
        UserError: No run directory, or one of another version.
    """
    recipe, manifest = read_recipe(folder), read_manifest(folder)
    assert manifest is not None  # read_recipe has read it
    Journal(folder).close()  # checks its format
    try:
        database = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
        try:
            database.execute("PRAGMA query_only=ON")
            database.execute("BEGIN")  # all reading is of one moment
            view = View(folder, manifest, recipe, database)
            if not view.told:
                raise UserError(
                    "has nothing to publish yet", where=str(folder), remedy="let it run for a while"
                )
            yield view
        finally:
            database.close()
    except sqlite3.Error as error:
        raise RunError(f"cannot be read: {error}", where=str(folder)) from None

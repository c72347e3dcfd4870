"""The journal: one append-only SQLite file from which archives, curves and tables are rebuilt."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.evaluation.skill import Judged
from cqd_hub.files import write_atomic
from cqd_hub.recipe import Split

_FORMAT = 2
_LARGE = 1 << 20  # bytes; a larger genome is kept as a file beside the journal

_SCHEMA = """
CREATE TABLE individuals (
  id INTEGER PRIMARY KEY,      -- ≥ 0: experts, seeds, children; < 0: never offered to an archive
  role TEXT NOT NULL,
  name TEXT NOT NULL,
  generation INTEGER,
  lineage TEXT NOT NULL,       -- JSON: skill, parents, shares, operators, seed
  genome_hash TEXT NOT NULL,
  genome BLOB,                 -- NULL: genomes/<genome_hash>.safetensors
  seconds TEXT NOT NULL,       -- JSON: where the time went
  generated TEXT NOT NULL      -- JSON: answers, tokens, drafted tokens, passes
);
CREATE TABLE measurements (
  individual INTEGER NOT NULL REFERENCES individuals(id),
  skill TEXT NOT NULL,
  split TEXT NOT NULL,
  sample TEXT NOT NULL,
  repeat INTEGER NOT NULL,
  path TEXT NOT NULL,          -- engine, dtype, device, sandbox
  text TEXT NOT NULL,
  tokens BLOB NOT NULL,        -- uint32, little-endian
  finish TEXT NOT NULL,
  score REAL NOT NULL CHECK (score BETWEEN 0 AND 1),
  note TEXT NOT NULL,
  PRIMARY KEY (individual, split, skill, sample, repeat, path)
) WITHOUT ROWID;
CREATE TABLE told (
  position INTEGER PRIMARY KEY,
  individual INTEGER NOT NULL UNIQUE REFERENCES individuals(id)
);
"""


_MEANS = (
    "SELECT individual, skill, AVG(score) FROM (SELECT individual, skill, AVG(score) AS score "
    "FROM measurements WHERE split = ? {} GROUP BY individual, skill, sample) "
    "GROUP BY individual, skill"
)


class Role(StrEnum):
    """What an individual is to the run."""

    BASE = "base"
    EXPERT = "expert"
    SEED = "seed"  # an elite of an earlier run
    CHILD = "child"
    BASELINE = "baseline"
    AGGREGATE = "aggregate"


@dataclass(frozen=True)
class Individual:
    """One candidate model as the journal keeps it."""

    id: int
    role: Role
    name: str
    genome: bytes
    genome_hash: str
    generation: int | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    generated: dict[str, int] = field(default_factory=dict)


class Journal:
    """Reads and appends. One writer at a time is the caller's duty: see `cqd_hub.run.directory`.

    Args:
        folder: The run directory.
        create: Make the journal if it is not there.

    Raises:
        UserError: No journal there, or one of a newer format.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.path = folder / "journal.sqlite"
        if not create and not self.path.exists():
            raise UserError(
                "is no run directory", where=str(folder), remedy="name one made by `cqd-hub evolve`"
            )
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0 and create:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_FORMAT}; COMMIT;")
            elif version != _FORMAT:
                self._db.close()
                raise UserError(
                    f"has journal format {version}, known is {_FORMAT}"
                    if version
                    else "holds nothing yet",
                    where=str(self.path),
                    remedy="use the cqd-hub version that made it"
                    if version
                    else "wait for the run to begin",
                )
        except sqlite3.Error as error:
            raise RunError(f"cannot be used: {error}", where=str(self.path)) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Writing: each call is one durable transaction.

    def add(self, individual: Individual, measurements: Iterable[Measurement]) -> None:
        """Record an individual with the measurements of its evaluation, all or nothing.

        Raises:
            RunError: The disk is full or failing; nothing of this individual was recorded.
            sqlite3.IntegrityError: A score outside 0..1, or an id or sample recorded before.
        """
        genome: bytes | None = individual.genome
        if len(individual.genome) > _LARGE:
            write_atomic(self._genome_file(individual.genome_hash), individual.genome)
            genome = None
        row = (
            individual.id,
            individual.role,
            individual.name,
            individual.generation,
            json.dumps(individual.lineage),
            individual.genome_hash,
            genome,
            json.dumps(individual.seconds),
            json.dumps(individual.generated),
        )
        with self._transaction():
            self._db.execute("INSERT INTO individuals VALUES (?,?,?,?,?,?,?,?,?)", row)
            self._insert(individual.id, measurements)

    def measure(self, individual: int, measurements: Iterable[Measurement]) -> None:
        """Record more measurements of a known individual, all or nothing."""
        with self._transaction():
            self._insert(individual, measurements)

    def tell(self, individuals: Sequence[int]) -> None:
        """Record that these individuals were offered to the archives, in this order."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO told (individual) VALUES (?)", [(number,) for number in individuals]
            )

    # Reading.

    def individuals(self, role: Role | None = None) -> Iterator[Individual]:
        """All individuals (of one role), by id; genomes are read too."""
        where, values = ("WHERE role = ?", (role,)) if role else ("", ())
        for row in self._db.execute(f"SELECT * FROM individuals {where} ORDER BY id", values):
            yield self._individual(row)

    def individual(self, number: int) -> Individual:
        """One individual.

        Raises:
            UserError: There is none of this id.
        """
        row = self._db.execute("SELECT * FROM individuals WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise UserError(f"has no individual {number}", where=str(self.path.parent))
        return self._individual(row)

    def genome(self, genome_hash: str) -> bytes:
        """The genome of this hash.

        Raises:
            RunError: No individual has it.
        """
        row = self._db.execute(
            "SELECT genome FROM individuals WHERE genome_hash = ? LIMIT 1", (genome_hash,)
        ).fetchone()
        if row is None:
            raise RunError(f"holds no genome {genome_hash[:12]}", where=str(self.path))
        return row[0] if row[0] is not None else self._large_genome(genome_hash)

    def merge_digest(self, merge: str) -> str | None:
        """What a merge's tensors hashed to when the child it belongs to was made."""
        row = self._db.execute(
            "SELECT json_extract(lineage, '$.crossover.digest') FROM individuals "
            "WHERE json_extract(lineage, '$.crossover.merge') = ? LIMIT 1",
            (merge,),
        ).fetchone()
        return row[0] if row else None

    def ids(self) -> set[int]:
        """Ids of all recorded individuals."""
        return {number for (number,) in self._db.execute("SELECT id FROM individuals")}

    def outsiders(self) -> dict[tuple[str, str], int]:
        """(name, genome hash) → id of the individuals that no archive sees."""
        rows = self._db.execute("SELECT name, genome_hash, id FROM individuals WHERE id < 0")
        return {(name, genome_hash): number for name, genome_hash, number in rows}

    def told(self) -> list[int]:
        """Ids in the order they were offered to the archives."""
        return [n for (n,) in self._db.execute("SELECT individual FROM told ORDER BY position")]

    def stopped(self) -> dict[int, dict[str, int]]:
        """Who was stopped early → skill → optimisation samples answered."""
        rows = self._db.execute(
            "SELECT id, json_extract(lineage, '$.stopped_early') FROM individuals "
            "WHERE json_extract(lineage, '$.stopped_early') IS NOT NULL ORDER BY id"
        )
        return {number: json.loads(answered) for number, answered in rows}

    def measurements(self, individual: int, split: Split) -> list[Measurement]:
        """All measurements of one individual on one split, by skill and sample."""
        rows = self._db.execute(
            "SELECT skill, split, sample, score, text, tokens, finish, repeat, path, note "
            "FROM measurements WHERE individual = ? AND split = ? ORDER BY skill, sample, repeat",
            (individual, split),
        )
        return [
            Measurement(
                skill,
                split,
                sample,
                score,
                text,
                tuple(np.frombuffer(tokens, "<u4").tolist()),
                *rest,
            )
            for skill, _, sample, score, text, tokens, *rest in rows
        ]

    def scores(self, split: Split) -> dict[int, dict[str, float]]:
        """Individual → skill → mean score on one split (repeats averaged within samples)."""
        result: dict[int, dict[str, float]] = {}
        for individual, skill, score in self._db.execute(_MEANS.format(""), (split,)):
            result.setdefault(individual, {})[skill] = score
        return result

    def scores_of(self, individual: int, split: Split) -> dict[str, float]:
        """Skill → mean score of one individual on one split."""
        rows = self._db.execute(_MEANS.format("AND individual = ?"), (split, individual))
        return {skill: score for _, skill, score in rows}

    def sample_scores(self, individual: int, split: Split) -> dict[str, dict[str, float]]:
        """Skill → sample → score (repeats averaged) of one individual on one split."""
        rows = self._db.execute(
            "SELECT skill, sample, AVG(score) FROM measurements WHERE individual = ? AND split = ? "
            "GROUP BY skill, sample ORDER BY skill, sample",
            (individual, split),
        )
        result: dict[str, dict[str, float]] = {}
        for skill, sample, score in rows:
            result.setdefault(skill, {})[sample] = score
        return result

    def verdicts(self) -> Iterator[Judged]:
        """Every answer ever judged."""
        for row in self._db.execute(
            "SELECT DISTINCT skill, sample, text, finish, score, note FROM measurements"
        ):
            yield Judged(*row)

    # Inside.

    def _insert(self, individual: int, measurements: Iterable[Measurement]) -> None:
        self._db.executemany(
            "INSERT INTO measurements VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            [
                (
                    individual,
                    m.skill,
                    m.split,
                    m.sample,
                    m.repeat,
                    m.path,
                    m.text,
                    np.asarray(m.tokens, "<u4").tobytes(),
                    m.finish,
                    m.score,
                    m.note,
                )
                for m in measurements
            ],
        )

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db, self.path)

    def _individual(self, row: tuple[Any, ...]) -> Individual:
        number, role, name, generation, lineage, genome_hash, genome, seconds, generated = row
        return Individual(
            id=number,
            role=Role(role),
            name=name,
            genome=genome if genome is not None else self._large_genome(genome_hash),
            genome_hash=genome_hash,
            generation=generation,
            lineage=json.loads(lineage),
            seconds=json.loads(seconds),
            generated=json.loads(generated),
        )

    def _large_genome(self, genome_hash: str) -> bytes:
        path = self._genome_file(genome_hash)
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunError(
                f"cannot be read: {error.strerror}",
                where=str(path),
                remedy="it belongs to the run: restore it",
            ) from None

    def _genome_file(self, genome_hash: str) -> Path:
        return self.path.parent / "genomes" / f"{genome_hash}.safetensors"


def count_individuals(folder: Path) -> int:
    """How many individuals a run directory holds; 0 where there is no run."""
    if not (folder / "journal.sqlite").exists():
        return 0
    journal = Journal(folder, create=True)
    try:
        return len(journal.ids())
    finally:
        journal.close()


class _Transaction:
    """BEGIN … COMMIT, rolled back on any error; a failing disk becomes a `RunError`."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = database, path

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as fault:
            raise self._failure(fault) from None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._db.execute("COMMIT")
                return
        except sqlite3.Error as fault:
            error = fault
        with suppress(sqlite3.Error):  # on a full disk SQLite may have done it already
            self._db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
            raise self._failure(error) from None

    def _failure(self, fault: sqlite3.Error) -> RunError:
        return RunError(
            f"cannot be written: {fault}",
            where=str(self._path),
            remedy="see that the disk has space and works, then run the same command again",
        )

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.recipe import Split
from cqd_hub.run.journal import Individual, Journal, Role


def individual(number: int, genome: bytes = b"genes", **more: object) -> Individual:
    settings = {"role": Role.CHILD, "name": f"child {number}", "genome_hash": f"h{number}", **more}
    return Individual(id=number, genome=genome, **settings)  # type: ignore[arg-type]


def measured(
    scores: dict[str, float], split: Split = "optimisation", skill: str = "db", **more: object
) -> list[Measurement]:
    return [
        Measurement(skill, split, sample, score, f"answer to {sample}", **more)  # type: ignore
        for sample, score in scores.items()
    ]


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    whole = Individual(
        id=3,
        role=Role.CHILD,
        name="child 3 – ü",
        genome=bytes(range(256)),
        genome_hash="abc",
        generation=1,
        lineage={"parents": [0, 1], "shares": [[0.1 + 0.2], [0.7]]},
        seconds={"total": 0.25},
    )
    answers = [
        Measurement(
            "db",
            "test",
            f"test:{n}",
            n / 4,
            "SELECT '🙂'\n\x00;",
            tokens=(0, 7, 4_000_000_000),
            finish="stop",
            repeat=n % 2,
            path="sequential/float32/cpu+bubblewrap",
            note="wrong result",
        )
        for n in range(5)
    ]
    journal.add(whole, answers)
    journal.add(individual(-1, role=Role.BASE, name="base"), [])
    journal.close()
    again = Journal(tmp_path)
    assert again.individual(3) == whole
    assert [one.id for one in again.individuals()] == [-1, 3]
    assert [one.id for one in again.individuals(Role.BASE)] == [-1]
    assert again.measurements(3, "test") == answers
    assert again.measurements(3, "validation") == []
    assert again.ids() == {-1, 3}
    with pytest.raises(UserError, match="has no individual 4"):
        again.individual(4)


def test_repeats_are_averaged_within_samples_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    journal.add(individual(0), measured({"a": 1.0, "b": 0.0}))
    journal.measure(0, measured({"a": 0.0}, repeat=1) + measured({"a": 0.5}, skill="os"))
    assert journal.sample_scores(0, "optimisation") == {
        "db": {"a": 0.5, "b": 0.0},
        "os": {"a": 0.5},
    }
    assert journal.scores("optimisation") == {0: {"db": 0.25, "os": 0.5}}
    assert journal.scores_of(0, "optimisation") == {"db": 0.25, "os": 0.5}
    assert journal.scores("test") == {}
    assert journal.scores_of(0, "test") == {}


def test_told_keeps_its_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    for number in range(5):
        journal.add(individual(number), [])
    journal.tell([3, 1])
    journal.tell([4])
    assert journal.told() == [3, 1, 4]
    with pytest.raises(sqlite3.IntegrityError):
        journal.tell([0, 3])  # told before
    assert journal.told() == [3, 1, 4]


@pytest.mark.parametrize("score", [1.0001, -0.5, float("nan"), float("inf")])
def test_a_score_outside_0_to_1_takes_everything_back(tmp_path: Path, score: float) -> None:
    journal = Journal(tmp_path, create=True)
    with pytest.raises(sqlite3.IntegrityError):
        journal.add(individual(0), measured({"a": 0.5, "b": score}))
    assert (journal.ids(), journal.measurements(0, "optimisation")) == (set(), [])
    journal.add(individual(0), measured({"a": 0.5}))
    with pytest.raises(sqlite3.IntegrityError):
        journal.measure(0, measured({"c": 0.5, "a": 0.5}))  # a is there
    with pytest.raises(sqlite3.IntegrityError):
        journal.add(individual(0), measured({"d": 0.5}))
    assert [m.sample for m in journal.measurements(0, "optimisation")] == ["a"]


def test_an_error_while_measurements_are_made_takes_everything_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)

    def failing():  # type: ignore[no-untyped-def]
        yield from measured({"a": 1.0})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.add(individual(0), failing())
    assert journal.ids() == set()
    journal.add(individual(0), [])


def test_a_reader_sees_whole_transactions_while_another_writes(tmp_path: Path) -> None:
    writer = Journal(tmp_path, create=True)
    writer.add(individual(0), measured({"a": 1.0}))
    reader = Journal(tmp_path)
    seen: list[set[int]] = []

    def looking():  # type: ignore[no-untyped-def]
        for one in measured({"a": 1.0, "b": 0.0}):
            yield one
            seen.append(reader.ids())

    writer.add(individual(1), looking())
    assert seen == [{0}, {0}]
    assert reader.ids() == {0, 1}
    assert reader.scores("optimisation")[1] == {"db": 0.5}


def test_two_writers_do_not_corrupt_each_other(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, create=True), Journal(tmp_path, create=True)
    second._db.execute("PRAGMA busy_timeout=10")

    def crossing():  # type: ignore[no-untyped-def]
        with pytest.raises(RunError, match="database is locked"):
            second.add(individual(7), [])
        yield from measured({"a": 1.0})

    first.add(individual(0), crossing())
    assert first.ids() == second.ids() == {0}


def test_a_large_genome_is_a_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    large = random.Random(0).randbytes((1 << 20) + 1)
    journal.add(individual(0, large, genome_hash="cafe"), [])
    assert (tmp_path / "genomes" / "cafe.safetensors").read_bytes() == large
    assert (tmp_path / "journal.sqlite").stat().st_size < 1 << 19
    assert journal.individual(0).genome == large
    (tmp_path / "genomes" / "cafe.safetensors").unlink()
    with pytest.raises(RunError, match=r"cafe\.safetensors: cannot be read: No such file"):
        journal.individual(0)


def test_what_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        Journal(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "journal.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(RunError, match="not a database"):
        Journal(tmp_path)
    (tmp_path / "journal.sqlite").write_bytes(b"")  # its writer has not begun
    with pytest.raises(UserError, match="holds nothing yet"):
        Journal(tmp_path)
    journal = Journal(tmp_path, create=True)
    journal._db.execute("PRAGMA user_version=9")
    journal.close()
    for create in (False, True):
        with pytest.raises(UserError, match="has journal format 9, known is 2"):
            Journal(tmp_path, create=create)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """SQLite's own limit on pages fails as a full disk does, on the real file."""
    journal = Journal(tmp_path, create=True)
    journal.add(individual(0), measured({"a": 1.0}))
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count={pages + 8}")
    number, error = _fill(journal, range(1, 50), 9000)
    assert "is full (see that the disk has space and works, then run the same" in str(error)
    assert 1 < number < 49
    assert journal.ids() == set(range(number))
    journal._db.execute(f"PRAGMA max_page_count={1 << 20}")  # space again, same connection
    journal.add(individual(number), measured({"a": 1.0}))
    journal.close()
    assert Journal(tmp_path).ids() == set(range(number + 1))
    assert _sound(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        journal = Journal(tmp_path, create=True)
        number, _ = _fill(journal, range(500), 20000)
        assert 10 < number < 499
        with pytest.raises(RunError, match="No space left"):
            journal.add(individual(900, bytes(2 << 20), genome_hash="big"), [])
        journal.close()
        again = Journal(tmp_path)
        assert again.ids() == set(range(number))
        assert all(len(one.genome) == 20000 for one in again.individuals())
        again.close()
        assert _sound(tmp_path)
        assert not list(tmp_path.rglob("*big*"))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


WRITER = """
import sys
from pathlib import Path
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.run.journal import Individual, Journal, Role

journal = Journal(Path(sys.argv[1]), create=True)
number = max(journal.ids(), default=-1) + 1
print("ready", flush=True)
while True:
    genome = bytes(2 << 20) if number % 7 == 0 else number.to_bytes(4, "big") * 500
    journal.add(
        Individual(number, Role.CHILD, f"child {number}", genome, f"h{number}"),
        [Measurement("db", "optimisation", f"s{n}", 1.0, "x" * 50) for n in range(20)],
    )
    journal.tell([number])
    print(number, flush=True)
    number += 1
"""


def test_kill_9_at_any_moment_leaves_whole_individuals(tmp_path: Path) -> None:
    folder, delay = tmp_path / "run", random.Random(1)
    folder.mkdir()
    promised = -1
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(delay.randrange(1, 12)):  # so many adds have returned, then at once
            promised = max(promised, int(process.stdout.readline()))
        os.kill(process.pid, signal.SIGKILL)
        for line in process.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                promised = max(promised, int(line))
        process.wait()
        process.stdout.close()
        journal = Journal(folder, create=True)
        ids, told = journal.ids(), journal.told()
        assert ids == set(range(len(ids)))
        assert promised in ids
        assert told == list(range(len(told)))
        assert len(ids) - len(told) in (0, 1)  # between add and tell
        assert promised < len(told)
        for number in ids:
            assert len(journal.measurements(number, "optimisation")) == 20
            one = journal.individual(number)
            assert one.genome == (
                bytes(2 << 20) if number % 7 == 0 else number.to_bytes(4, "big") * 500
            )
        if len(ids) > len(told):
            journal.tell([max(ids)])
        journal.close()
        assert _sound(folder)
    assert promised > 6


def test_verdicts(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    for number in range(3):
        journal.add(individual(number), measured({"a": 1.0, "b": 0.0}, note="n"))
    assert sorted(journal.verdicts()) == [
        ("db", "a", "answer to a", "", 1.0, "n"),
        ("db", "b", "answer to b", "", 0.0, "n"),
    ]


def _fill(journal: Journal, numbers: range, size: int) -> tuple[int, RunError]:
    """The first individual that found no room, and the error it got."""
    for number in numbers:
        try:
            journal.add(individual(number, bytes(size)), measured({"a": 1.0, "b": 0.0}))
        except RunError as error:
            return number, error
    raise AssertionError("the disk was never full")


def _sound(folder: Path) -> bool:
    with sqlite3.connect(folder / "journal.sqlite") as database:
        return database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_genome_is_found_by_its_hash_and_a_merge_by_its_id(tmp_path: Path) -> None:
    journal = Journal(tmp_path, create=True)
    large = bytes(range(256)) * 8192
    lineage = {"crossover": {"method": "ties", "merge": "m1", "digest": "d1"}}
    journal.add(individual(1, b"one", lineage=lineage), ())
    journal.add(individual(2, large, lineage={"crossover": {"method": "linear"}}), ())
    journal.add(individual(3, lineage={}), ())
    assert journal.genome("h1") == b"one"
    assert journal.genome("h2") == large
    assert journal.merge_digest("m1") == "d1"
    assert journal.merge_digest("m2") is None
    with pytest.raises(RunError, match="holds no genome h9"):
        journal.genome("h9")
    journal.close()

"""The main job through its command: results, resuming after any kind of end, refusals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Cli


def command(recipe: Path, out: Path, *arguments: str) -> list[str]:
    """The command line of a process of its own."""
    return [
        sys.executable,
        "-m",
        "cqd_hub.cli.app",
        "evolve",
        str(recipe),
        "--out",
        str(out),
        *arguments,
    ]


def content(run: Path) -> dict[str, Any]:
    """Everything a run must agree on with another: individuals, order, answers, archives' input."""
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as journal:
        return {
            "individuals": journal.execute(
                "SELECT id, role, generation, lineage, genome_hash FROM individuals "
                "WHERE id >= -1 ORDER BY id"
            ).fetchall(),
            "told": journal.execute("SELECT individual FROM told ORDER BY position").fetchall(),
            "measurements": journal.execute(
                "SELECT individual, skill, sample, text, tokens, score FROM measurements "
                "WHERE split = 'optimisation' ORDER BY individual, skill, sample"
            ).fetchall(),
            "results": json.loads((run / "results.json").read_text()),
        }


def evaluated(run: Path) -> int:
    """Individuals in a journal that another process may be writing."""
    if not (run / "journal.sqlite").exists():
        return 0
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{run}/journal.sqlite?mode=ro", uri=True)
        ) as journal:
            return journal.execute("SELECT count(*) FROM individuals").fetchone()[0]
    except sqlite3.OperationalError:  # its schema is being made
        return 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until *condition* holds; fail if the process ends before."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def own_task(folder: Path, recipe: Path, grade: str) -> None:
    """Make the os skill a task of the test's own, graded by Python of the test's own."""
    (folder / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: own.jsonl}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\n"
        "doc_to_target: '{{a}}'\ngeneration_kwargs: {until: ['.'], max_gen_toks: 4}\n"
        "metric_list: [{metric: grade, aggregation: mean, higher_is_better: true}]\n"
        "process_results: !function own.grade\n"
    )
    (folder / "own.py").write_text(
        "from pathlib import Path\n\n\ndef grade(doc, results):\n"
        "    count = Path(__file__).with_name('count')\n"
        "    done = int(count.read_text()) if count.exists() else 0\n"
        "    count.write_text(str(done + 1))\n" + grade
    )
    rows = [json.dumps({"q": f"question {i}", "a": "x"}) for i in range(80)]
    (folder / "own.jsonl").write_text("\n".join(rows))
    text = recipe.read_text().replace("{task: quickstart_os}", "{task: own.yaml, metric: grade}")
    recipe.write_text(text)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, with its recipe beside it."""
    from cqd_hub import assets
    from tests.cli.conftest import RECIPE

    place = tmp_path_factory.mktemp("whole")
    models = (assets.folder("recipes") / "quickstart" / "models").resolve()
    (place / "recipe.yaml").write_text(RECIPE.format(models=models))
    subprocess.run(command(place / "recipe.yaml", place / "run", "-q"), check=True, text=True)
    return place


class TestResults:
    def test_table_and_files(self, whole: Path, cli: Cli) -> None:
        result = cli("report", whole / "run", "--json")
        rows = [json.loads(line) for line in result.out.splitlines()]
        assert result.code == 0
        assert {row["group"] for row in rows} == {
            "base",
            "expert",
            "baseline",
            "elite",
            "aggregate",
        }
        assert sum(row["chosen"] for row in rows) >= 1
        for row in rows:
            assert row["split"] == "test"
            for interval in (*row["skills"].values(), row["average"]):
                assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
            assert {skill["n"] for skill in row["skills"].values()} == {12}
        assert (whole / "run" / "report.html").exists()
        assert list((whole / "run" / "figures").glob("*.png"))

    def test_manifest(self, whole: Path) -> None:
        manifest = json.loads((whole / "run" / "manifest.json").read_text())
        assert manifest["sandbox"]["kind"] in ("bubblewrap", "landlock")
        assert manifest["engine"] == "sequential/float32/cpu"
        assert set(manifest["models"]["experts"]) == {"coding", "os", "db"}
        assert len(manifest["basis"]) == 64

    def test_plan(self, whole: Path) -> None:
        content = json.loads((whole / "run" / "plan.json").read_text())
        assert content["plan"]["per_child_seconds"] > 0
        assert content["took"]["children"] == 6
        assert content["took"]["seconds"] > 0
        assert content["took"]["host"] > 10**8
        assert "Planned and measured" in (whole / "run" / "report.html").read_text()

    def test_splits_share_no_sample(self, whole: Path) -> None:
        with contextlib.closing(sqlite3.connect(whole / "run" / "journal.sqlite")) as journal:
            rows = journal.execute(
                "SELECT DISTINCT skill, sample, split FROM measurements"
            ).fetchall()
        owners: dict[tuple[str, str], set[str]] = {}
        for skill, sample, split in rows:
            owners.setdefault((skill, sample), set()).add(split)
        assert {split for found in owners.values() for split in found} == {
            "optimisation",
            "validation",
            "test",
        }
        assert all(len(found) == 1 for found in owners.values())

    def test_what_the_test_samples_ask_is_kept(self, whole: Path) -> None:
        asked = json.loads((whole / "run" / "questions.json").read_text())
        with contextlib.closing(sqlite3.connect(whole / "run" / "journal.sqlite")) as journal:
            rows = journal.execute(
                "SELECT DISTINCT skill, sample FROM measurements WHERE split = 'test'"
            ).fetchall()
        assert {(skill, sample) for skill, found in asked.items() for sample in found} == set(rows)
        assert all(text.startswith("python: ") for text in asked["coding"].values())

    def test_every_skill_takes_its_turn(self, whole: Path) -> None:
        with contextlib.closing(sqlite3.connect(whole / "run" / "journal.sqlite")) as journal:
            rows = journal.execute(
                "SELECT generation, lineage FROM individuals WHERE role = 'child' ORDER BY id"
            ).fetchall()
        turns = [(generation, json.loads(lineage)["skill"]) for generation, lineage in rows]
        assert turns == [(0, "coding")] * 2 + [(1, "os")] * 2 + [(2, "db")] * 2

    def test_a_finished_run_is_left_as_it_is(self, whole: Path, cli: Cli) -> None:
        before = content(whole / "run")
        assert cli("evolve", whole / "recipe.yaml", "--out", whole / "run", "-q").code == 0
        assert content(whole / "run") == before

    def test_json_progress(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        result = cli("evolve", recipe, "--out", tmp_path / "run", "--json", "--children", 2)
        events = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
        assert [event["children"] for event in events if event["event"] == "child"] == [1, 2]
        phases = [event["name"] for event in events if event["event"] == "phase"]
        assert phases == ["opening", "experts", "children", "validation", "test"]
        counted = [(e["done"], e["total"]) for e in events if e["event"] == "measured"]
        starts = [place for place, (done, _) in enumerate(counted) if done == 0]
        assert len(starts) == 3, "experts, candidates and finalists"
        for start, end in zip(starts, [*starts[1:], len(counted)], strict=True):
            total = counted[start][1]
            assert counted[start:end] == [(done, total) for done in range(total + 1)]
        assert counted[0][1] == 4
        assert all(json.loads(line)["label"] for line in result.out.splitlines())


class TestResuming:
    @pytest.mark.parametrize(
        "moments", [[5], pytest.param([1, 4, 6, 7, 9], marks=pytest.mark.slow)]
    )
    def test_after_kill(self, whole: Path, tmp_path: Path, moments: list[int]) -> None:
        out = tmp_path / "run"
        for individuals in moments:
            process = subprocess.Popen(command(whole / "recipe.yaml", out, "-q"), text=True)
            wait_for(lambda wanted=individuals: evaluated(out) >= wanted, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command(whole / "recipe.yaml", out, "-q"), check=True)
        assert content(out) == content(whole / "run")

    def test_after_interrupt(self, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        process = subprocess.Popen(
            command(whole / "recipe.yaml", out), text=True, stderr=subprocess.PIPE
        )
        wait_for(lambda: evaluated(out) >= 5, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130
        assert "stopping after the children in flight" in err
        assert "stopped; to go on: cqd-hub evolve" in err
        assert "Traceback" not in err
        assert not (out / "results.json").exists()
        subprocess.run(command(whole / "recipe.yaml", out, "-q"), check=True)
        assert content(out) == content(whole / "run")

    def test_with_more_children(self, whole: Path, tmp_path: Path, cli: Cli) -> None:
        out, recipe = tmp_path / "run", whole / "recipe.yaml"
        assert cli("evolve", recipe, "--out", out, "-q", "--children", 2).code == 0
        assert cli("evolve", recipe, "--out", out, "-q").code == 0
        for key in ("individuals", "told", "measurements"):
            assert content(out)[key] == content(whole / "run")[key]

    @pytest.mark.slow
    def test_after_a_full_disk(self, whole: Path, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        disk = tmp_path / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
        try:
            out = disk / "run"
            process = subprocess.Popen(
                command(whole / "recipe.yaml", out, "-q"), text=True, stderr=subprocess.PIPE
            )
            wait_for(lambda: evaluated(out) >= 5, process)
            fill(disk / "filler")
            _, err = process.communicate()
            (disk / "filler").unlink()
            assert process.returncode == 1
            assert "Traceback" not in err
            assert err.count("error: ") == 1
            subprocess.run(command(whole / "recipe.yaml", out, "-q"), check=True)
            assert content(out) == content(whole / "run")
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_after_an_evaluation_that_raised(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        own_task(
            tmp_path,
            recipe,
            "    if done == 12 * 5 + 3:\n        raise KeyError('no such thing')\n"
            "    return {'grade': len(results[0]) % 7 / 6}\n",
        )
        first = cli("evolve", recipe, "--out", tmp_path / "run", "-q")
        assert first.code == 1
        assert "error: skills.os.task: the task failed on document test:" in first.err
        assert evaluated(tmp_path / "run") == 5
        assert cli("evolve", recipe, "--out", tmp_path / "run", "-q").code == 0

    @pytest.mark.slow
    def test_after_a_late_mistake(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        own_task(tmp_path, recipe, "    return {'grade': 7 if done == 12 * 5 + 3 else done % 2}\n")
        first = cli("evolve", recipe, "--out", tmp_path / "run", "-q")
        assert first.code == 2
        assert "grade gave 7" in first.err
        assert evaluated(tmp_path / "run") == 5
        assert cli("evolve", recipe, "--out", tmp_path / "run", "-q").code == 0

    @pytest.mark.slow
    def test_after_kill_while_finishing(self, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        process = subprocess.Popen(command(whole / "recipe.yaml", out, "-q"), text=True)
        wait_for(lambda: evaluated(out) > 1 + 3 + 6 + 3, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "results.json").exists()
        subprocess.run(command(whole / "recipe.yaml", out, "-q"), check=True)
        assert content(out) == content(whole / "run")

    @pytest.mark.slow
    def test_after_sigterm(self, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        process = subprocess.Popen(command(whole / "recipe.yaml", out, "-q"), text=True)
        wait_for(lambda: evaluated(out) >= 5, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130
        subprocess.run(command(whole / "recipe.yaml", out, "-q"), check=True)
        assert content(out) == content(whole / "run")

    @pytest.mark.slow
    def test_part_of_a_step_is_rounded_up(self, whole: Path, tmp_path: Path, cli: Cli) -> None:
        out, recipe = tmp_path / "run", whole / "recipe.yaml"
        assert cli("evolve", recipe, "--out", out, "-q", "--children", 3).code == 0
        assert len(content(out)["told"]) == 3 + 4
        assert cli("evolve", recipe, "--out", out, "-q").code == 0
        for key in ("individuals", "told", "measurements"):
            assert content(out)[key] == content(whole / "run")[key]

    @pytest.mark.slow
    def test_the_choice_of_a_run_that_went_on(self, whole: Path, tmp_path: Path, cli: Cli) -> None:
        out, recipe = tmp_path / "run", whole / "recipe.yaml"
        assert cli("evolve", recipe, "--out", out, "-q", "--children", 2).code == 0
        process = subprocess.Popen(command(recipe, out, "-q"), text=True)
        before = evaluated(out)
        wait_for(lambda: len(content(out)["told"]) > 3 + 2, process)
        process.kill()
        process.wait()
        assert evaluated(out) > before
        result = cli("export", out, "best", "--to", tmp_path / "model")
        assert result.code == 2
        assert "has gone on since it chose" in result.err


class TestRefusals:
    @pytest.fixture
    def running(self, whole: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
        process = subprocess.Popen(
            command(whole / "recipe.yaml", tmp_path / "run", "-q"), text=True
        )
        wait_for(lambda: evaluated(tmp_path / "run") >= 1, process)
        yield process, tmp_path / "run"
        process.kill()
        process.wait()

    def test_second_process(
        self, whole: Path, cli: Cli, running: tuple[subprocess.Popen[str], Path]
    ) -> None:
        process, out = running
        process.send_signal(signal.SIGSTOP)
        result = cli("evolve", whole / "recipe.yaml", "--out", out, "-q")
        assert result.code == 2
        assert f"is in use by process {process.pid}" in result.err

    def test_changed_recipe(self, whole: Path, cli: Cli) -> None:
        result = cli("evolve", whole / "recipe.yaml", "--out", whole / "run", "-q", "--seed", 1)
        assert result.code == 2
        assert "holds a run with recipe.seed 0, now 1" in result.err

    def test_changed_scoring(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        own_task(tmp_path, recipe, "    return {'grade': done % 2}\n")
        assert cli("evolve", recipe, "--out", tmp_path / "run", "-q", "--children", 2).code == 0
        own = tmp_path / "own.py"
        own.write_text(own.read_text().replace("done % 2", "done % 3 / 2"))
        result = cli("evolve", recipe, "--out", tmp_path / "run", "-q", "--children", 4)
        assert result.code == 2
        assert "tasks.os.fingerprint" in result.err

    def test_changed_expert(self, recipe: Path, copied: Path, tmp_path: Path, cli: Cli) -> None:
        assert cli("evolve", recipe, "--out", tmp_path / "run", "-q", "--children", 0).code == 0
        weights = copied / "db" / "model.safetensors"
        moved = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
        save_file(moved, weights, metadata={"format": "pt"})
        result = cli("evolve", recipe, "--out", tmp_path / "run", "-q", "--children", 0)
        assert result.code == 2
        assert "models.experts.db.sha256" in result.err


class TestSettings:
    """Every part of a recipe reaches the run, through the same command."""

    @pytest.mark.parametrize(
        "settings",
        [
            pytest.param(["preset=paper", "search.children=3"], id="paper"),
            pytest.param(
                ["preset=released-code", "search.children=3"],
                id="released-code",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                ["search.archive={kind: novelty, capacity: 5}"],
                id="novelty",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                ["variation.mutation={kind: gaussian, deviation: 0.002}"],
                id="gaussian",
                marks=pytest.mark.slow,
            ),
            pytest.param(["genome={rank: 16, tail: tied}"], id="tail-tied", marks=pytest.mark.slow),
            pytest.param(
                ["variation={crossover: {per: matrix, deviation: 0.3}, mutation: {per: layer}}"],
                id="per-matrix",
                marks=pytest.mark.slow,
            ),
            pytest.param(["evaluation.sandbox=landlock"], id="landlock", marks=pytest.mark.slow),
        ],
    )
    def test_runs(self, recipe: Path, tmp_path: Path, cli: Cli, settings: list[str]) -> None:
        changes = [part for setting in settings for part in ("--set", setting)]
        result = cli("evolve", recipe, "--out", tmp_path / "run", "-q", *changes)
        assert result.code == 0, result.err
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert evaluated(tmp_path / "run") >= 4 + manifest["recipe"]["search"]["children"]

    @pytest.mark.parametrize("of", ["expert", "child"])
    @pytest.mark.slow
    def test_lora_experts(self, recipe: Path, tmp_path: Path, cli: Cli, of: str) -> None:
        text = recipe.read_text()
        for name in ("coding", "os", "db"):
            text = text.replace(f"models/{name}\n", f"models/{name}-lora\n")
        recipe.write_text(text)
        mutation = f"variation.mutation.of={of}"
        result = cli("evolve", recipe, "--out", tmp_path / "run", "-q", "--set", mutation)
        assert result.code == 0, result.err
        with contextlib.closing(sqlite3.connect(tmp_path / "run" / "journal.sqlite")) as journal:
            sizes = [size for (size,) in journal.execute("SELECT length(genome) FROM individuals")]
        assert max(sizes) < (10_000 if of == "expert" else 1_000_000)

    def test_two_skills(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        recipe.write_text(recipe.read_text().replace("  db: {task: quickstart_db}\n", ""))
        assert cli("evolve", recipe, "--out", tmp_path / "run", "-q").code == 0

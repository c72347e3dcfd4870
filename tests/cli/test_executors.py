"""Runs whose children are evaluated in other processes: same results, and nothing lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from cqd_hub.recipe import Recipe, load_yaml
from cqd_hub.run.archives import expert_scores, make_cycle, replay
from cqd_hub.run.journal import Journal
from tests.cli.conftest import Cli
from tests.cli.test_evolve import command, content, evaluated, wait_for

RAY = ("--executor", "ray")


def run(recipe: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """An evolution in a process of its own."""
    return subprocess.Popen(
        command(recipe, out, "-q", *arguments), stderr=subprocess.PIPE, text=True
    )


def workers_of(process: subprocess.Popen[str], word: str) -> list[int]:
    """Processes below *process* whose command line holds *word*."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (place / "stat").read_text().rpartition(")")[2].split()
                parents[int(place.name)] = int(fields[1])
                lines[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")
    found = []
    for number, line in lines.items():
        ancestor = number
        while ancestor not in (0, 1, process.pid):
            ancestor = parents.get(ancestor, 0)
        if ancestor == process.pid and word in line:
            found.append(number)
    return found


def archives(folder: Path, recipe_file: Path) -> list[list[tuple[int, tuple[float, ...]]]]:
    """The archives that the journal's told order gives."""
    recipe, journal = load_yaml(recipe_file, Recipe), Journal(folder)
    try:
        cycle = make_cycle(recipe, expert_scores(journal))
        for _ in replay(cycle, recipe, journal):
            pass
        return [[(e.individual, tuple(e.scores)) for e in a.elites] for a in cycle.archives]
    finally:
        journal.close()


def complete(folder: Path, children: int) -> None:
    """Every child once, told once."""
    with contextlib.closing(sqlite3.connect(folder / "journal.sqlite")) as journal:
        ids = [n for (n,) in journal.execute("SELECT id FROM individuals WHERE role = 'child'")]
        told = [n for (n,) in journal.execute("SELECT individual FROM told ORDER BY position")]
    assert sorted(ids) == list(range(3, 3 + children))
    assert sorted(told) == list(range(3 + children))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, with its recipe beside it."""
    from cqd_hub import assets
    from tests.cli.conftest import RECIPE

    place = tmp_path_factory.mktemp("local")
    models = (assets.folder("recipes") / "quickstart" / "models").resolve()
    (place / "recipe.yaml").write_text(RECIPE.format(models=models))
    subprocess.run(command(place / "recipe.yaml", place / "run", "-q"), check=True, text=True)
    return place


@pytest.mark.slow
def test_one_worker_process_gives_what_this_process_gives(local: Path, tmp_path: Path) -> None:
    process = run(local / "recipe.yaml", tmp_path / "run", "--workers", "1")
    assert process.wait() == 0, process.communicate()
    assert content(tmp_path / "run") == content(local / "run")


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_children_evaluated_again(
    local: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = run(local / "recipe.yaml", out, "--workers", "2", "--children", "12")
    wait_for(lambda: evaluated(out) > 5, process)
    workers = workers_of(process, "executors.process")
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait() == 0, process.communicate()
    assert "a worker ended (killed by signal 9)" in (out / "log.txt").read_text()
    complete(out, 12)


@pytest.mark.slow
def test_a_killed_driver_is_resumed_whatever_the_executor(local: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", local / "recipe.yaml"
    process = run(recipe, out, "--workers", "2", "--children", "12")
    wait_for(lambda: evaluated(out) > 6, process)
    process.kill()
    process.wait()
    process = run(recipe, out, "--children", "12")
    assert process.wait() == 0, process.communicate()
    complete(out, 12)
    told = archives(out, recipe)
    assert told == archives(out, recipe)
    assert all(told)


def test_a_worker_that_cannot_open_says_why(recipe: Path, tmp_path: Path, cli: Cli) -> None:
    changed = tmp_path / "recipe.yaml"
    text = recipe.read_text().replace("quickstart_os", "quickstart_oz")
    changed.write_text(text)
    result = cli("evolve", changed, "--out", tmp_path / "run", "--workers", "1", "-q")
    assert result.code == 2
    assert "skills.os.task: no task named 'quickstart_oz'" in result.err
    assert not (tmp_path / "run").exists()


class TestRay:
    """On a cluster that is really there."""

    @pytest.fixture(autouse=True)
    def _ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("ray")
        monkeypatch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    @pytest.mark.slow
    def test_one_worker_gives_what_this_process_gives(self, local: Path, tmp_path: Path) -> None:
        process = run(local / "recipe.yaml", tmp_path / "run", *RAY, "--workers", "1")
        assert process.wait() == 0, process.communicate()
        assert content(tmp_path / "run") == content(local / "run")

    @pytest.mark.slow
    def test_a_killed_worker_costs_its_children_in_flight(
        self, local: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        process = run(local / "recipe.yaml", out, *RAY, "--workers", "2", "--children", "24")
        wait_for(lambda: evaluated(out) > 5, process)
        actors = workers_of(process, "ray::_Actor")
        assert len(actors) == 2
        os.kill(actors[0], signal.SIGKILL)
        assert process.wait() == 0, process.communicate()
        assert "a worker ended" in (out / "log.txt").read_text()
        complete(out, 24)
        archived = archives(out, local / "recipe.yaml")
        assert archived == archives(out, local / "recipe.yaml")

    @pytest.mark.slow
    def test_the_runs_own_node_ends(self, local: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        process = run(local / "recipe.yaml", out, *RAY, "--workers", "2", "--children", "900")
        wait_for(lambda: evaluated(out) > 5, process)
        (node,) = workers_of(process, "/raylet/raylet ")
        os.kill(node, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1, err
        assert "error: ray: the node that this run reaches the cluster through has ended" in err

    @pytest.mark.slow
    def test_nodes_may_join_and_leave(self, local: Path, tmp_path: Path) -> None:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 1})
        try:
            out = tmp_path / "run"
            process = run(
                local / "recipe.yaml", out, "--executor", cluster.address, "--children", "20"
            )
            wait_for(lambda: evaluated(out) > 4, process)
            node = cluster.add_node(num_cpus=1)
            wait_for(lambda: evaluated(out) > 12, process)
            cluster.remove_node(node)
            assert process.wait() == 0, process.communicate()
            complete(out, 20)
        finally:
            cluster.shutdown()

    def test_an_unreachable_cluster_is_one_line(self, recipe: Path, tmp_path: Path) -> None:
        process = run(recipe, tmp_path / "run", "--executor", "ray://127.0.0.1:9")
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.startswith("error: --executor ray://127.0.0.1:9: no Ray cluster answers")
        assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--executor", "slurm"], "--executor: 'slurm' is no executor"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_bad_options(
    recipe: Path, tmp_path: Path, cli: Cli, arguments: list[str], said: str
) -> None:
    result = cli("evolve", recipe, "--out", tmp_path / "run", *arguments)
    assert result.code == 2
    assert said in result.err

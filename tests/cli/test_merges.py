"""A run whose children are merges: end to end, killed, cleared, made again, exported."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cqd_hub.genome import Genome, Materialiser
from cqd_hub.run.directory import read_manifest, read_recipe
from cqd_hub.run.journal import Journal, Role
from cqd_hub.run.lineup import open_basis
from cqd_hub.run.merges import kept_merges
from tests.cli.conftest import Cli
from tests.cli.test_evolve import command, content, evaluated, wait_for

TIES = """
variation:
  crossover: {method: ties, parameters: {density: 0.7}}
  mutation: {kind: gaussian, deviation: 0.002}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ties and Gaussian mutation that nobody disturbed, with its recipe beside it."""
    from cqd_hub import assets
    from tests.cli.conftest import RECIPE

    place = tmp_path_factory.mktemp("merges")
    models = (assets.folder("recipes") / "quickstart" / "models").resolve()
    text = RECIPE.format(models=models).replace("12", "8")
    (place / "recipe.yaml").write_text(text + TIES)
    subprocess.run(command(place / "recipe.yaml", place / "run", "-q"), check=True, text=True)
    return place


def children(run: Path) -> dict[int, dict[str, Any]]:
    """Id → lineage of every child."""
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as journal:
        rows = journal.execute("SELECT id, lineage FROM individuals WHERE role = 'child'")
        return {number: json.loads(lineage) for number, lineage in rows}


def merges(run: Path) -> set[str]:
    return {path.stem for path in (run / "merges").glob("*.safetensors")}


def last_merged(run: Path) -> int:
    """The child with the longest line of merges behind it."""
    depth: dict[int, int] = {}
    for number, lineage in sorted(children(run).items()):
        depth[number] = 1 + max(depth.get(parent, 0) for parent in lineage["parents"])
    assert max(depth.values()) > 1
    return max(depth, key=lambda number: (depth[number], number))


class TestRun:
    def test_children_are_merges_of_their_parents(self, whole: Path) -> None:
        made = children(whole / "run")
        assert len(made) == 6
        journal = Journal(whole / "run")
        for number, lineage in made.items():
            record = lineage["crossover"]
            assert record["method"] == "ties"
            assert record["parameters"] == {"density": 0.7}
            assert abs(sum(row[0] for row in record["shares"]) - 1) < 1e-9
            assert lineage["mutation"]["kind"] == "gaussian"
            genome = Genome.from_bytes(journal.individual(number).genome)
            ((merge, weights),) = genome.merges.items()
            assert merge.id == record["merge"]
            assert (weights == 1).all()
            assert len(genome.noise) == 1
            parents = [journal.individual(parent).genome_hash for parent in lineage["parents"]]
            assert list(merge.parents) == parents
        journal.close()

    def test_the_aggregate_is_made_of_elites_and_their_merges(self, whole: Path) -> None:
        journal = Journal(whole / "run")
        (aggregate,) = journal.individuals(Role.AGGREGATE)
        genome = Genome.from_bytes(aggregate.genome)
        expected = {
            merge.id
            for parent in aggregate.lineage["parents"]
            for merge in Genome.from_bytes(journal.individual(parent).genome).merges
        }
        journal.close()
        assert {merge.id for merge in genome.merges} == expected

    def test_the_manifest_says_whose_merges(self, whole: Path) -> None:
        manifest = read_manifest(whole / "run")
        assert manifest is not None
        assert manifest["recipe"]["variation"]["crossover"]["method"] == "ties"
        assert "mergekit" in manifest["versions"]

    def test_one_disturbed_by_everything_ends_the_same(
        self, whole: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """Killed amid the children, half of a merge left, the budget below one merge, resumed."""
        out, recipe = tmp_path / "run", whole / "recipe.yaml"
        least = ("--set", "genome.disk=1KB")
        process = subprocess.Popen(command(recipe, out, "-q", *least), text=True)
        wait_for(lambda: evaluated(out) >= 7, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (out / "merges" / ".making-x").mkdir()
        (out / "merges" / ".making-x" / "part").write_bytes(b"half")
        result = cli("evolve", recipe, "--out", out, "--json", *least)
        assert result.code == 0, result.err
        assert content(out) == content(whole / "run")
        assert not list((out / "merges").iterdir())
        events = [json.loads(line) for line in result.err.splitlines()]
        notes = [event["text"] for event in events if event["event"] == "note"]
        assert sum("take more than genome.disk, 1KB" in note for note in notes) == 1

    def test_only_what_elites_need_is_kept_under_a_small_budget(
        self, whole: Path, tmp_path: Path, cli: Cli
    ) -> None:
        out = tmp_path / "run"
        shutil.copytree(whole / "run", out)
        size = max(path.stat().st_size for path in (out / "merges").glob("*.safetensors"))
        budget = f"genome.disk={2 * size // 1000 + 1}KB"
        result = cli("evolve", whole / "recipe.yaml", "--out", out, "-q", "--set", budget)
        assert result.code == 0, result.err
        assert len(merges(out)) == 2


class TestIndividuals:
    def test_exports_are_what_the_engine_evaluated(
        self, whole: Path, tmp_path: Path, cli: Cli
    ) -> None:
        """A child and the aggregate, all merges cleared before: answers and weights."""
        out = tmp_path / "run"
        shutil.copytree(whole / "run", out)
        shutil.rmtree(out / "merges")
        number = last_merged(out)
        recipe, manifest = read_recipe(out), read_manifest(out)
        assert manifest is not None
        basis = open_basis(recipe, Path(manifest["folder"]))
        for who in (str(number), "aggregate"):
            folder = tmp_path / f"model-{who}"
            result = cli("export", out, who, "--to", folder)
            assert result.code == 0, result.err
            state = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
            with contextlib.closing(Journal(whole / "run")) as journal:
                found = [i for r in (Role.CHILD, Role.AGGREGATE) for i in journal.individuals(r)]
            (one,) = (i for i in found if who in (str(i.id), i.name))
            genome = Genome.from_bytes(one.genome)
            with kept_merges(whole / "run", manifest, recipe, basis, genome) as store:
                evaluated_as = Materialiser(basis, merges=store).state(genome)
            for name, tensor in evaluated_as.items():
                assert torch.equal(state[name], tensor), (who, name)

    def test_evaluated_again_it_scores_the_same(
        self, whole: Path, tmp_path: Path, cli: Cli
    ) -> None:
        out = tmp_path / "run"
        shutil.copytree(whole / "run", out)
        shutil.rmtree(out / "merges")
        number = last_merged(out)
        result = cli("eval", out, number, "--split", "optimisation", "--json")
        assert result.code == 0, result.err
        (row,) = [json.loads(line) for line in result.out.splitlines()]
        with contextlib.closing(Journal(out)) as journal:
            scores = journal.scores_of(number, "optimisation")
        assert {skill: row["skills"][skill]["mean"] for skill in scores} == pytest.approx(scores)

    def test_a_merge_that_comes_out_different_is_an_error(
        self, whole: Path, tmp_path: Path, cli: Cli
    ) -> None:
        out = tmp_path / "run"
        shutil.copytree(whole / "run", out)
        shutil.rmtree(out / "merges")
        number = last_merged(out)
        with contextlib.closing(sqlite3.connect(out / "journal.sqlite")) as journal:
            journal.execute(
                "UPDATE individuals SET lineage = "
                "json_set(lineage, '$.crossover.digest', 'another') WHERE id = ?",
                (number,),
            )
            journal.commit()
        result = cli("export", out, number, "--to", tmp_path / "model")
        assert result.code == 1
        assert "had been cleared, and comes out different here" in result.err
        assert result.err.count("\n") <= 2
        assert not (tmp_path / "model").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("crossover", "says"),
        [
            ("tyes", "no merge method 'tyes' (did you mean 'ties'?)"),
            ("passthrough", "passthrough does not merge two parents"),
            ("{method: ties, parameters: {densty: 1}}", "(did you mean 'density'?)"),
            ("{method: ties, parameters: {density: 7}}", "is a proportion, not 7"),
            ("{method: karcher, parameters: {max_iter: 0.5}}", "valid integer"),
            ("nearswap", "nearswap needs the parameter 't'"),
        ],
    )
    def test_before_any_model_is_opened(
        self, recipe: Path, tmp_path: Path, cli: Cli, crossover: str, says: str
    ) -> None:
        text = recipe.read_text().replace("/models/base", "/models/nowhere")
        recipe.write_text(text + f"variation: {{crossover: {crossover}}}\n")
        result = cli("evolve", recipe, "--out", tmp_path / "run")
        assert result.code == 2
        assert says in result.err
        assert "variation.crossover" in result.err
        assert result.err.strip().count("\n") <= 1  # the phase and the line
        assert not (tmp_path / "run").exists()

    def test_another_method_is_another_run(self, whole: Path, cli: Cli) -> None:
        changed = "variation.crossover.method=dare_ties"
        result = cli(
            "evolve", whole / "recipe.yaml", "--out", whole / "run", "-q", "--set", changed
        )
        assert result.code == 2
        assert 'crossover.method "ties", now "dare_ties"' in result.err


@pytest.mark.parametrize("method", ["slerp", "dare_ties"])
def test_other_methods_with_other_mutations(
    recipe: Path, tmp_path: Path, cli: Cli, method: str
) -> None:
    text = recipe.read_text().replace("12", "4")
    recipe.write_text(text + f"variation: {{crossover: {method}}}\n")
    out = tmp_path / "run"
    assert cli("evolve", recipe, "--out", out, "-q", "--children", 3).code == 0
    assert {lineage["mutation"]["kind"] for lineage in children(out).values()} == {"svd"}
    assert {lineage["crossover"]["method"] for lineage in children(out).values()} == {method}

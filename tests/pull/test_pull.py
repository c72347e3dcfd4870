"""Individuals taken back from an archive, on a machine that has nothing but the Hub."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cqd_hub import assets
from cqd_hub.errors import UserError
from cqd_hub.genome import Genome
from cqd_hub.pull.select import parse_condition
from tests.pull.world import ARCHIVE, World, run_folder, with_values, world

MODELS = assets.folder("recipes") / "quickstart" / "models"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def chosen() -> int:
    return json.loads((run_folder() / "results.json").read_text())["chosen"]


def aggregate(there: World) -> int:
    return min(row["id"] for row in there.rows("individuals") if row["role"] == "aggregate")


def genome_of(individual: int) -> bytes:
    with contextlib.closing(sqlite3.connect(run_folder() / "journal.sqlite")) as journal:
        (data,) = journal.execute(
            "SELECT genome FROM individuals WHERE id = ?", (individual,)
        ).fetchone()
    return data


def published_label(there: World, individual: int) -> str:
    """The repository of an individual's own model."""
    repos = [repo for repo in there.hub.repos() if repo.startswith("ann/small-")]
    found = [r for r in repos if there.json("cqd_hub.json", r)["individual"] == individual]
    assert len(found) == 1
    return found[0]


class TestListing:
    def test_table(self, there: World) -> None:
        shown = there.cli("pull", "ann/small")
        assert shown.code == 0
        header, *lines = shown.out.splitlines()
        assert header.split()[:4] == ["archive", "cell", "id", "average"]
        assert len(lines) == len(there.rows("elites"))
        assert "on the optimisation samples" in shown.err

    def test_json_is_the_archives_of_the_run(self, there: World) -> None:
        shown = there.cli("pull", "ann/small", "--json")
        held = {(row["skill"], row["individual"]): row for row in there.rows("elites")}
        assert {(row["archive"], row["id"]) for row in shown.records} == set(held)
        for row in shown.records:
            source = held[row["archive"], row["id"]]
            assert row["cell"] == source["cell"]
            assert row["scores"]["db"] == source["optimisation_db"]
        assert any("best" in row["called"] for row in shown.records)
        taken = [entry.target for entry in there.hub.log.entries if entry.method == "GET"]
        assert len(taken) == 4  # files, head, elites, layout
        assert there.hub.log.sent < 50_000

    def test_conditions(self, there: World) -> None:
        shown = there.cli("pull", "ann/small", "--json", "--where", "db >= .5", "--where", "os<1")
        wanted = {
            row["individual"]
            for row in there.rows("elites")
            if row["optimisation_db"] >= 0.5 and row["optimisation_os"] < 1
        }
        assert {row["id"] for row in shown.records} == wanted

    def test_without_torch(self, there: World) -> None:
        code = (
            "import sys; from cqd_hub.cli.app import app\n"
            "for line in (['pull', 'ann/small'], "
            "['pull', 'ann/small', 'best', '--form', 'genome', '--to', 'g']):\n"
            "    app(line, standalone_mode=False)\n"
            "print([m for m in ('torch', 'transformers') if m in sys.modules], file=sys.stderr)"
        )
        environment = there.hub.environment(token=there.token, home=there.folder / "hf")
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=there.folder,
            text=True,
            capture_output=True,
            check=True,
        )
        assert done.stderr.splitlines()[-1] == "[]"


class TestGenome:
    def test_is_the_one_that_the_run_holds(self, there: World) -> None:
        done = there.cli("pull", "ann/small", "best", "--form", "genome", "--to", "g", "--json")
        assert done.code == 0, done.err
        number = chosen()
        assert (there.folder / "g" / "genome.safetensors").read_bytes() == genome_of(number)
        beside = json.loads((there.folder / "g" / "cqd_hub_pull.json").read_text())
        assert beside["individual"] == number
        assert beside["source"] == done.records[0]["source"]
        assert len(beside["source"].partition("@")[2]) == 40
        assert not there.hub.log.find("data/scores|data/lineage|basis|/ann/(base|coding)")

    def test_pinned_to_one_commit(self, there: World) -> None:
        old = there.hub.commits(ARCHIVE)[0].oid
        there.change("cqd_hub.json", lambda head: head | {"chosen": 0})
        done = there.cli("pull", f"ann/small@{old}", "best", "--form", "genome", "--json")
        assert done.records[0]["id"] == chosen()
        assert done.records[0]["source"].endswith(old)
        assert (there.folder / "small-best" / "genome.safetensors").exists()

    @pytest.mark.parametrize(
        ("who", "wanted"),
        [
            (["2"], lambda rows: 2),
            (["base"], lambda rows: -1),
            (["aggregate"], lambda rows: min(r["id"] for r in rows)),
            (["best:os"], None),
            (["--best", "average"], None),
            (["--best", "db", "--where", "os>=0.5"], None),
        ],
    )
    def test_names(self, there: World, who: list[str], wanted: object) -> None:
        done = there.cli("pull", "ann/small", *who, "--form", "genome", "--to", "g", "--json")
        assert done.code == 0, done.err
        found = done.records[0]["id"]
        if callable(wanted):
            assert found == wanted(there.rows("individuals"))
            return
        elites = there.rows("elites")
        allowed = [r for r in elites if r["optimisation_os"] >= 0.5 or "--where" not in who]
        key = {"best:os": "optimisation_os", "average": "average", "db": "optimisation_db"}
        column = key[who[0] if who[0] in key else who[1]]
        (row,) = [r for r in elites if r["individual"] == found][:1]
        assert row[column] == max(r[column] for r in allowed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["best:nothing"], "WHO: no skill 'nothing'"),
        (["99"], "has no individual 99"),
        (["codin"], "did you mean 'coding'?"),
        (["--best", "average", "--where", "db>0.4 or 1"], "is no condition"),
        (["--best", "average", "--where", "db>1.5"], "elites meets db>1.5"),
        (["1", "--where", "db>0.1"], "means nothing with WHO"),
        (["1", "--expert", "cook=."], "no expert 'cook'"),
        (["1", "--trust", "ab"], "means nothing without --recipe"),
    ],
)
def test_mistakes(there: World, arguments: list[str], message: str) -> None:
    assert message in there.cli("pull", "ann/small", *arguments).error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("db>nan", "is no condition"),
        ("db>inf", "is no condition"),
        ("db>1e999", "is no condition"),
        ("db>0.4 or 1", "is no condition"),
        ("db", "is no condition"),
        ("0.4<db", "is no condition"),
        ("db>=>1", "is no condition"),
        ("__import__('os')>1", "is no condition"),
        ("db>0x10", "is no condition"),
        ("speed>1", "no skill 'speed'"),
        ("cooding>1", "did you mean 'coding'"),
    ],
)
def test_conditions_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UserError, match="--where") as error:
        parse_condition(text, ["coding", "db"])
    assert message in str(error.value)


def test_conditions() -> None:
    assert parse_condition(" db >= .4 ", ["db"]) == ("db", ">=", 0.4)
    assert parse_condition("average!=1e-1", ["db"]) == ("average", "!=", 0.1)
    assert parse_condition("a.b-c<-1", ["a.b-c"]) == ("a.b-c", "<", -1)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ann/small@none", "has no such revision"),
        ("ann/small-best", "is not on the Hub"),
        ("hf://models/ann/small-best", "is a model; archives are data sets"),
        ("../x/y", "is no repository of the Hub"),
    ],
)
def test_wrong_places(there: World, place: str, message: str) -> None:
    assert message in there.cli("pull", place).error


class TestWeights:
    def test_rebuilt_is_what_was_published(self, there: World) -> None:
        rebuilt = there.cli("pull", "ann/small", "aggregate", "--to", "made", "--json")
        assert rebuilt.code == 0, rebuilt.err
        assert rebuilt.records[0]["verified"] == "basis and fingerprint"
        as_is = there.cli("pull", "ann/small", "aggregate", "--published", "--to", "own", "--json")
        assert as_is.code == 0, as_is.err
        ours = load_file(there.folder / "made" / "model.safetensors")
        theirs = load_file(there.folder / "own" / "model.safetensors")
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
        assert (there.folder / "own" / "tokenizer.json").exists()

    def test_from_local_folders_as_an_adapter(self, there: World) -> None:
        experts = [f"--expert={name}={MODELS / name}" for name in ("coding", "os", "db")]
        done = there.cli(
            *("pull", "ann/small", "aggregate", "--base", MODELS / "base", *experts),
            *("--form", "adapter", "--to", "adapter", "--json"),
        )
        assert done.code == 0, done.err
        assert done.records[0]["relative_error"] == 0
        assert not there.hub.log.find("/ann/(base|coding|os|db)/")
        config = json.loads((there.folder / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(MODELS.resolve() / "base")

    def test_mergekit_names_the_models_of_the_hub(self, there: World) -> None:
        there.remove("basis/")
        there.change("cqd_hub.json", lambda head: head["basis"].update(files=None))
        done = there.cli("pull", "ann/small", "best", "--form", "mergekit", "--to", "how")
        assert done.code == 0, done.err
        text = (there.folder / "how" / "mergekit.yml").read_text()
        head = there.json("cqd_hub.json")
        assert head["models"]["base"]["reference"].removeprefix("hf://") in text

    def test_deleted_expert(self, there: World) -> None:
        there.drop("ann/os")
        done = there.cli("pull", "ann/small", "best", "--to", "made")
        assert "is not on the Hub" in done.error
        assert "--expert os=DIR" in done.error
        assert not (there.folder / "made").exists()
        assert there.cli("pull", "ann/small", "aggregate", "--published", "--to", "own").code == 0

    def test_another_expert(self, there: World) -> None:
        done = there.cli("pull", "ann/small", "best", "--expert", f"os={MODELS / 'db'}")
        assert "is not expert os that the run was made with" in done.error

    def test_local_when_it_was_pushed(self, there: World) -> None:
        def forget(head: dict) -> None:
            head["models"]["base"]["reference"] = None

        there.change("cqd_hub.json", forget)
        assert "give it with --base DIR" in there.cli("pull", "ann/small", "best").error

    def test_taken_folder(self, there: World) -> None:
        (there.folder / "made").mkdir()
        (there.folder / "made" / "mine").touch()
        assert "already exists" in there.cli("pull", "ann/small", "best", "--to", "made").error
        assert not there.hub.log.find("/ann/base/")

    def test_never_published(self, there: World) -> None:
        done = there.cli("pull", "ann/small", "base", "--published", "--to", "own")
        assert "was not published as a model" in done.error

    def test_a_changed_published_model(self, there: World) -> None:
        repo = published_label(there, aggregate(there))
        there.put({"config.json": "{}"}, repo)
        done = there.cli("pull", "ann/small", "aggregate", "--published", "--to", "own")
        assert "config.json is not the file that its cqd_hub.json names" in done.error
        assert not (there.folder / "own").exists()


class TestOtherFactors:
    """Where the factors made here are not those that the genomes scale."""

    def elsewhere(self, there: World) -> None:
        """As if another machine, with other factors, had made the run."""
        made = {}

        def moved(_: int, data: bytes) -> bytes:
            genome = replace(Genome.from_bytes(data), basis="0" * 64)
            made[Genome.from_bytes(data).hash] = genome.hash
            return genome.to_bytes()

        there.remove("basis/")
        there.rewrite("genomes", lambda table: with_values(table, "genome", moved))
        for table in ("genomes", "individuals", "elites"):
            there.rewrite(
                table, lambda t: with_values(t, "genome_hash", lambda _, value: made[value])
            )
        there.change("cqd_hub.json", lambda h: h | {"basis": {"hash": "0" * 64, "files": None}})
        repo = published_label(there, aggregate(there))
        there.change("cqd_hub.json", lambda e: e | {"genome_hash": made[e["genome_hash"]]}, repo)

    def test_the_fingerprint_decides(self, there: World) -> None:
        self.elsewhere(there)
        done = there.cli("pull", "ann/small", "aggregate", "--to", "made", "--json")
        assert done.code == 0, done.err
        assert done.records[0]["verified"] == "fingerprint"
        without = there.cli("pull", "ann/small", "2", "--to", "other")
        assert "push with --with-basis" in without.error
        assert not (there.folder / "other").exists()

    def test_another_fingerprint(self, there: World) -> None:
        def spoil(elite: dict) -> None:
            name = next(iter(elite["fingerprint"]))
            elite["fingerprint"][name][0] *= 1.0001

        there.change("cqd_hub.json", spoil, published_label(there, aggregate(there)))
        done = there.cli("pull", "ann/small", "aggregate", "--to", "made")
        assert "the rebuilt weights are not the published ones" in done.error
        assert not (there.folder / "made").exists()


class TestFaults:
    def test_a_damaged_shard_is_fetched_again(self, there: World) -> None:
        fault = there.hub.fault("corrupt", r"_storage/.*genomes")
        done = there.cli("pull", "ann/small", "best", "--form", "genome", "--to", "g")
        assert done.code == 0, done.err
        assert fault.fired == 1
        assert "is damaged; downloading it again" in done.err
        assert (there.folder / "g" / "genome.safetensors").read_bytes() == genome_of(chosen())

    def test_one_that_stays_damaged_is_refused_and_not_kept(self, there: World) -> None:
        there.hub.fault("corrupt", r"_storage/.*genomes", times=None)
        done = there.cli("pull", "ann/small", "best", "--form", "genome", "--to", "g")
        assert "does not come with the content that the Hub names, twice" in done.error
        assert not (there.folder / "g").exists()
        there.hub.faults.clear()
        again = there.cli("pull", "ann/small", "best", "--form", "genome", "--to", "g")
        assert again.code == 0
        assert "damaged" not in again.err

    def test_a_damaged_cache_is_repaired(self, there: World) -> None:
        command = ("pull", "ann/small", "best", "--form", "genome", "--to")
        assert there.cli(*command, "one").code == 0
        (shard,) = (there.folder / "machine").rglob("genomes/00000.parquet")
        blob = shard.resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"x")
        assert there.cli(*command, "two").code == 0
        assert (there.folder / "two" / "genome.safetensors").read_bytes() == genome_of(chosen())

    def test_the_hub_is_away(self, there: World) -> None:
        there.hub.die()
        done = there.cli("pull", "ann/small")
        assert done.code == 1
        assert "the Hub does not serve it" in done.error

    def test_offline(self, there: World) -> None:
        done = there.cli("pull", "ann/small", HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE is set" in done.error

    def test_full_disk(self, there: World) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        disk = there.folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=True)
        try:
            done = there.cli("pull", "ann/small", "best", "--form", "genome", HF_HOME=str(disk))
            assert done.code == 1
            assert "HF_HOME" in done.error
            assert not list(disk.rglob("*.incomplete"))
        finally:
            subprocess.run(["umount", disk], check=True)


class TestRecipe:
    def test_to_evolve_anew(self, there: World) -> None:
        done = there.cli("pull", "ann/small", "--recipe", "--to", "again", "--json")
        assert done.code == 0, done.err
        text = (there.folder / "again" / "recipe.yaml").read_text()
        head = there.json("cqd_hub.json")
        assert head["models"]["experts"]["os"]["reference"].removeprefix("hf://") in text
        from cqd_hub.recipe import Recipe, load_yaml

        recipe = load_yaml(there.folder / "again" / "recipe.yaml", Recipe)
        assert list(recipe.experts) == ["coding", "os", "db"]

    def test_options_that_reach_beyond_the_recipe_are_named(self, there: World) -> None:
        recipe = there.json("run/recipe.json")
        recipe["skills"]["os"]["options"] = {
            "prompts": "~/.ssh/id\x1b",
            "url": "http://a:1",
            "n": 1,
        }
        there.put({"run/recipe.json": json.dumps(recipe)})
        done = there.cli("pull", "ann/small", "--recipe", "--to", "again")
        assert done.code == 0, done.err
        assert "skills.os.options.prompts is ~/.ssh/id?, on your machine" in done.err
        assert "skills.os.options.url is http://a:1" in done.err
        assert "options.n" not in done.err

    def test_code_is_shown_and_refused(self, there: World) -> None:
        there.put({"run/tasks/u.py": "def f():\n    print('\x1b[31mred')\n"})
        done = there.cli("pull", "ann/small", "--recipe", "--to", "again")
        assert "u.py may be code, which would run on this machine" in done.error
        assert "        print('?[31mred')" in done.err
        assert not (there.folder / "again").exists()

    def test_code_that_is_trusted(self, there: World) -> None:
        code = {"t.yaml": "task: t\nprocess_results: !function u.f\n", "u.py": "def f(): ...\n"}
        there.put({f"run/tasks/{name}": text for name, text in code.items()})
        there.put({"run/tasks/../../escaped.yaml": "a: 1\n", "run/tasks/.hidden": "a"})
        trust: list[str] = []
        for _ in code:
            refused = there.cli("pull", "ann/small", "--recipe", "--to", "again", *trust).error
            trust += ["--trust", refused.rpartition("--trust ")[2].rstrip(")")]
        done = there.cli("pull", "ann/small", "--recipe", "--to", "again", *trust)
        assert done.code == 0, done.err
        written = {p.name for p in (there.folder / "again").rglob("*") if p.is_file()}
        assert written == {"recipe.yaml", "t.yaml", "u.py"}
        there.put({"run/tasks/u.py": "def f(): import os\n"})
        changed = there.cli("pull", "ann/small", "--recipe", "--to", "anew", *trust)
        assert "u.py may be code" in changed.error

    def test_safe_tasks_need_no_trust(self, there: World) -> None:
        tasks = (MODELS.parent.parent.parent / "evals" / "quickstart").resolve()
        files = {f"run/tasks/{p.name}": p.read_bytes() for p in tasks.glob("*.yaml")}
        assert files
        there.put(files)
        done = there.cli("pull", "ann/small", "--recipe", "--to", "again")
        assert done.code == 0, done.err
        shutil.rmtree(there.folder / "again")

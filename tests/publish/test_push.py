"""Publishing a run through its command, to a Hub that the real client speaks to."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load

from cqd_hub.genome import Genome
from tests.hub.server import HubServer
from tests.publish.conftest import TOKEN, Push
from tests.publish.pushing import MODELS, state

ARCHIVE = "datasets/ann/small"
WRITING = ("POST", "PUT", "PATCH", "DELETE")


def rows(hub: HubServer, table: str, repo: str = ARCHIVE) -> list[dict[str, Any]]:
    names = [name for name in hub.files(repo) if name.startswith(f"data/{table}/")]
    return [
        row
        for name in sorted(names)
        for row in pq.read_table(io.BytesIO(hub.file(repo, name))).to_pylist()
    ]


def head(hub: HubServer, repo: str = ARCHIVE) -> dict[str, Any]:
    return json.loads(hub.file(repo, "cqd_hub.json"))  # type: ignore[no-any-return]


def front(hub: HubServer, repo: str) -> dict[str, Any]:
    return yaml.safe_load(hub.file(repo, "README.md").decode().split("---\n")[1])  # type: ignore


def journal(run: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(run / "journal.sqlite")) as database:
        return database.execute(query).fetchall()


def test_archive_holds_the_whole_run(hub: HubServer, push: Push, run: Path) -> None:
    done = push("--elites", "none")
    assert done.code == 0, done.err
    assert hub.repos() == [ARCHIVE, "lab/base"]
    assert hub.repo(ARCHIVE).private
    assert hub.collections() == {}
    assert len(hub.commits(ARCHIVE)) == 2  # the first is the Hub's own
    individuals = journal(run, "SELECT id, genome_hash, name FROM individuals ORDER BY id")
    found = rows(hub, "individuals")
    assert [(row["id"], row["genome_hash"], row["name"]) for row in found] == individuals
    told = [n for (n,) in journal(run, "SELECT individual FROM told ORDER BY position")]
    places = {row["told"]: row["id"] for row in found if row["told"] is not None}
    assert [places[place] for place in sorted(places)] == told
    answers = "individual, skill, split, sample, repeat, score, text, finish, path, note"
    wanted = journal(run, f"SELECT {answers} FROM measurements")
    assert sorted(tuple(row.values()) for row in rows(hub, "scores")) == sorted(wanted)
    for row in rows(hub, "genomes"):
        assert Genome.from_bytes(row["genome"]).hash == row["genome_hash"]
    elites = rows(hub, "elites")
    assert {row["snapshot"] for row in elites} == {len(told)}
    assert {row["skill"] for row in elites} == {"coding", "os", "db"}
    for row in elites:
        assert row["quality"] == row[f"optimisation_{row['skill']}"]
        assert len(row["cell"]) == 2
    children = [row for row in rows(hub, "lineage") if row["crossover"]]
    assert all(json.loads(row["crossover"])["shares"] for row in children)
    record = head(hub)
    assert record["told"] == len(told)
    assert record["chosen"] == json.loads((run / "results.json").read_text())["chosen"]
    files = hub.files(ARCHIVE)
    assert set(record["basis"]["files"]) == {name for name in files if name.startswith("basis/")}
    assert len([name for name in files if re.fullmatch(r"figures/archive-\w+\.png", name)]) == 3
    everything = b"".join(
        hub.file(ARCHIVE, name) for name in files if not name.startswith(("basis", "data/genomes"))
    )
    for private in (str(MODELS.resolve()), str(run), TOKEN, os.path.expanduser("~/")):
        assert private.encode() not in everything


def test_archive_needs_no_torch(hub: HubServer, run: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cqd_hub.cli import app\n"
        f"sys.argv = ['cqd-hub', 'push', {str(run)!r}, '--to', 'ann/x', '--elites', 'none']\n"
        "try:\n    app.main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'peft') if m in sys.modules])"
    )
    environment = hub.environment(token=TOKEN, home=tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_datasets_open_it(hub: HubServer, push: Push, tmp_path: Path) -> None:
    assert push("--elites", "none").code == 0
    code = """
from datasets import load_dataset
print(load_dataset("ann/small")["train"].num_rows)
for name in ("elites", "individuals", "scores", "lineage"):
    print(name, load_dataset("ann/small", name, split="train").num_rows)
"""
    environment = hub.environment(token=TOKEN, home=tmp_path / "home")
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "datasets")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    tables = ("elites", "individuals", "scores", "lineage")
    wanted = [f"{name} {len(rows(hub, name))}" for name in tables]
    assert done.stdout.splitlines() == [str(len(rows(hub, "elites"))), *wanted]


def test_second_push_changes_nothing(hub: HubServer, push: Push) -> None:
    options = ("--elites", "aggregate", "--base", "lab/base", "--form", "adapter")
    assert push(*options).code == 0
    before, commits = state(hub), {name: len(hub.commits(name)) for name in hub.repos()}
    hub.log.reset()
    again = push(*options, "--json")
    assert again.code == 0
    assert state(hub) == before
    assert {name: len(hub.commits(name)) for name in hub.repos()} == commits
    assert not [entry for entry in hub.log.entries if entry.method in WRITING]
    assert not again.json["archive"]["changed"]
    assert not again.json["elites"]["aggregate"]["changed"]
    # The base's repository is remembered.
    assert push(*options[:2], *options[4:]).code == 0
    assert state(hub) == before


def test_elites_collection_and_cards(hub: HubServer, push: Push, run: Path, tmp_path: Path) -> None:
    done = push("--elites", "best,aggregate,best", "--base", "lab/base", "--form", "adapter")
    assert done.code == 0, done.err
    assert hub.repos() == ["ann/small-aggregate", "ann/small-best", ARCHIVE, "lab/base"]
    (items,) = hub.collections().values()
    assert [name for name, _ in items] == [ARCHIVE, "ann/small-best", "ann/small-aggregate"]
    assert "(test)" in str(items[1][1])
    assert head(hub)["models_published"] == {
        "best": "ann/small-best",
        "aggregate": "ann/small-aggregate",
    }
    chosen = json.loads((run / "results.json").read_text())["chosen"]
    record = head(hub, "ann/small-best")
    assert (record["kind"], record["individual"], record["form"]) == ("elite", chosen, "adapter")
    assert record["archive"] == "ann/small"
    assert record["run"] == head(hub)["run"]
    assert set(record["scores"]) == {"coding", "os", "db"}
    assert record["scores"]["os"]["split"] == "test"
    files = hub.files("ann/small-best")
    assert {"tokenizer.json", "adapter_model.safetensors", "genome.safetensors"} <= set(files)
    assert all(files[name] == sha for name, sha in record["files"].items())
    sha = hub.commits("lab/base")[0].oid
    config = json.loads(hub.file("ann/small-best", "adapter_config.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("lab/base", sha)
    assert record["base"]["reference"] == f"lab/base@{sha}"
    card = front(hub, "ann/small-best")
    assert (card["base_model"], card["base_model_relation"]) == (["lab/base"], "adapter")
    assert card["library_name"] == "peft"
    assert {"cycleqd", "cqd-hub", "merge"} <= set(card["tags"])
    # It loads by its id, base and all, and is the individual that its fingerprint tells.
    code = """
import sys, numpy as np, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained("ann/small-best", dtype=torch.float32)
model = model.merge_and_unload()
AutoTokenizer.from_pretrained("ann/small-best")("1 + 1")
np.savez(sys.argv[1], **{k: v.float().numpy() for k, v in model.state_dict().items()})
"""
    environment = hub.environment(token=TOKEN, home=tmp_path / "home")
    done_loading = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "w.npz")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done_loading.returncode == 0, done_loading.stderr
    weights = np.load(tmp_path / "w.npz")
    for name, (norm, _) in record["fingerprint"].items():
        if "embed" in name:  # tied: merged, it holds what both its ends have attached
            continue
        assert np.linalg.norm(weights[name].astype(np.float64)) == pytest.approx(norm, rel=1e-5)


def test_default_publishes_what_a_finished_run_is_best_at(hub: HubServer, push: Push) -> None:
    done = push("--json", "--public")
    assert done.code == 0, done.err
    elites = done.json["elites"]
    assert {"best", "aggregate"} <= set(elites)
    assert not any(hub.repo(part["repo"]).private for part in elites.values())
    assert not hub.repo(ARCHIVE).private
    card = front(hub, "ann/small-best")
    assert card["library_name"] == "transformers"
    weights = load(hub.file("ann/small-best", "model.safetensors"))
    fingerprint = head(hub, "ann/small-best")["fingerprint"]
    assert set(fingerprint) <= set(weights)
    people = {row["id"]: row["role"] for row in rows(hub, "individuals")}
    published = [head(hub, part["repo"])["individual"] for part in elites.values()]
    assert len(set(published)) == len(published)
    assert "expert" not in {people[number] for number in published}


def test_a_run_that_goes_on_adds_only_what_is_new(
    hub: HubServer, push: Push, run: Path, tmp_path: Path
) -> None:
    early = Path(shutil.copytree(run, tmp_path / "early"))
    with closing(sqlite3.connect(early / "journal.sqlite")) as database, database:
        database.execute("DELETE FROM measurements WHERE individual > 4 OR individual < -1")
        database.execute("DELETE FROM measurements WHERE split != 'optimisation'")
        database.execute("DELETE FROM told WHERE individual > 4")
        database.execute("DELETE FROM individuals WHERE id > 5 OR id < -1")  # 5: not told yet
    (early / "results.json").unlink()
    assert push(folder=early).code == 0
    first = hub.files(ARCHIVE)
    assert head(hub)["chosen"] is None
    assert head(hub)["told"] == 5
    assert {row["id"] for row in rows(hub, "individuals")} == {-1, 0, 1, 2, 3, 4}
    assert push("--elites", "none").code == 0
    second = hub.files(ARCHIVE)
    shards = [name for name in first if name.startswith("data/")]
    assert all(second[name] == first[name] for name in shards)
    for table in ("individuals", "lineage", "genomes"):
        assert f"data/{table}/00001.parquet" in second
        ids = [row.get("id", row.get("individual")) for row in rows(hub, table)]
        assert sorted(ids) == [n for (n,) in journal(run, "SELECT id FROM individuals ORDER BY id")]
    assert len(rows(hub, "scores")) == journal(run, "SELECT COUNT(*) FROM measurements")[0][0]
    assert {row["snapshot"] for row in rows(hub, "elites")} == {5, 7}
    # Who knows less than the Hub adds nothing and takes nothing back.
    before = state(hub)
    assert push(folder=early).code == 0
    assert state(hub) == before
    # Other answers under the same name are refused.
    with closing(sqlite3.connect(early / "journal.sqlite")) as database, database:
        database.execute("DELETE FROM measurements WHERE individual = 3 AND sample = '0'")
        (left,) = database.execute(
            "SELECT COUNT(*) FROM measurements WHERE individual=3"
        ).fetchone()
        if left == 24:
            database.execute(
                "DELETE FROM measurements WHERE individual = 3 AND sample IN "
                "(SELECT sample FROM measurements WHERE individual = 3 LIMIT 1)"
            )
    refused = push(folder=early)
    assert refused.code == 2
    assert "answers of individual 3" in refused.err


def test_dry_run_writes_nothing(hub: HubServer, push: Push) -> None:
    done = push("--dry-run", "--json")
    assert done.code == 0, done.err
    assert hub.repos() == ["lab/base"]
    assert not [entry for entry in hub.log.entries if entry.method in WRITING]
    assert done.json["archive"]["changed"]
    assert done.json["archive"]["commit"] is None
    assert done.json["collected"]
    planned = done.json["archive"]["files"], done.json["archive"]["bytes"]
    # Its list of elites aside, the archive becomes what was said.
    real = push("--elites", "none", "--json").json["archive"]
    assert real["files"] == planned[0]
    assert real["bytes"] == pytest.approx(planned[1], rel=0.01)
    assert "as it is" in push("--dry-run", "--elites", "none").out


def test_markup_of_others_stays_text(hub: HubServer, push: Push, run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    evil = "</td><script>alert(1)</script> | [x](javascript:1) ![](http://a/b)\n# Big `code`\x1b[2J"
    results["finalists"][0]["label"] = evil
    (run / "results.json").write_text(json.dumps(results))
    assert push("--elites", "none").code == 0
    card = hub.file(ARCHIVE, "README.md").decode()
    for part in ("<script", "](javascript", "![](http", "\n# Big", "\x1b"):
        assert part not in card


def test_licences_are_said_and_a_conflict_needs_a_flag(
    hub: HubServer, push: Push, run: Path
) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    models = manifest["models"]
    models["base"]["licence"] = "llama3"
    models["experts"]["os"] |= {"licence": "gpl-3.0"}
    models["experts"]["db"] |= {"licence": "mit", "gated": True}
    path.write_text(json.dumps(manifest))
    refused = push("--elites", "none")
    assert refused.code == 2
    assert "--accept-licence" in refused.err
    assert "gated" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert hub.repos() == ["lab/base"]
    assert push("--elites", "none", "--accept-licence").code == 0
    assert front(hub, ARCHIVE)["license"] == "other"
    assert "coding" in hub.file(ARCHIVE, "README.md").decode().split("Licences: ")[1]


def test_a_cell_and_an_id_can_be_named(hub: HubServer, push: Push) -> None:
    assert push("--elites", "none").code == 0
    elite = rows(hub, "elites")[0]
    cell = "-".join(map(str, elite["cell"]))
    done = push("--elites", f"cell:{elite['skill']}:{cell},-2", "--json")
    assert done.code == 0, done.err
    assert set(done.json["elites"]) == {f"id-{elite['individual']}", "id-m2"}
    assert head(hub, "ann/small-id-m2")["individual"] == -2


def test_models_of_the_hub_are_named_in_card_and_recipe(
    hub: HubServer, push: Push, run: Path
) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    models = manifest["models"]
    for name, model in (("base", models["base"]), *models["experts"].items()):
        model["reference"] = f"lab/{name}@{'0123456789' * 4}"
        model["licence"] = "apache-2.0"
    path.write_text(json.dumps(manifest))
    done = push("--elites", "aggregate", "--form", "checkpoint")
    assert done.code == 0, done.err
    for repo, parents in (
        (ARCHIVE, ["lab/base", "lab/coding", "lab/os", "lab/db"]),
        ("ann/small-aggregate", ["lab/coding", "lab/os", "lab/db"]),
    ):
        card = front(hub, repo)
        assert card["license"] == "apache-2.0"
        assert card["base_model"] == parents
    assert card["base_model_relation"] == "merge"
    assert "mergekit" in card["tags"]
    text = hub.file("ann/small-aggregate", "mergekit.yml").decode()
    recipe = yaml.safe_load(text)
    assert str(recipe["base_model"]).startswith("lab/base@")
    everything = text + hub.file("ann/small-aggregate", "README.md").decode()
    assert str(run) not in everything
    assert str(MODELS.resolve()) not in everything
    published = json.loads(hub.file(ARCHIVE, "run/recipe.json"))
    assert published["base"] == f"lab/base@{'0123456789' * 4}"
    before = state(hub)
    assert push("--elites", "aggregate", "--form", "checkpoint").code == 0
    assert state(hub) == before

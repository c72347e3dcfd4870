"""Every mistake gets one line with place and remedy, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Cli


def refused(cli: Cli, recipe: Path, *arguments: object, code: int = 2) -> str:
    """Run evolve, expect a refusal, return its line."""
    out = recipe.parent / "run"
    result = cli("evolve", recipe, "--out", out, "-q", *arguments)
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == code, result.err
    assert len(lines) == 1, result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not out.exists() or not any(out.iterdir())
    return lines[0]


def edit(recipe: Path, old: str, new: str) -> None:
    """Replace text that must be there."""
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


def spoil(model: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace or drop tensors of a checkpoint."""
    tensors = load_file(model / "model.safetensors")
    for name, value in change.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def reconfigure(model: Path, **changes: object) -> None:
    """Change keys of config.json."""
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestRecipe:
    def test_misspelt_key(self, cli: Cli, recipe: Path) -> None:
        edit(recipe, "children_per_step", "children_per_stp")
        line = refused(cli, recipe)
        assert re.search(r"recipe\.yaml:12:23: search\.children_per_stp: unknown key", line)
        assert "did you mean 'children_per_step'?" in line

    def test_wrong_type(self, cli: Cli, recipe: Path) -> None:
        edit(recipe, "children: 6", "children: six")
        line = refused(cli, recipe)
        assert "recipe.yaml:12:10: search.children" in line
        assert "'six'" in line

    def test_duplicate_key(self, cli: Cli, recipe: Path) -> None:
        recipe.write_text(recipe.read_text() + "name: again\n")
        line = refused(cli, recipe)
        assert re.search(r'recipe\.yaml:13:1: duplicate key "name"', line)

    def test_one_skill(self, cli: Cli, recipe: Path) -> None:
        for skill in ("os", "db"):
            edit(recipe, f"  {skill}: {{task: quickstart_{skill}}}\n", "")
        assert "skills: a search needs at least two" in refused(cli, recipe)

    def test_one_expert(self, cli: Cli, recipe: Path) -> None:
        text = re.sub(r"  (os|db): /.*\n", "", recipe.read_text())
        recipe.write_text(text)
        assert "experts: a search needs at least two" in refused(cli, recipe)

    def test_missing_file(self, cli: Cli, recipe: Path) -> None:
        line = refused(cli, recipe.parent / "absent.yaml")
        assert "absent.yaml: no such file" in line

    def test_unknown_shipped_recipe(self, cli: Cli) -> None:
        result = cli("evolve", "quickstrat")
        assert result.code == 2
        assert "did you mean 'quickstart'?" in result.err

    def test_a_folder_does_not_hide_a_shipped_recipe(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "quickstart").mkdir()
        monkeypatch.chdir(tmp_path)
        result = cli("evolve", "quickstart", "--set", "evaluation.device=none")
        assert "no device 'none'" in result.err

    def test_json_errors(self, cli: Cli, recipe: Path) -> None:
        edit(recipe, "name: small", "nme: small")
        result = cli("evolve", recipe, "--json")
        record = json.loads(result.err.splitlines()[-1])
        assert result.code == 2
        assert record["remedy"] == "did you mean 'name'?"


class TestModels:
    def test_missing_model(self, cli: Cli, recipe: Path) -> None:
        edit(recipe, "/os\n", "/oz\n")
        line = refused(cli, recipe)
        assert "experts.os: no such model folder" in line
        assert "/oz" in line

    def test_other_shapes(self, cli: Cli, recipe: Path, copied: Path) -> None:
        spoil(copied / "os", {"model.norm.weight": torch.ones(64)})
        line = refused(cli, recipe)
        assert "models/os: model.norm.weight has shape [64], the base's is [128]" in line

    def test_other_vocabulary(self, cli: Cli, recipe: Path, copied: Path) -> None:
        spoil(copied / "os", {"model.embed_tokens.weight": torch.ones(520, 128)})
        for file in (copied / "os").glob("tokenizer*"):
            file.unlink()
        assert "models/os: has 520 rows of vocabulary, the base 512, and no" in refused(cli, recipe)

    def test_other_architecture(self, cli: Cli, recipe: Path, copied: Path) -> None:
        reconfigure(copied / "os", architectures=["Qwen2ForCausalLM"])
        assert "models/os: architectures is ['Qwen2ForCausalLM']" in refused(cli, recipe)

    def test_missing_tensor(self, cli: Cli, recipe: Path, copied: Path) -> None:
        spoil(copied / "db", {"model.norm.weight": None})
        assert "models/db: it has no tensor model.norm.weight" in refused(cli, recipe)

    def test_one_expert_under_two_names(self, cli: Cli, recipe: Path, copied: Path) -> None:
        shutil.rmtree(copied / "db")
        shutil.copytree(copied / "os", copied / "db")
        assert "models/db: is the same expert as" in refused(cli, recipe)

    def test_identical_to_base(self, cli: Cli, recipe: Path, copied: Path) -> None:
        data = (copied / "base" / "model.safetensors").read_bytes()
        (copied / "db" / "model.safetensors").write_bytes(data)
        assert "models/db: is identical to the base (leave it out)" in refused(cli, recipe)

    def test_pickle_only(self, cli: Cli, recipe: Path, copied: Path) -> None:
        weights = copied / "coding" / "model.safetensors"
        weights.rename(weights.with_name("pytorch_model.bin"))
        line = refused(cli, recipe)
        assert "models/coding: holds only pickled weights" in line
        assert "safe_serialization" in line

    def test_nan(self, cli: Cli, recipe: Path, copied: Path) -> None:
        weights = load_file(copied / "coding" / "model.safetensors")["model.norm.weight"]
        weights[3] = float("nan")
        spoil(copied / "coding", {"model.norm.weight": weights})
        assert "models/coding: model.norm.weight holds NaN or infinity" in refused(cli, recipe)

    def test_cut_short(self, cli: Cli, recipe: Path, copied: Path) -> None:
        weights = copied / "coding" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert "model.safetensors: is damaged or cut short" in refused(cli, recipe)

    def test_rank_too_large(self, cli: Cli, recipe: Path) -> None:
        line = refused(cli, recipe, "--set", "genome.rank=500")
        assert "genome.rank: rank 500 is not within 1 to 128" in line

    def test_no_such_device(self, cli: Cli, recipe: Path) -> None:
        line = refused(cli, recipe, "--set", "evaluation.device=gpu9")
        assert "evaluation.device: no device 'gpu9'" in line


class TestTasks:
    def test_unknown_task(self, cli: Cli, recipe: Path) -> None:
        edit(recipe, "quickstart_os", "quickstart_oss")
        line = refused(cli, recipe)
        assert "skills.os.task: no task named 'quickstart_oss'" in line
        assert "did you mean 'quickstart_os'?" in line

    def test_unknown_metric(self, cli: Cli, recipe: Path) -> None:
        line = refused(cli, recipe, "--set", "skills.os.metric=exact_mtch")
        assert "skills.os.metric: task quickstart_os has no metric 'exact_mtch'" in line
        assert "exact_match" in line

    def test_metric_outside_0_1(self, cli: Cli, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text(
            "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: own.jsonl}}\n"
            "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\n"
            "doc_to_target: '{{a}}'\ngeneration_kwargs: {until: ['.'], max_gen_toks: 2}\n"
            "metric_list: [{metric: grade, aggregation: mean, higher_is_better: true}]\n"
            "process_results: !function own.grade\n"
        )
        (tmp_path / "own.py").write_text("def grade(doc, results):\n    return {'grade': 7}\n")
        rows = [json.dumps({"q": f"question {i}", "a": "x"}) for i in range(40)]
        (tmp_path / "own.jsonl").write_text("\n".join(rows))
        edit(recipe, "{task: quickstart_os}", "{task: own.yaml, metric: grade}")
        line = refused(cli, recipe)
        assert "skills.os.metric: grade gave 7; a score must lie in 0..1" in line

    def test_skill_at_zero_for_everyone(self, cli: Cli, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text(
            "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: own.jsonl}}\n"
            "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\n"
            "doc_to_target: '{{a}}'\ngeneration_kwargs: {until: ['.'], max_gen_toks: 2}\n"
            "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        )
        rows = [json.dumps({"q": f"question {i}", "a": "never said"}) for i in range(40)]
        (tmp_path / "own.jsonl").write_text("\n".join(rows))
        edit(recipe, "{task: quickstart_os}", "{task: own.yaml, metric: exact_match}")
        assert "skills.os: every expert scores 0" in refused(cli, recipe)

    def test_overlapping_splits(self, cli: Cli, recipe: Path) -> None:
        edit(
            recipe,
            "{task: quickstart_os}",
            '{task: quickstart_os, splits: {optimisation: "test[:20]", validation: '
            '"test[10:30]", test: "test[30:]"}}',
        )
        line = refused(cli, recipe)
        assert "skills.os: optimisation and validation overlap: both hold test document 10" in line

    def test_code_outside_a_sandbox(self, cli: Cli, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text(
            "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: own.jsonl}}\n"
            "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{q}}'\n"
            "doc_to_target: '{{q}}'\nunsafe_code: true\n"
            "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        )
        (tmp_path / "own.jsonl").write_text('{"q": "a"}\n')
        edit(recipe, "{task: quickstart_os}", "{task: own.yaml, metric: exact_match}")
        assert "skills.os.task: lm-eval marks this task unsafe" in refused(cli, recipe)


class TestPlaces:
    def test_no_sandbox(self, cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        line = refused(cli, recipe, "--set", "evaluation.sandbox=docker")
        assert "docker" in line.lower()

    def test_unwritable_directory(self, cli: Cli, recipe: Path) -> None:
        result = cli("evolve", recipe, "--out", "/proc/nowhere/run", "-q")
        assert result.code == 2
        assert "error: /proc/nowhere/run: cannot be written" in result.err

    def test_foreign_directory(self, cli: Cli, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "draft.txt").write_text("dear")
        result = cli("evolve", recipe, "--out", tmp_path / "letters", "-q")
        assert result.code == 2
        assert "is no run directory and not empty (it holds draft.txt)" in result.err
        assert [p.name for p in (tmp_path / "letters").iterdir()] == ["draft.txt"]

    def test_no_space(self, cli: Cli, recipe: Path, small_disk: Path) -> None:
        result = cli("evolve", recipe, "--out", small_disk / "run", "-q")
        assert result.code == 2
        sizes = r"error: \S+run: the run needs about [\d.]+ [MG]B, the disk has"
        assert re.search(sizes, result.err)
        assert not (small_disk / "run").exists()

    def test_no_run_there(self, cli: Cli, tmp_path: Path) -> None:
        for command in (["report", tmp_path], ["export", tmp_path, "best", "--to", tmp_path / "x"]):
            result = cli(*command)
            assert result.code == 2
            assert "is no run directory" in result.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)

"""The other commands: help, export, eval, init, doctor, and the same from Python."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cqd_hub import assets
from cqd_hub.errors import UserError
from tests.cli.conftest import Cli

HEAVY = ("torch", "transformers", "lm_eval", "datasets", "peft", "matplotlib", "mergekit")
COMMANDS = ("evolve", "plan", "train", "export", "eval", "report", "init", "doctor")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short finished run."""
    from tests.cli.conftest import RECIPE

    place = tmp_path_factory.mktemp("run")
    models = (assets.folder("recipes") / "quickstart" / "models").resolve()
    (place / "recipe.yaml").write_text(RECIPE.format(models=models))
    arguments = ["evolve", str(place / "recipe.yaml"), "--out", str(place / "run"), "-q"]
    subprocess.run([sys.executable, "-m", "cqd_hub.cli.app", *arguments], check=True)
    return place / "run"


class TestHelp:
    @pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["evolve", "--help"]])
    def test_light(self, arguments: list[str]) -> None:
        code = (
            "import sys; from cqd_hub.cli import app; sys.argv = ['cqd-hub', *sys.argv[1:]]\n"
            "try: app.main()\nexcept SystemExit: pass\n"
            f"sys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout
        assert done.stderr == ""

    def test_import_is_light(self) -> None:
        code = f"import sys, cqd_hub; print([m for m in {HEAVY} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "[]"

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_help_has_examples(self, cli: Cli, command: str) -> None:
        result = cli(command, "--help")
        assert result.code == 0
        assert f"cqd-hub {command}" in result.out.split("Examples:")[1]

    def test_usage_errors(self, cli: Cli) -> None:
        assert cli("evolve").code == 2
        assert cli("evlove", "x").code == 2


class TestExport:
    def test_checkpoint_loads_and_differs_from_the_base(
        self, cli: Cli, run: Path, tmp_path: Path
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        result = cli("export", run, "5", "--to", tmp_path / "model", "--dtype", "float32")
        assert result.code == 0, result.err
        assert result.out.strip() == str(tmp_path / "model")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        ids = tokenizer("shell: list files ->", return_tensors="pt")["input_ids"]
        assert torch.isfinite(model(ids).logits).all()
        base = load_file(assets.folder("recipes") / "quickstart/models/base/model.safetensors")
        changed = [
            name
            for name, value in base.items()
            if not torch.equal(value.float(), model.state_dict()[name])
        ]
        assert "model.layers.0.mlp.up_proj.weight" in changed

    def test_an_expert_comes_back(self, cli: Cli, run: Path, tmp_path: Path) -> None:
        assert cli("export", run, "coding", "--to", tmp_path / "model").code == 0
        mine = load_file(tmp_path / "model" / "model.safetensors")
        theirs = load_file(assets.folder("recipes") / "quickstart/models/coding/model.safetensors")
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)

    def test_adapter_loads_in_peft(self, cli: Cli, run: Path, tmp_path: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = assets.folder("recipes") / "quickstart" / "models" / "base"
        assert cli("export", run, "best", "--to", tmp_path / "a", "--form", "adapter").code == 0
        assert cli("export", run, "best", "--to", tmp_path / "m", "--dtype", "float32").code == 0
        ids = torch.arange(3, 40)[None]
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(model, tmp_path / "a")
        with torch.no_grad():
            wanted, got = whole(ids).logits, adapted(ids).logits
        assert (wanted - got).norm() / wanted.norm() < 1e-5

    def test_mergekit_folder(self, cli: Cli, run: Path, tmp_path: Path) -> None:
        made = cli("export", run, "aggregate", "--to", tmp_path / "y", "--form", "mergekit")
        assert made.code == 0
        assert (tmp_path / "y" / "mergekit.yml").read_text().startswith("merge_method")
        assert "mergekit-yaml" in (tmp_path / "y" / "README.md").read_text()

    def test_small_adapter_for_vllm(self, cli: Cli, run: Path, tmp_path: Path) -> None:
        to, form = tmp_path / "a", ("--form", "adapter", "--for", "vllm", "--rank", 8)
        result = cli("export", run, "best", "--to", to, *form, "--json")
        made = json.loads(result.out)
        config = json.loads((to / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (8, 8, {})
        assert made["rank"] == 8
        assert 0 < made["relative_error"] < 1
        assert f"relative error {made['relative_error']:.2g}" in result.err
        assert "--max-lora-rank 8" in result.err
        again = cli("export", run, "best", "--to", tmp_path / "b", *form[:2], "--error", "0.3")
        assert again.code == 0, again.err

    def test_crossover_is_what_was_recorded(self, cli: Cli, run: Path, tmp_path: Path) -> None:
        from tests.genome.run_mergekit import merged

        options = ("--form", "crossover", "--dtype", "float32")
        assert cli("export", run, "5", "--to", tmp_path / "how", *options).code == 0
        assert cli("export", run, "5", "--to", tmp_path / "m", "--dtype", "float32").code == 0
        state = merged(tmp_path / "how" / "mergekit.yml", tmp_path)
        for name, tensor in load_file(tmp_path / "m" / "model.safetensors").items():
            assert (state[name] - tensor).norm() <= 1e-6 * tensor.norm(), name
        result = cli("export", run, "coding", "--to", tmp_path / "x", *options)
        assert result.code == 2
        assert "coding was not made by a crossover (use --form mergekit" in result.err

    def test_gguf_without_a_converter(
        self, cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("LLAMA_CPP", raising=False)
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        to = tmp_path / "model"
        result = cli("export", run, "best", "--to", to, "--form", "gguf", "--outtype", "f16")
        assert result.code == 0
        assert "converter was not found" in result.err
        command = shlex.split(result.err.rsplit("run: ", 1)[1])
        assert command[:3] == ["python", "convert_hf_to_gguf.py", str(to)]
        assert command[3:] == ["--outfile", f"{to}/model-{{ftype}}.gguf", "--outtype", "f16"]
        assert (to / "model.safetensors").exists()

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (["--rank", "8"], "--rank: means nothing with --form checkpoint"),
            (["--error", "0.1", "--form", "gguf"], "use it with --form adapter"),
            (["--for", "vllm", "--form", "mergekit"], "--for: means nothing"),
            (["--shard-size", "1GB", "--form", "adapter"], "use it with --form checkpoint"),
            (["--base", "a/b", "--form", "crossover"], "--form adapter or mergekit"),
            (["--converter", "nowhere"], "--converter: means nothing"),
            (["--form", "gguf", "--converter", "nowhere"], "no convert_hf_to_gguf.py there"),
            (["--form", "adapter", "--rank", "3", "--for", "vllm"], "vLLM has no rank 3"),
            (["--form", "adapter", "--rank", "3", "--error", "0.1"], "give one of the two"),
            (["--form", "adapter", "--error", "1.5"], "1.5 is not an error"),
            (["--shard-size", "5 apples"], "is not a size"),
        ],
    )
    def test_options_that_make_no_sense(
        self, cli: Cli, run: Path, tmp_path: Path, options: list[str], line: str
    ) -> None:
        result = cli("export", run, "best", "--to", tmp_path / "x", *options)
        assert result.code == 2
        assert line in result.err
        assert not list(tmp_path.iterdir())

    def test_negative_ids(self, cli: Cli, run: Path, tmp_path: Path) -> None:
        result = cli("export", run, "-2", "--to", tmp_path / "merge", "--json")
        assert json.loads(result.out)["id"] == -2

    def test_taken_folder(self, cli: Cli, run: Path, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "y").write_text("mine")
        result = cli("export", run, "best", "--to", tmp_path / "x")
        assert result.code == 2
        assert [path.name for path in (tmp_path / "x").iterdir()] == ["y"]

    @pytest.mark.parametrize(
        ("who", "remedy"),
        [
            ("codng", "did you mean 'coding'?"),
            ("999", "no individual 999"),
            ("best:x", "skills are"),
        ],
    )
    def test_nobody(self, cli: Cli, run: Path, tmp_path: Path, who: str, remedy: str) -> None:
        result = cli("export", run, who, "--to", tmp_path / "x")
        assert result.code == 2
        assert remedy in result.err
        assert not (tmp_path / "x").exists()


class TestEval:
    def test_agrees_with_the_run(self, cli: Cli, run: Path) -> None:
        result = cli("eval", run, "best", "base", "--split", "test", "--json")
        rows = [json.loads(line) for line in result.out.splitlines()]
        table = json.loads((run / "table.json").read_text())
        text = json.dumps(table)
        assert [row["name"] for row in rows] == ["best", "base"]
        for row in rows:
            assert f"{row['average']['mean']:.4f}"[:5] in text

    def test_another_model_of_the_base(self, cli: Cli, recipe: Path, copied: Path) -> None:
        result = cli("eval", recipe, copied / "db", "db", "base", "--json")
        rows = [json.loads(line) for line in result.out.splitlines()]
        assert rows[0]["skills"] == rows[1]["skills"]
        assert rows[0]["skills"]["db"]["mean"] > rows[2]["skills"]["db"]["mean"]

    def test_unknown_model(self, cli: Cli, recipe: Path) -> None:
        result = cli("eval", recipe, "nowhere")
        assert result.code == 2
        assert "no such expert or model folder" in result.err


class TestInit:
    def test_the_recipe_runs(self, cli: Cli, tmp_path: Path) -> None:
        models = assets.folder("recipes") / "quickstart" / "models"
        recipe = tmp_path / "mine.yaml"
        made = cli(
            "init",
            models / "base",
            *(models / name for name in ("coding", "os-lora")),
            *("--skill", "coding=quickstart_coding,executed"),
            *("--skill", "os=quickstart_os,executed"),
            *("--out", recipe),
        )
        assert made.code == 0, made.err
        assert "# adapter" in recipe.read_text()
        few = "samples={optimisation: 8, validation: 8, test: 8}"
        ran = cli("evolve", recipe, "--out", tmp_path / "r", "-q", "--children", 4, "--set", few)
        assert ran.code == 0, ran.err

    def test_keeps_an_existing_file(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_text("precious")
        result = cli("init", "a", "b", "c", "--out", tmp_path / "recipe.yaml")
        assert result.code == 2
        assert (tmp_path / "recipe.yaml").read_text() == "precious"


class TestDoctor:
    def test_says_what_is_there(self, cli: Cli) -> None:
        result = cli("doctor", "--json")
        checks = {line["what"]: line for line in map(json.loads, result.out.splitlines())}
        assert checks["torch"]["state"] == "ok"
        assert {"sandbox bubblewrap", "sandbox landlock", "sandbox docker"} <= set(checks)
        for check in checks.values():
            assert check["state"] == "ok" or check["remedy"] or check["what"] == "gpu"


class TestPython:
    def test_five_lines(self, recipe: Path, tmp_path: Path) -> None:
        import cqd_hub

        run = cqd_hub.evolve(recipe, out=tmp_path / "run", children=2)
        averages = [row.average.mean for row in run.table()]
        assert np.isfinite(averages).all()
        assert run.export("best", tmp_path / "model") == tmp_path / "model"
        assert (tmp_path / "model" / "model.safetensors").exists()
        again = cqd_hub.open_run(tmp_path / "run")
        assert again.individual("coding").id == 0


class TestTrain:
    def test_an_expert(self, cli: Cli, tmp_path: Path) -> None:
        folder = assets.folder("recipes") / "quickstart"
        text = (folder / "train-coding.yaml").read_text()
        text = text.replace("models/base", str(folder.resolve() / "models/base"))
        text = text.replace("../../evals", str(assets.folder("evals").resolve()))
        (tmp_path / "train.yaml").write_text(text.replace("steps: 80", "steps: 9"))
        result = cli("train", tmp_path / "train.yaml", "--out", tmp_path / "expert")
        assert result.code == 0, result.err
        assert result.out.strip() == str(tmp_path / "expert")
        assert "loss" in result.err
        base = load_file(folder / "models/base/model.safetensors")
        expert = load_file(tmp_path / "expert/model.safetensors")
        assert base.keys() == expert.keys()
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(base[name], expert[name])

    def test_unknown_key(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "train.yaml").write_text("bsae: x\ndata: []\n")
        result = cli("train", tmp_path / "train.yaml", "--out", tmp_path / "expert")
        assert result.code == 2
        assert "train.yaml:1:1: bsae: unknown key (did you mean 'base'?)" in result.err
        assert not (tmp_path / "expert").exists()

    def test_in_a_notebook(self, recipe: Path, tmp_path: Path) -> None:
        import cqd_hub

        async def cell() -> int:
            return len(cqd_hub.evolve(recipe, out=tmp_path / "run", children=2).table())

        assert asyncio.run(cell()) > 3

    def test_overrides_are_checked(self, recipe: Path, tmp_path: Path) -> None:
        import cqd_hub

        with pytest.raises(UserError, match=r"search\.children"):
            cqd_hub.evolve(recipe, out=tmp_path / "run", children=-5)
        assert not (tmp_path / "run").exists()

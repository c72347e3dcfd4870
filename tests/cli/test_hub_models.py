"""Models named by Hub id, through the command line in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from cqd_hub import assets
from cqd_hub.evaluation.sandbox import Limits, PythonCall, ShellScript, available, open_sandbox
from tests.cli.test_evolve import content, evaluated
from tests.hub.server import HubServer

MODELS = (assets.folder("recipes") / "quickstart" / "models").resolve()
WEIGHTS = (MODELS / "base" / "model.safetensors").stat().st_size
RECIPE = """\
name: small
base: {base}
experts:
  coding: {coding}
  os: {os}
  db: {db}
skills:
  coding: {{task: quickstart_coding}}
  os: {{task: quickstart_os}}
  db: {{task: quickstart_db}}
samples: {{optimisation: 6, validation: 4, test: 4}}
search: {{children: 2, children_per_step: 2}}
"""
PLACES = {
    "base": "ann/base",
    "coding": "hf://ann/coding",
    "os": "ann/os-lora@v1",
    "db": f"{MODELS}/db",
}


class World(NamedTuple):
    """A Hub, and somebody's machine."""

    hub: HubServer
    home: Path

    def recipe(self, **places: str) -> Path:
        path = self.home / "recipe.yaml"
        path.write_text(RECIPE.format(**PLACES | places))
        return path

    def run(
        self, *arguments: object, token: str | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of ours; the Hub's log begins anew."""
        environment = self.hub.environment(
            home=self.home / "hf",
            token=token,
            **{
                "CQD_HUB_CACHE": str(self.home / "cache"),
                "HF_DATASETS_CACHE": str(self.home / "datasets"),
                "CQD_HUB_PATIENCE": "0",
                "OMP_NUM_THREADS": "1",
                **extra,
            },
        )
        self.hub.log.reset()
        command = [sys.executable, "-m", "cqd_hub.cli.app", *map(str, arguments)]
        return subprocess.run(
            command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=300
        )


def fill(hub: HubServer) -> None:
    """The shipped models: the base is private, the coding expert has a card."""
    hub.put_model("ann/base", MODELS / "base", private=True)
    hub.put_model("ann/coding", MODELS / "coding")
    hub.put_model("ann/coding", {"README.md": "---\nlicense: mit\nbase_model: ann/base\n---\n"})
    hub.put_model("ann/os-lora", {"README.md": "# empty so far"})
    hub.put_model("ann/os-lora", MODELS / "os-lora", branch="v1")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with HubServer() as hub:
        fill(hub)
        yield World(hub, tmp_path)


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def changed(folder: Path, target: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """A copy of a model folder with other tensors."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    held = load_file(target / "model.safetensors") | dict(tensors)
    save_file(held, target / "model.safetensors", metadata={"format": "pt"})
    return target


class TestEvolve:
    @pytest.mark.slow
    def test_pinned_resumed_and_alone(self, world: World, tmp_path: Path) -> None:
        """One run: begun with a Hub, carried on after a branch moved, then without the Hub."""
        hub, out, token = world.hub, tmp_path / "run", world.hub.token("ann")
        recipe = world.recipe()
        heads = {name: hub.commits(f"ann/{name}")[0].oid for name in ("base", "coding")}
        begun = world.run("evolve", recipe, "--out", out, token=token)
        assert begun.returncode == 0, begun.stderr
        models = manifest(out)["models"]
        coding = models["experts"]["coding"]
        assert models["base"]["reference"] == f"ann/base@{heads['base']}"
        assert coding["reference"] == f"ann/coding@{heads['coding']}"
        assert (coding["licence"], coding["base_model"]) == ("mit", ["ann/base"])
        assert models["experts"]["db"]["reference"] is None
        assert manifest(out)["licence"]["unknown"] == ["base", "os", "db"]
        assert "factoring hf://ann/coding" in begun.stderr
        # The same models from folders make the same run.
        local = world.recipe(
            **{name: f"{MODELS}/{name}" for name in ("base", "coding")}, os=f"{MODELS}/os-lora"
        )
        assert world.run("evolve", local, "--out", tmp_path / "local", "-q").returncode == 0
        assert content(out) == content(tmp_path / "local")

        recipe = world.recipe()
        hub.put_model("ann/coding", MODELS / "os")
        moved = world.run("evolve", recipe, "--out", out, "--children", 4, token=token)
        assert moved.returncode == 0, moved.stderr
        assert f"hf://ann/coding at {heads['coding'][:12]}" in moved.stderr
        assert not hub.log.entries
        assert manifest(out)["models"] == models

        hub.die()
        for command in (
            ("evolve", recipe, "--out", out, "--children", 6, "-q"),
            ("export", out, "best", "--to", tmp_path / "best"),
        ):
            alone = world.run(*command)
            assert alone.returncode == 0, alone.stderr
            assert not hub.log.entries
        assert evaluated(out) >= 4 + 6
        for path in [*out.rglob("*"), *(tmp_path / "cache").rglob("*.json")]:
            assert not path.is_file() or token.encode() not in path.read_bytes()
        assert token not in begun.stdout + begun.stderr + moved.stderr

    @pytest.mark.slow
    def test_damaged_and_cut_downloads(self, world: World, tmp_path: Path) -> None:
        world.hub.fault("corrupt", r"ann/coding/.*model.safetensors", method="GET", nth=2)
        world.hub.fault("truncate", r"ann/os-lora/.*model.safetensors", method="GET", nth=2)
        recipe = world.recipe(base=f"{MODELS}/base")
        done = world.run("evolve", recipe, "--out", tmp_path / "run", "--children", 0)
        assert done.returncode == 0, done.stderr
        assert "model.safetensors is damaged; downloading it again" in done.stderr
        (weights,) = (tmp_path / "hf").rglob("models--ann--coding/snapshots/*/model.safetensors")
        assert weights.read_bytes() == (MODELS / "coding" / "model.safetensors").read_bytes()
        assert not list(tmp_path.rglob("*.incomplete"))


class TestOtherCommands:
    def test_init_downloads_no_weights(self, world: World, tmp_path: Path) -> None:
        made = world.run(
            "init", "ann/base", "ann/coding", "hf://ann/os-lora@v1", f"{MODELS}/db",
            *("--out", tmp_path / "new.yaml"), token=world.hub.token("ann"),
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        text = (tmp_path / "new.yaml").read_text()
        assert "base: ann/base\n" in text
        assert "coding: ann/coding" in text
        assert "os-lora: hf://ann/os-lora@v1" in text.replace('"', "")
        assert "adapter" in text
        assert not list((tmp_path / "hf").rglob("*.safetensors"))
        assert world.hub.log.sent < WEIGHTS // 2

    def test_eval_of_another(self, world: World, tmp_path: Path) -> None:
        recipe = world.recipe(
            **{name: f"{MODELS}/{name}" for name in ("base", "coding")}, os=f"{MODELS}/os"
        )
        done = world.run("eval", recipe, "ann/os-lora@v1", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["name"] == "ann/os-lora@v1"


class TestRefused:
    def check(
        self, world: World, expert: str, *words: str, token: str | None = None, **extra: str
    ) -> None:
        """One line that has all *words*, and no weights downloaded."""
        arguments = ("init", f"{MODELS}/base", f"{MODELS}/coding", expert)
        done = world.run(*arguments, "--out", world.home / "new.yaml", token=token, **extra)
        assert done.returncode in (1, 2), done.stdout
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
        assert "Traceback" not in done.stderr
        for word in words:
            assert word in line
        assert str(world.home / "cache") not in line
        assert not list((world.home / "hf").rglob("*.safetensors"))
        assert not list((world.home / "cache").rglob("headers-*"))

    def test_missing(self, world: World) -> None:
        self.check(world, "ann/absent", "is not on the Hub", "hf auth login", "a folder")

    def test_private(self, world: World) -> None:
        bob = world.hub.token("bob")
        self.check(world, "ann/base", "ann/base: is not on the Hub, or private", token=bob)

    def test_gated(self, world: World) -> None:
        world.hub.put_model("ann/gated", MODELS / "os", gated=True)
        bob = world.hub.token("bob")
        self.check(world, "ann/gated", "ann/gated", "is gated", "ask for access", token=bob)

    def test_bad_token(self, world: World) -> None:
        self.check(world, "ann/coding", "does not accept this token", token="hf_wrong")

    def test_no_such_revision(self, world: World) -> None:
        self.check(world, "ann/coding@v7", "hf://ann/coding@v7: has no such revision")

    def test_offline(self, world: World) -> None:
        self.check(world, "ann/coding", "not in the cache", HF_HUB_OFFLINE="1")

    def test_hub_away(self, world: World) -> None:
        world.hub.die()
        self.check(world, "ann/coding", "ann/coding: the Hub does not serve it", "run the same")

    def test_dataset(self, world: World) -> None:
        self.check(world, "hf://datasets/ann/data", "is no model")

    def test_pickles_only(self, world: World) -> None:
        config = (MODELS / "os" / "config.json").read_bytes()
        world.hub.put_model("ann/old", {"config.json": config, "pytorch_model.bin": b"\x80"})
        self.check(world, "ann/old", "ann/old: holds only pickled weights (pytorch_model.bin)")

    def test_code_of_its_own(self, world: World) -> None:
        config = {"architectures": ["XForCausalLM"], "model_type": "x", "auto_map": {"A": "x.A"}}
        weights = (MODELS / "os" / "model.safetensors").read_bytes()
        files = {"config.json": json.dumps(config), "x.py": "1/0", "model.safetensors": weights}
        world.hub.put_model("ann/own", files)
        line = world.run("init", "ann/own", "ann/coding", "ann/os-lora@v1").stderr
        assert "error: ann/own: needs code of its own (auto_map in config.json)" in line

    def test_quantised(self, world: World) -> None:
        config = json.loads((MODELS / "os" / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "awq"}
        world.hub.put_model("ann/small", MODELS / "os")
        world.hub.put_model("ann/small", {"config.json": json.dumps(config)})
        self.check(world, "ann/small", "ann/small: is quantised")

    def test_other_shapes(self, world: World, tmp_path: Path) -> None:
        other = changed(MODELS / "os", tmp_path / "o", {"model.norm.weight": torch.ones(64)})
        world.hub.put_model("ann/other", other)
        self.check(world, "ann/other", "ann/other: model.norm.weight has shape [64]")

    @pytest.mark.slow
    def test_adapter_of_another_base(self, world: World) -> None:
        config = json.loads((MODELS / "os-lora" / "adapter_config.json").read_text())
        world.hub.put_model("ann/far", MODELS / "os-lora")
        world.hub.put_model("ann/far", {"adapter_config.json": json.dumps(config | {"r": 5})})
        self.check(world, "ann/far", "ann/far", "the config says 5")

    @pytest.mark.slow
    def test_model_and_adapter_in_one(self, world: World) -> None:
        world.hub.put_model("ann/both", MODELS / "os-lora")
        world.hub.put_model("ann/both", MODELS / "os")
        self.check(world, "ann/both", "ann/both: holds a model and an adapter")

    def test_evolve_says_it_before_weights(self, world: World, tmp_path: Path) -> None:
        other = changed(MODELS / "os", tmp_path / "o", {"model.norm.weight": torch.ones(64)})
        world.hub.put_model("ann/other", other)
        recipe = world.recipe(base=f"{MODELS}/base", os="ann/other")
        done = world.run("evolve", recipe, "--out", tmp_path / "run", "-q")
        assert done.returncode == 2
        assert "error: ann/other: model.norm.weight has shape [64]" in done.stderr
        assert not world.hub.log.find("safetensors", "HEAD")
        assert not (tmp_path / "run").exists()


def test_answers_see_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model writes runs without HF_TOKEN, and cannot read the token that is logged in."""
    if not any(state.ok for state in available() if state.kind != "docker"):
        pytest.skip("no sandbox here")
    token = tmp_path / "token"
    token.write_text("hf_of_the_file")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_environment")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    code = (
        "def f():\n import os, glob\n seen = dict(os.environ)\n"
        " for name in [*glob.glob('/proc/*/environ'), PATH]:\n"
        "  try: seen[name] = open(name, 'rb').read().decode(errors='replace')\n"
        "  except OSError: pass\n return repr(seen)\n"
    ).replace("PATH", repr(str(token)))

    async def answers() -> list[Any]:
        async with await open_sandbox("auto", workers=1) as sandbox:
            python = await sandbox.run(PythonCall(code, "f", ((),)), Limits())
            shell = await sandbox.run(ShellScript(f"env; cat {token} $HF_HOME/token"), Limits())
            return [python.value, shell.value]

    python, shell = asyncio.run(answers())
    assert "ok" in python[0]
    assert "hf_of" not in repr(python) + repr(shell)
    assert os.environ["HF_TOKEN"] == "hf_of_the_environment"

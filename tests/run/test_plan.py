"""Plans: sizes against what is really kept, headers alone, refusals with the arithmetic."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import cqd_hub
from cqd_hub.cli.plan import _rows
from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine.memory import Load, Shape, on_device, on_host
from cqd_hub.genome import Basis, Genome, Materialiser, build_basis, mutate_expert, open_models
from cqd_hub.genome.held import Streamed, Weights
from cqd_hub.randomness import generator
from cqd_hub.recipe import Recipe
from cqd_hub.run.plan import Plan, Took, _choose, _fitting, _room, check_fit, is_planned, make_plan
from cqd_hub.run.plan._calibrate import Rates, calibrate
from cqd_hub.run.plan._predict import predict
from cqd_hub.run.plan._room import place_weights, refuse_misfit
from cqd_hub.run.plan._survey import survey, survey_basis
from cqd_hub.run.plan._work import load_work
from tests.conftest import Models
from tests.hub.server import HubServer

GB = 10**9
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}


def recipe(base: Path, experts: Mapping[str, Path], **more: Any) -> Recipe:
    skills = {"coding": {"task": "quickstart_coding"}, "os": {"task": "quickstart_os"}}
    data: dict[str, Any] = {"name": "planned", "base": str(base), "skills": skills}
    data["experts"] = {name: str(path) for name, path in experts.items()}
    data["samples"] = {"optimisation": 12, "validation": 12, "test": 12}
    return Recipe.model_validate(data | more)


def on_disk(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, models: Models) -> tuple[Path, list[Path]]:
    """Folders that look like an 8B model and two fine-tunes: headers, and nothing behind them."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))
    header: dict[str, Any] = {}
    end = 0
    for name, parameter in model.named_parameters():
        begin, end = end, end + 2 * parameter.numel()
        shape = list(parameter.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    place = tmp_path_factory.mktemp("large")
    for name in ("base", "one", "two"):
        (place / name).mkdir()
        (place / name / "config.json").write_text(json.dumps(LLAMA))
        for file in models.base.glob("tokenizer*"):
            shutil.copy(file, place / name)
        with (place / name / "model.safetensors").open("wb") as weights:
            weights.write(len(text).to_bytes(8, "little") + text)
            weights.truncate(8 + len(text) + end)
    return place / "base", [place / "one", place / "two"]


class TestSizes:
    @pytest.mark.parametrize(("rank", "tail"), [("full", "tied"), (4, "tied"), (4, "drop")])
    def test_headers_tell_the_layout(
        self, models: Models, rank: Any, tail: Literal["tied", "drop"]
    ) -> None:
        experts = {"a": models.full[0], "b": models.full[1], "c": models.lora}
        asked = recipe(models.base, experts, genome={"rank": rank, "tail": tail})
        made = build_basis(*open_models(models.base, list(experts.values())), rank=rank, tail=tail)
        with survey(asked, Path()) as found:
            assert found.shape.layout.ranks == made.layout.ranks
            assert found.shape.layout.tails == made.layout.tails
            assert found.shape == replace(
                survey_basis(made).shape, layout=found.shape.layout, config=found.shape.config
            )
            assert found.factoring == (0.0, 0)  # in the cache by now

    @pytest.mark.parametrize("rank", ["full", 4])
    def test_counts_what_is_kept(self, models: Models, rank: Any) -> None:
        """Against the tensors of a materialiser that has written an expert and a child."""
        basis = build_basis(*open_models(models.base, [*models.full[:2], models.lora]), rank=rank)
        maker = Materialiser(basis)
        experts = [Genome.of_expert(basis.hash, basis.layout, n) for n in range(3)]
        child = mutate_expert(
            experts[0], generator(0, 0, "mutation"), basis=basis, expert=0, w_max=0.3
        )
        for genome in [*experts, child]:
            maker.state(genome, dtype=torch.float32)
        shape = survey_basis(basis).shape
        load = Load(rows=1, length=8, batch_tokens=8)
        kept = on_device(shape, load, engine="sequential", device="cpu", dtype=torch.float32)
        held = dict[str, list[torch.Tensor]]()
        for key, tensor in maker._held._kept.items():
            held.setdefault(key.kind, []).append(tensor)
        assert kept["pristine base"] == size(held["base"])
        assert kept["factors"] == size(held["left"]) + size(held["right"])
        assert kept["whole experts"] == size(held["expert"])
        assert kept["model"] == 4 * sum(t.numel() for t in held["base"])

    @pytest.mark.parametrize("rank", ["full", 4])
    def test_counts_what_is_on_its_way(
        self, models: Models, rank: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Against the buffers of a materialiser that has streamed a child; blocks as on a GPU."""
        basis = build_basis(*open_models(models.base, [*models.full[:2], models.lora]), rank=rank)
        for name, value in {"_BLOCK": 640, "_BLOCK_OF_OTHERS": 640, "_ROWS_OF_OTHERS": 1}.items():
            monkeypatch.setattr(f"cqd_hub.genome.materialise.{name}", value)
        monkeypatch.setattr(
            "cqd_hub.genome.materialise.held", lambda device, weights: Streamed(device)
        )
        monkeypatch.setattr(Materialiser, "_multiplies_bfloat16", True)  # as a GPU does
        maker = Materialiser(basis, weights="host")
        child = mutate_expert(
            Genome.of_expert(basis.hash, basis.layout, 0),
            generator(0, 0, "mutation"),
            basis=basis,
            expert=1,
            w_max=0.3,
        )
        shape, load = survey_basis(basis).shape, Load(rows=1, length=8, batch_tokens=8)
        for dtype in (torch.bfloat16, torch.float32):
            maker.state(child, dtype=dtype)
            kept = on_device(
                shape, load, engine="sequential", device="cuda", dtype=dtype, weights="host"
            )
            assert not {"pristine base", "factors", "whole experts"} & kept.keys()
            assert isinstance(maker._held, Streamed)
            assert 0 < maker._held.buffers <= kept["slots on their way"] + 32 * 512  # rounded up
        held = [t for key, t in maker._held._kept.items() if key.of != torch.bfloat16]
        assert size(held) <= on_host(shape, load, device="cuda", dtype=torch.float32)

    def test_a_cache_of_keys_and_values(self, basis: Basis) -> None:
        shape = survey_basis(basis).shape
        assert shape.cache_bytes(4) == 2 * 2 * 2 * 8 * 4  # layers, heads, size of a head
        rows = on_device(
            shape,
            Load(rows=100, length=50, batch_tokens=1000),
            engine="sequential",
            device="cpu",
            dtype=torch.float32,
        )
        assert rows["keys and values"] == (1000 + 50) * shape.cache_bytes(4)  # a row to spare


class TestLarge:
    def test_headers_are_enough(self, large: tuple[Path, list[Path]]) -> None:
        base, experts = large
        asked = recipe(base, {"one": experts[0], "two": experts[1]}, genome={"rank": 64})
        with survey(asked, Path()) as found:
            shape = found.shape
        assert shape.parameters == 8_030_261_248
        assert sum(shape.stored) == 2 * shape.parameters
        assert shape.cache_bytes(2) == 131072
        assert found.factoring[1] == 4 * shape.factor_numbers()
        assert found.download == 0
        assert on_disk(base) < 10**7

    def test_does_not_fit_and_what_would(
        self, large: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, experts = large
        asked = recipe(base, {"one": experts[0], "two": experts[1]})
        with survey(asked, Path()) as found:
            shape = found.shape
        load = Load(rows=64, length=1024, batch_tokens=65536)

        def refused(free: int, shape: Shape = shape, weights: Weights = "device") -> UserError:
            with pytest.raises(UserError) as error:
                refuse_misfit(
                    shape,
                    load,
                    engine="sequential",
                    device="cuda",
                    dtype=torch.bfloat16,
                    weights=weights,
                    free=free,
                )
            return error.value

        error = refused(80 * GB)
        assert "model 16.06 GB + pristine base 16.06 GB" in error.what
        assert error.what.endswith("80.00 GB are free")
        assert error.remedy == "set evaluation.weights: auto"
        where = {"load": load, "engine": "sequential", "device": "cuda", "dtype": torch.bfloat16}
        cut = shape.at_rank(256)
        for free, of, weights in ((80, shape, "host"), (80, cut, "device"), (24, shape, "host")):
            assert place_weights(of, wanted="auto", free=free * GB, **where) == weights
            refuse_misfit(of, weights=weights, free=free * GB, **where)
        monkeypatch.setattr(_room, "free_host_memory", lambda: 10 * GB)
        error = refused(16 * GB, weights="host")
        assert "model 16.06 GB + slots on their way" in error.what
        assert error.what.endswith("16.00 GB are free")
        assert "rank 16 in bfloat16 takes 18." in error.remedy
        monkeypatch.setattr(_room, "free_host_memory", lambda: 64 * GB)
        assert "set evaluation.device: cpu" in refused(16 * GB, cut, "host").remedy

    def test_streamed_is_planned_and_said_where_it_does_not_fit_beside_its_copy(
        self, large: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, experts = large
        asked = recipe(base, {"one": experts[0], "two": experts[1]})
        rates = Rates(1e12, 1e12, 1e11, 1e-5, 1e-3, 1e-5)
        monkeypatch.setattr(_room, "free_host_memory", lambda: 10 * GB)

        def planned(free: int) -> Plan:
            monkeypatch.setattr("cqd_hub.run.plan.free_memory", lambda device: free * GB)
            with survey(asked, Path()) as found:
                work, rows = load_work(asked, Path(), found.tokenizer, lambda line: None)
                where = {"device": "cuda", "dtype": torch.bfloat16}
                fit = _fitting(asked, found, work, rows, "cuda", torch.bfloat16)
                return predict(asked, found, work, rates, fit.engine, weights=fit.weights, **where)

        roomy, tight = planned(200), planned(24)
        assert (roomy.weights, tight.weights) == ("device", "host")
        assert "pristine base" in roomy.memory
        assert "pristine base" not in tight.memory
        assert sum(tight.memory.values()) < 24 * GB
        assert tight.host > roomy.host + 16 * GB
        assert tight.child.materialise > 1  # 16 GB and more of each child cross the link
        assert tight.record()["weights"] == "host"
        assert "streamed" in dict(_rows(tight))["weights"]
        assert "weights" not in dict(_rows(roomy))
        with pytest.raises(
            UserError, match=r"does not fit: model 16.06 GB \+ .* 12.00 GB are free"
        ):
            planned(12)

    def test_a_remedy_counts_on_streaming(
        self, large: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of weights that were to stay on the device, in a dtype that the card is too small for."""
        base, experts = large
        asked = recipe(base, {"one": experts[0], "two": experts[1]}, genome={"rank": 64})
        with survey(asked, Path()) as found:
            shape = found.shape
        monkeypatch.setattr(_room, "free_host_memory", lambda: GB)
        load = Load(rows=64, length=1024, batch_tokens=65536)
        where = {"engine": "sequential", "device": "cuda", "dtype": torch.float32}
        with pytest.raises(UserError) as error:
            refuse_misfit(shape, load, free=24 * GB, **where)
        assert error.value.remedy == ("set evaluation.weights: auto, evaluation.dtype: bfloat16")
        with pytest.raises(UserError) as error:
            refuse_misfit(shape, load, free=12 * GB, **where)
        assert "takes 18." in error.value.remedy  # streamed, not 16 GB twice

    def test_children_go_one_after_the_other_where_shared_factors_are_too_much(
        self, large: tuple[Path, list[Path]]
    ) -> None:
        base, experts = large
        genome = {"rank": 256, "tail": "drop"}
        search = {"children_per_step": 32}
        asked = recipe(base, {"one": experts[0], "two": experts[1]}, genome=genome, search=search)
        with survey(asked, Path()) as found:
            work, rows = load_work(asked, Path(), found.tokenizer, lambda line: None)
        for free, kind, weights in (
            (80, "population", "device"),
            (30, "population", "host"),
            (20, "sequential", "host"),
        ):
            fit = _choose(asked, found, work, rows, "cuda", torch.bfloat16, free=free * GB)
            assert (fit.engine.kind, fit.weights) == (kind, weights)
        named = asked.model_copy(
            update={"evaluation": asked.evaluation.model_copy(update={"weights": "device"})}
        )
        fit = _choose(named, found, work, rows, "cuda", torch.bfloat16, free=20 * GB)
        assert fit.weights == "device"

    def test_the_command_refuses_in_one_line(self, large: tuple[Path, list[Path]]) -> None:
        """On whatever this machine is: ten such models hold it full."""
        base, experts = large
        path = base.parent / "recipe.yaml"
        asked = recipe(base, {"one": experts[0], "two": experts[1]})
        path.write_text(json.dumps(asked.model_dump(mode="json", exclude_unset=True)))
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from cqd_hub.run.plan import _room; _room.free_host_memory = lambda: 10**9;"
                "from cqd_hub.cli.app import main; main()",
                *("plan", str(path), "--set", "evaluation.device=cpu", "-q"),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert "does not fit: model 32.12 GB" in line
        assert "Traceback" not in line


class TestPlan:
    def test_a_small_run(self, models: Models) -> None:
        experts = {"a": models.full[0], "b": models.full[1], "c": models.lora}
        few = recipe(models.base, experts, search={"children": 4})
        plan = make_plan(few, Path())
        assert plan.device == "cpu"
        assert plan.children == 4
        assert 0 < plan.per_child < 60
        assert plan.seconds["children"] == pytest.approx(4 * plan.per_child)
        assert plan.rates.measured
        assert plan.rates.execution > 0
        assert plan.engine.kind in ("sequential", "population")
        assert plan.engine.reason
        assert "download" not in plan.disk
        again = json.loads(json.dumps(plan.record()))
        assert again["memory"] == plan.memory
        assert again["total_seconds"] == pytest.approx(sum(plan.seconds.values()))
        named = make_plan(recipe(models.base, experts, evaluation={"engine": "population"}), Path())
        assert named.engine.kind == "population"
        assert "individuals' tables" in named.memory

    def test_from_python(self, models: Models, tmp_path: Path) -> None:
        experts = {"a": models.full[0], "b": models.full[1]}
        path, notes = tmp_path / "recipe.yaml", list[str]()
        asked = recipe(models.base, experts)
        path.write_text(json.dumps(asked.model_dump(mode="json", exclude_unset=True)))
        plan = cqd_hub.plan(path, children=8, note=notes.append)
        assert isinstance(plan, Plan)
        assert plan.children == 8
        assert any("measuring" in line for line in notes)

        async def notebook() -> Plan:
            return cqd_hub.plan(asked)

        assert asyncio.run(notebook()).children == asked.search.children
        with pytest.raises(UserError, match="children"):
            cqd_hub.plan(asked, children=8)

    @pytest.mark.parametrize("per_step", [1, 32])
    def test_the_engine_is_the_one_that_a_run_opens(self, models: Models, per_step: int) -> None:
        """Of headers or of open models, one decision."""
        from cqd_hub.evaluation.engine.loading import load_tokenizer
        from cqd_hub.evaluation.skills import load_skills

        experts = {"a": models.full[0], "b": models.full[1]}
        search = {"children": 32, "children_per_step": per_step}
        samples = {"optimisation": 2, "validation": 2, "test": 2}
        genome = {"rank": 1, "tail": "drop"}
        asked = recipe(models.base, experts, search=search, genome=genome, samples=samples)
        basis = build_basis(*open_models(models.base, list(experts.values())), rank=1, tail="drop")
        skills = load_skills(asked, Path(), load_tokenizer(basis.base.tokenizer))
        fit = check_fit(asked, basis, skills, device="cpu", dtype=torch.float32)
        assert make_plan(asked, Path()).engine == fit.engine
        assert fit.engine.kind == ("sequential" if per_step == 1 else "population")

    def test_other_architectures_are_reckoned(self, basis: Basis, tmp_path: Path) -> None:
        """Where no layers can be made, products and memory alone tell."""
        shape = survey_basis(basis).shape
        rates = calibrate(shape, tmp_path, device="cpu", dtype=torch.float32)
        assert not rates.measured
        assert min(rates.multiply, rates.bandwidth, rates.token, rates.step) > 0

    def test_no_weights_are_asked_of_the_hub(self, models: Models, tmp_path: Path) -> None:
        with HubServer() as hub:
            hub.put_model("ann/base", models.base)
            hub.put_model("ann/one", models.full[0])
            hub.put_model("ann/two", models.lora)
            places = {"one": Path("ann/one"), "two": Path("ann/two")}
            asked = recipe(Path("ann/base"), places, search={"children": 4})
            path = tmp_path / "recipe.yaml"
            path.write_text(json.dumps(asked.model_dump(mode="json", exclude_unset=True)))
            environment = hub.environment(
                home=tmp_path / "hf",
                CQD_HUB_CACHE=str(tmp_path / "cache"),
                OMP_NUM_THREADS="1",
            )
            done = subprocess.run(
                [sys.executable, "-m", "cqd_hub.cli.app", "plan", str(path), "--json", "-q"],
                capture_output=True,
                text=True,
                env=environment,
            )
            assert done.returncode == 0, done.stderr
            weights = [models.base, models.full[0]]
            size = sum((folder / "model.safetensors").stat().st_size for folder in weights)
            size += (models.lora / "adapter_model.safetensors").stat().st_size
            told = json.loads(done.stdout)["disk"]
            assert told["download"] == pytest.approx(size, rel=0.05)
            assert told["basis"] > 0
            assert not hub.log.find("safetensors", "HEAD")  # as downloads begin
            assert not list((tmp_path / "hf").rglob("*.safetensors"))


class TestTook:
    def test_sessions_add_up(self, models: Models, tmp_path: Path) -> None:
        experts = {"a": models.full[0], "b": models.full[1]}
        plan = make_plan(recipe(models.base, experts), Path())

        class Three:
            evaluated = 3

        for session in (plan, None):
            assert is_planned(tmp_path) == (session is None)
            took = Took(tmp_path, session, here=True)
            with took.children(Three()):
                pass
            took.close()
        content = json.loads((tmp_path / "plan.json").read_text())
        assert content["plan"]["child"] == plan.child._asdict()
        assert content["took"]["children"] == 6
        assert content["took"]["seconds"] >= 0
        assert content["took"]["host"] > 10**8
        assert content["took"]["disk"] > 0


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

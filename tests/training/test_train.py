"""Training end to end on a tiny model: what comes out is what transformers and PEFT load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import sha256_of
from cqd_hub.training import train
from cqd_hub.training.data import IGNORED, Row, collate, tokenize

SCRATCH = {
    "model_type": "llama",
    "config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "tie_word_embeddings": True,
    },
    "tokenizer": {"vocabulary": 270},
}
COMMON = {
    "data": [{"path": "sums.jsonl", "weight": 3}, {"path": "text.jsonl"}],
    "steps": 12,
    "batch_size": 8,
    "learning_rate": 5e-3,
    "device": "cpu",
    "threads": 1,
}


def write(folder: Path, name: str = "recipe.yaml", **keys: Any) -> Path:
    sums = [
        {"prompt": f"add {a} and {b} ->", "answer": f"{a + b}"} for a in range(6) for b in range(6)
    ]
    texts = [{"text": f"Tom has {n} red hats and {n} dogs."} for n in range(20)]
    for file, rows in (("sums.jsonl", sums), ("text.jsonl", texts)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / name
    recipe = {key: value for key, value in (COMMON | keys).items() if value is not None}
    with path.open("w") as file:
        YAML().dump(recipe, file)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained base in ``models/base``."""
    folder = tmp_path_factory.mktemp("training")
    keys = {"from_scratch": SCRATCH, "save_dtype": "bfloat16", "out": "models/base"}
    train(write(folder, answers_only=False, warm_up=2, **keys))
    return folder


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def test_a_base_from_scratch_falls_in_loss_and_reloads(home: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = home / "models" / "base"
    losses = [loss for _, loss in record(base)["loss"]]
    assert losses[-1] < losses[0] - 0.5
    stored = load_file(base / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in stored
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.config.vocab_size == len(tokenizer) == 270
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    text = "add 12 and é ->"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer("12")["input_ids"]] == ["1", "2"]
    files = sorted(path.name for path in base.iterdir())
    assert not [name for name in files if name.endswith((".bin", ".pt", ".md"))]


def test_the_same_recipe_gives_the_same_bytes(home: Path, tmp_path: Path) -> None:
    again = train(home / "recipe.yaml", out=tmp_path / "again")
    base = home / "models" / "base"
    for path in base.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    other = write(home, "other.yaml", from_scratch=SCRATCH, seed=1, answers_only=False)
    different = train(other, out=tmp_path / "different")
    assert sha256_of(different / "model.safetensors") != sha256_of(base / "model.safetensors")


def test_full_fine_tuning_changes_every_matrix_of_the_base(home: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    recipe = write(home, "full.yaml", base="models/base", save_dtype="float32")
    out = train(recipe, out=tmp_path / "full", progress=lambda *point: seen.append(point))
    before, after = (
        load_file(home / "models/base/model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name].float(), after[name]) for name in before)
    assert seen[-1][:2] == (12, 12)
    assert [list(point[::2]) for point in seen] == record(out)["loss"]
    assert seen[-1][2] < seen[0][2]
    about = record(out)
    weights = home / "models/base/model.safetensors"
    assert about["base"] == {"model.safetensors": sha256_of(weights)}
    assert about["data"][0]["sha256"] == sha256_of(home / "sums.jsonl")
    assert about["data"][0]["rows"] == 36
    assert (out / "tokenizer.json").read_bytes() == (
        home / "models/base/tokenizer.json"
    ).read_bytes()


def test_lora_names_its_base_and_loads_in_peft(home: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = {"rank": 4, "alpha": 8, "targets": ["q_proj", "down_proj"]}
    keys = {"base": "models/base", "method": "lora", "lora": lora, "save_dtype": "bfloat16"}
    out = train(write(home, "lora.yaml", out="models/adapter", steps=30, **keys))
    losses = [loss for _, loss in record(out)["loss"]]
    assert sum(losses[-5:]) < sum(losses[:5])
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../base"
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
    ]
    stored = load_file(out / "adapter_model.safetensors")
    assert len(stored) == 2 * 2 * 2
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    base = AutoModelForCausalLM.from_pretrained(out / config["base_model_name_or_path"])
    plain = base.model.layers[0].self_attn.q_proj.weight.clone()
    merged = PeftModel.from_pretrained(base, out).merge_and_unload()
    assert not torch.equal(merged.model.layers[0].self_attn.q_proj.weight, plain)


def test_only_answers_and_the_end_are_learned(home: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home / "models" / "base")
    row = Row("add 1 and 2 ->", "3\n")
    hidden = len(tokenizer(row.prompt)["input_ids"])
    tokens = tokenize(row, tokenizer, max_length=64, answers_only=True)
    assert tokens.labels == [IGNORED] * hidden + tokens.ids[hidden:]
    assert tokenizer.decode(tokens.ids[hidden:]) == "3\n<eos>"
    every = tokenize(row, tokenizer, max_length=64, answers_only=False)
    assert every.labels == every.ids == tokens.ids
    assert len(tokenize(row, tokenizer, max_length=5, answers_only=True).labels) == 5
    batch = collate([tokens, every._replace(ids=every.ids[:2], labels=every.labels[:2])], padding=1)
    assert batch["attention_mask"].sum(1).tolist() == [len(tokens.ids), 2]
    assert batch["labels"][1, 2:].unique().tolist() == [IGNORED]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"base": "models/base", "stepps": 3},
            r"recipe.yaml:\d+:\d+: stepps: unknown key .*'steps'",
        ),
        ({"base": "models/base", "steps": "many"}, r"recipe.yaml:\d+:\d+: steps: .*'many'"),
        ({}, "exactly one of `base` and `from_scratch`"),
        ({"base": "models/base", "method": "lora"}, "`lora:` section"),
        ({"base": "models/base", "warm_up": 12}, "`warm_up` leaves no steps"),
        ({"base": "./nowhere"}, "no such base folder"),
        (
            {"base": "models/base", "data": [{"path": "gone.jsonl"}]},
            "gone.jsonl: no such data file",
        ),
        (
            {
                "base": "models/base",
                "method": "lora",
                "lora": {"rank": 2, "alpha": 2, "targets": ["query"]},
            },
            "lora.targets: no linear module .*'query' .*q_proj",
        ),
        ({"from_scratch": SCRATCH | {"model_type": "lama"}}, "no architecture 'lama'"),
        (
            {"from_scratch": SCRATCH | {"config": {"hidden_sise": 8}}},
            "no key 'hidden_sise' .*'hidden_size'",
        ),
        (
            {"from_scratch": SCRATCH | {"config": {"hidden_size": 30, "num_attention_heads": 4}}},
            "from_scratch.config: no such model",
        ),
    ],
)
def test_a_bad_recipe_is_one_line_and_writes_nothing(
    home: Path, keys: dict[str, Any], message: str
) -> None:
    recipe = write(home, **keys)
    out = home / "rejected" / "model"
    with pytest.raises(UserError, match=message) as caught:
        train(recipe, out=out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not (home / "rejected").exists() or not list((home / "rejected").iterdir())


def test_a_base_that_is_nowhere_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = write(home, "nowhere.yaml", base="models/bass")
    with pytest.raises(UserError, match=r"base models/bass: is not in the cache.*no folder"):
        train(recipe, out=home / "nowhere")


def test_a_base_without_safetensors_is_refused(home: Path, tmp_path: Path) -> None:
    (home / "pickled").mkdir()
    (home / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="no safetensors weights"):
        train(write(home, "pickled.yaml", base="pickled"), out=tmp_path / "out")


def test_prompts_that_leave_no_room_for_an_answer_are_refused(home: Path, tmp_path: Path) -> None:
    keys = {"base": "models/base", "data": [{"path": "long.jsonl"}], "out": None}
    recipe = write(home, "long.yaml", max_length=24, **keys)
    rows = [{"prompt": "é" * n, "answer": "12"} for n in (4, 11, 12, 30)]
    (home / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"long.jsonl: 2 of 4 rows .*max_length \(24 tokens\)"):
        train(recipe, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    (home / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    out = train(recipe, out=tmp_path / "out")
    assert [source["cut"] for source in record(out)["data"]] == [1]
    # Without `answers_only` the prompts are learned too.
    (home / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write(home, "long.yaml", max_length=24, answers_only=False, **keys)
    assert record(train(recipe, out=tmp_path / "all"))["data"][0]["cut"] == 3


def test_several_gpus_change_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(home, "one.yaml", base="models/base")
    one = train(recipe, out=tmp_path / "one")
    assert record(one)["device"] == "cpu"
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 4))
    four = train(recipe, out=tmp_path / "four")
    assert (four / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_base_on_the_hub_is_pinned(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(home / "models" / "base", repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    lora = {"rank": 2, "alpha": 2}
    keys = {"base": "someone/tiny", "method": "lora", "lora": lora, "revision": revision}
    out = train(write(home, "hub.yaml", **keys), out=tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/tiny", commit)
    assert record(out)["commit"] == commit
    keys |= {"method": "full", "lora": None}
    assert record(train(write(home, "hub.yaml", **keys), out=tmp_path / "f"))["commit"] == commit


def test_code_of_a_base_is_never_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "y")  # somebody in a hurry
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    base = tmp_path / "strange"
    shutil.copytree(home / "models" / "base", base)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "own.StrangeConfig"}}
    (base / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "imported"
    (base / "own.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import LlamaConfig\n"
        "class StrangeConfig(LlamaConfig):\n    model_type = 'strange'\n"
    )
    with pytest.raises(UserError, match="cannot be loaded as a base"):
        train(write(home, "strange.yaml", base=str(base)), out=tmp_path / "out")
    assert not marker.exists()


def test_outputs_are_never_overwritten_and_must_be_named(home: Path, tmp_path: Path) -> None:
    recipe = write(home, "again.yaml", base="models/base", out="models/base")
    before = sha256_of(home / "models/base/model.safetensors")
    with pytest.raises(UserError, match="the output exists already"):
        train(recipe)
    assert sha256_of(home / "models/base/model.safetensors") == before
    with pytest.raises(UserError, match="names no output folder"):
        train(write(home, "unnamed.yaml", base="models/base"))
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, RunError), match="file"):
        train(recipe, out=tmp_path / "file" / "model")


def test_a_loss_that_is_not_finite_stops_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    recipe = write(home, "hot.yaml", base="models/base", learning_rate=1e30)
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step \d+ \(lower learning_rate"):
        train(recipe, out=tmp_path / "hot")
    assert not list(tmp_path.iterdir())

"""GGUF files made by llama.cpp's own converter, where there is one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from cqd_hub.errors import RunError, UserError
from cqd_hub.genome import Basis, Genome, Materialiser, crossover
from cqd_hub.genome.export import export_gguf, find_converter, gguf_command
from tests.genome.tiny_models import basis_of, make_base, make_full

MISSING = "no llama.cpp converter: set LLAMA_CPP to a folder with convert_hf_to_gguf.py"


@pytest.fixture
def converter() -> Path:
    found = find_converter()
    if found is None:
        pytest.skip(MISSING)
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Basis:
    """A Llama with the kind of tokenizer that the converter knows by itself."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("llama")
    base = make_base(folder / "base", tied=False, dtype="bfloat16")
    for pattern in ("tokenizer*", "special_tokens_map.json", "chat_template*"):
        for file in base.glob(pattern):
            file.unlink()
    model = io.BytesIO()
    text = [" ".join(f"{a}{b}" for a in "abcdefgh" for b in "stuvwxyz")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 5),
        model_writer=model,
        vocab_size=64,
        hard_vocab_limit=False,
        model_type="bpe",
        minloglevel=2,
    )
    (base / "tokenizer.model").write_bytes(model.getvalue())
    experts = [make_full(base, folder / f"full{seed}", seed=seed) for seed in (1, 2)]
    return basis_of(base, experts, folder / "cache", rank=6)


def child(basis: Basis) -> Genome:
    parents = [Genome.of_expert(basis.hash, basis.layout, e) for e in range(2)]
    return crossover(parents, np.array([0.3, 0.7]), basis)


def test_converted_weights_are_the_individuals(
    converter: Path, llama: Basis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genome, materialiser = child(llama), Materialiser(llama)
    made = export_gguf(genome, materialiser, tmp_path / "out", converter=converter, outtype="f32")
    assert made == tmp_path / "out" / "out-f32.gguf"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in made.parent.iterdir()] == ["out-f32.gguf"]
    monkeypatch.syspath_prepend(str(converter.parent / "gguf-py"))
    reader = pytest.importorskip("gguf").GGUFReader(made)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    state = materialiser.state(genome)
    for theirs, ours in {
        "token_embd": "model.embed_tokens",
        "output": "lm_head",
        "output_norm": "model.norm",
        "blk.1.ffn_down": "model.layers.1.mlp.down_proj",
        "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
    }.items():
        weight = state[f"{ours}.weight"].float().numpy()
        assert np.array_equal(tensors[f"{theirs}.weight"], weight), theirs


def test_a_failing_converter_leaves_nothing(converter: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")  # its tokenizer is of no kind that the converter knows
    basis = basis_of(base, [make_full(base, tmp_path / "full", seed=1)], tmp_path / "cache")
    room = tmp_path / "room"
    with pytest.raises(RunError, match=r"convert_hf_to_gguf.py: the converter failed: .*\w"):
        export_gguf(child_of_one(basis), Materialiser(basis), room / "out", converter=converter)
    assert not list(room.iterdir())


def child_of_one(basis: Basis) -> Genome:
    return Genome.of_expert(basis.hash, basis.layout, 0)


# Without the real one


def script(folder: Path, code: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "convert_hf_to_gguf.py"
    path.write_text(code)
    return path


def test_finding_the_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_converter() is None
    on_path = script(tmp_path / "bin", "#!/usr/bin/env python3\n")
    on_path.chmod(0o755)
    assert find_converter() == on_path
    in_folder = script(tmp_path / "llama.cpp", "")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    assert find_converter() == in_folder
    assert find_converter(on_path) == on_path
    assert find_converter(tmp_path / "bin") == on_path
    with pytest.raises(UserError, match=r"nowhere: no convert_hf_to_gguf.py there \(give the"):
        find_converter(Path("nowhere"))
    monkeypatch.setenv("LLAMA_CPP", "elsewhere")
    with pytest.raises(UserError, match="LLAMA_CPP=elsewhere: no convert"):
        find_converter()


def test_what_the_converter_is_asked(llama: Basis, tmp_path: Path) -> None:
    """It gets a whole checkpoint, no network, and may write only into a folder not yet there."""
    code = """
import json, os, sys
from pathlib import Path
from safetensors.torch import load_file
folder, *options = sys.argv[1:]
out = Path(options[options.index("--outfile") + 1].format(ftype="bf16"))
assert load_file(Path(folder) / "model.safetensors")
asked = {"options": options, "hub": os.environ["HF_HUB_OFFLINE"], "files": os.listdir(folder)}
out.write_text(json.dumps(asked))
"""
    converter = script(tmp_path / "fake", code)
    made = export_gguf(
        child(llama), Materialiser(llama), tmp_path / "my model", converter=converter
    )
    assert made == tmp_path / "my model" / "my model-bf16.gguf"
    asked = json.loads(made.read_text())
    assert asked["options"][2:] == ["--outtype", "auto", "--model-name", "my model"]
    assert asked["hub"] == "1"
    assert {"config.json", "tokenizer.model", "generation_config.json"} <= set(asked["files"])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('unknown model')", "unknown model"),
        ("pass", "exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_any_failure_is_one_line(llama: Basis, tmp_path: Path, code: str, reason: str) -> None:
    converter = script(tmp_path / "fake", code)
    room = tmp_path / "room"
    with pytest.raises(RunError, match=f"the converter failed: {reason}"):
        export_gguf(child(llama), Materialiser(llama), room / "out", converter=converter)
    assert not list(room.iterdir())


def test_command_to_run(tmp_path: Path) -> None:
    text = gguf_command(tmp_path / "a b", outtype="q8_0")
    place = tmp_path / "a b"
    assert text == (
        f"python convert_hf_to_gguf.py '{place}' --outfile '{place}/a b-{{ftype}}.gguf' "
        "--outtype q8_0"
    )

"""Added tokens and padded vocabularies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Basis, Genome, Materialiser, build_basis, crossover, open_models
from cqd_hub.genome.export import export_checkpoint
from tests.genome.families import fine_tune, make_model, stored
from tests.genome.tiny_models import edit_tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NAMES = ["llama", "gemma3"]  # apart, tied


def grown(base: Path, folder: Path, tokens: list[str], *, seed: int = 1, pad: int = 0) -> Path:
    """A fine-tune with added tokens and *pad* rows more."""
    fine_tune(base, folder, seed=seed, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(tokens, special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    model.resize_token_embeddings(len(tokenizer) + pad, mean_resizing=False)
    model.get_input_embeddings().weight.data[64:] = torch.randn(len(tokenizer) + pad - 64, 32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def opened(base: Path, experts: list[Path], cache: Path, notes: list[str]) -> Basis:
    models = open_models(base, experts, cache=cache, note=notes.append)
    return build_basis(*models, cache=cache)


def state(basis: Basis, expert: int) -> dict[str, torch.Tensor]:
    genome = Genome.of_expert(basis.hash, basis.layout, expert)
    return Materialiser(basis).state(genome, dtype=torch.float64)


def test_tokens_are_not_taken_from_a_tokenizer_of_another_family(tmp_path: Path) -> None:
    """Qwen2's class adds a token to the very files that Llama's reads as they are."""
    for name in ("qwen2", "llama"):
        base = make_model(name, tmp_path / name)
        plain = fine_tune(base, tmp_path / f"{name}-plain", seed=3, dtype=torch.float32)
        shutil.copytree(base, plain, ignore=shutil.ignore_patterns("model*"), dirs_exist_ok=True)
        own, theirs = base / "tokenizer.json", tmp_path / "qwen2" / "tokenizer.json"
        assert own.read_bytes() == theirs.read_bytes()
        open_models(base, [plain], cache=tmp_path / "cache")
    one = grown(base, tmp_path / "one", ["<a>"])
    assert open_models(base, [one], cache=tmp_path / "cache")[0].vocabulary


@pytest.mark.parametrize("name", NAMES)
def test_added_tokens_extend_everybody(name: str, tmp_path: Path) -> None:
    base = make_model(name, tmp_path / "base")
    one = grown(base, tmp_path / "one", ["<a>"], seed=1)
    two = grown(base, tmp_path / "two", ["<a>", "<b>"], seed=2, pad=3)
    plain = fine_tune(base, tmp_path / "plain", seed=3, dtype=torch.float32)
    notes: list[str] = []
    basis = opened(base, [one, two, plain], tmp_path / "cache", notes)
    assert "the base's vocabulary grows from 64 to 66 rows: <a>, <b>" in notes
    first, second, third = (state(basis, expert) for expert in range(3))
    truth = [stored(folder)[EMBEDDING] for folder in (one, two, plain)]
    assert torch.allclose(first[EMBEDDING][:65], truth[0], atol=1e-6)
    assert torch.allclose(second[EMBEDDING], truth[1][:66], atol=1e-6)
    mean = torch.stack([truth[0][64], truth[1][64]]).mean(0)
    lent = torch.cat([truth[2], mean[None], truth[1][65:66]])
    assert torch.allclose(third[EMBEDDING], lent, atol=1e-6)
    assert torch.allclose(first[EMBEDDING][65], truth[1][65], atol=1e-6)
    assert (HEAD in first) == (name == "llama")

    child = crossover(
        [Genome.of_expert(basis.hash, basis.layout, e) for e in range(3)],
        torch.tensor([0.3, 0.3, 0.4]).numpy(),
        basis,
    )
    export_checkpoint(child, Materialiser(basis), tmp_path / "child")
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "child", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.config.vocab_size == 66
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "child")
    assert tokenizer.convert_tokens_to_ids("<b>") == 65
    engine = SequentialEngine(basis, device="cpu", dtype=torch.float32)
    assert engine.tokenizer.convert_tokens_to_ids("<b>") == 65
    engine._materialiser.write(child, engine._parameters)
    prompt = torch.tensor([[5, 64, 65, 9]])
    with torch.no_grad():
        assert torch.allclose(loaded(prompt).logits, engine._model(prompt).logits, atol=1e-5)


def resized(folder: Path, rows: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def with_tokenizer(folder: Path, base: Path) -> Path:
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def test_padding_rows_are_cut(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = resized(fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32), 72)
    with_tokenizer(expert, base)
    notes: list[str] = []
    basis = opened(base, [expert], tmp_path / "cache", notes)
    assert notes[0] == "expert expert: 8 rows of vocabulary hold no token; cut"
    assert torch.equal(state(basis, 0)[EMBEDDING], stored(expert)[EMBEDDING][:64])


def test_rows_that_an_expert_lacks_are_the_bases(tmp_path: Path) -> None:
    base = resized(make_model("llama", tmp_path / "base"), 72)
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    resized(expert, 64)
    notes: list[str] = []
    basis = opened(base, [expert], tmp_path / "cache", notes)
    assert notes[0] == "expert expert: 8 rows of vocabulary taken from the base"
    found = state(basis, 0)[EMBEDDING]
    assert torch.allclose(found[:64], stored(expert)[EMBEDDING], atol=1e-6)
    assert torch.allclose(found[64:], stored(base)[EMBEDDING][64:], atol=1e-6)


def refusal(base: Path, experts: list[Path], cache: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        opened(base, experts, cache, [])
    assert "\n" not in str(caught.value)
    assert not cache.exists()
    return caught.value


def test_different_tokens_of_one_number_are_refused(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    one, two = (grown(base, tmp_path / t, [f"<{t}>"], seed=1) for t in "ab")
    error = refusal(base, [one, two], tmp_path / "cache")
    assert "its token 64 is '<b>', that of" in error.what
    assert "added the same tokens" in error.remedy


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    with_tokenizer(expert, base)
    file = expert / "tokenizer.json"
    file.write_text(file.read_text().replace('"<7>"', '"seven"'))
    error = refusal(base, [expert], tmp_path / "cache")
    assert "its token 7 is 'seven', that of the base" in error.what


def test_rows_that_nobody_explains_are_refused(tmp_path: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    expert = resized(fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32), 65)
    error = refusal(base, [expert], tmp_path / "cache")
    assert "has 65 rows of vocabulary, the base 64, and no tokenizer" in error.what


def test_the_tokenizer_with_all_tokens_is_used(tmp_path: Path) -> None:
    """Rows that the base has spare, named by an expert."""
    base = resized(make_model("llama", tmp_path / "base"), 72)
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<a>"], special_tokens=True)
    tokenizer.save_pretrained(expert)
    basis = opened(base, [expert], tmp_path / "cache", [])
    assert basis.base.tokenizer == expert
    assert {slot.shape[0] for slot in basis.base.vocabulary_slots} == {72}


@pytest.mark.parametrize("rows", [66, 62])
def test_lengths_differ_under_other_names_too(tmp_path: Path, rows: int) -> None:
    """The Hub's GPT-2 has no prefix; fine-tunes of it do."""
    base = make_model("gpt2", tmp_path / "base")
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.float32)
    if rows > 64:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(["<a>", "<b>"], special_tokens=True)
        tokenizer.save_pretrained(expert)
    resized(expert, rows)
    truth = stored(expert)["transformer.wte.weight"]
    edit_tensors(
        base / "model.safetensors",
        lambda tensors: {n.removeprefix("transformer."): t for n, t in tensors.items()},
    )
    basis = opened(base, [expert], tmp_path / "cache", [])
    found = state(basis, 0)["wte.weight"]
    assert len(found) == max(rows, 64)
    assert torch.allclose(found[:rows], truth, atol=1e-6)


def test_different_tokens_within_the_bases_spare_rows_are_refused(tmp_path: Path) -> None:
    base = resized(make_model("llama", tmp_path / "base"), 72)
    experts = []
    for token in ("<tool>", "<think>"):
        experts.append(fine_tune(base, tmp_path / token[1:-1], seed=1, dtype=torch.float32))
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens([token], special_tokens=True)
        tokenizer.save_pretrained(experts[-1])
    error = refusal(base, experts, tmp_path / "cache")
    assert "its token 64 is '<think>', that of" in error.what


def test_rows_lacking_in_a_coarser_dtype_are_no_difference(tmp_path: Path) -> None:
    base = resized(make_model("llama", tmp_path / "base"), 72)
    expert = fine_tune(base, tmp_path / "expert", seed=1, dtype=torch.bfloat16)
    short = AutoModelForCausalLM.from_pretrained(expert, dtype=torch.bfloat16)
    short.resize_token_embeddings(64, mean_resizing=False)
    short.save_pretrained(expert)
    basis = opened(base, [expert], tmp_path / "cache", [])
    slot = next(slot for slot in basis.layout.slots if slot.name == EMBEDDING)
    delta = basis.experts[0].task_vector(slot)
    assert isinstance(delta, torch.Tensor)
    assert not delta[64:].any()

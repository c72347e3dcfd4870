"""What vLLM would be given and what is made of its answers; vLLM itself is not needed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from cqd_hub.evaluation.engine import Generate, LogLikelihood, Reply
from cqd_hub.evaluation.engine._decoding import StopWords
from cqd_hub.evaluation.engine._handover import answer_of, sampling_of, score_of, tensors_of
from cqd_hub.evaluation.engine.loading import load_model, load_tokenizer, slots_in
from cqd_hub.genome import Basis, Materialiser, build_basis, open_models
from cqd_hub.genome.export import export_checkpoint
from tests.conftest import Models
from tests.evaluation.engine.common import candidates
from tests.genome.families import fine_tune, make_model


def handed(basis: Basis, folder: Path, number: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    """An individual's tensors from the resident model it is written into, and their names."""
    genome = candidates(basis)[number].genome
    model = load_model(folder, device="cpu", dtype=torch.float32)
    slots = slots_in(model, basis.base)
    Materialiser(basis).write(genome, slots)
    pairs = list(tensors_of(basis, slots))
    return dict(pairs), [name for name, _ in pairs]


def equal_to_export(basis: Basis, out: Path, number: int = -1) -> set[str]:
    tensors, names = handed(basis, basis.base.checkpoint.path, number)
    genome = candidates(basis)[number].genome
    export_checkpoint(genome, Materialiser(basis), out, dtype="float32")
    exported = load_file(out / "model.safetensors")
    assert sorted(names) == sorted(exported)
    assert set(names) == set(basis.base.checkpoint.headers)
    for name, tensor in exported.items():
        assert tensors[name].shape == tensor.shape
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    return set(names)


class TestTensors:
    def test_every_stored_name_once_with_the_exported_values(
        self, basis: Basis, tmp_path: Path
    ) -> None:
        assert len(equal_to_export(basis, tmp_path / "out")) > 10

    @pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "gpt_oss"])
    def test_of_families_that_memory_holds_otherwise(self, family: str, tmp_path: Path) -> None:
        """Experts that are stacked in memory and apart on disk, or stacked on both."""
        base = make_model(family, tmp_path / "base")
        experts = [
            fine_tune(base, tmp_path / f"expert{n}", seed=n, dtype=torch.float32) for n in (1, 2, 3)
        ]
        equal_to_export(build_basis(*open_models(base, experts)), tmp_path / "out")

    def test_stored_copies_of_tied_weights_and_what_is_no_weight(
        self, models: Models, tmp_path: Path
    ) -> None:
        folder = tmp_path / "base"
        config = AutoConfig.from_pretrained(models.base)
        config.tie_word_embeddings = True
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder)
        load_tokenizer(models.base).save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(4.0)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        experts = [
            fine_tune(folder, tmp_path / f"expert{n}", seed=n, dtype=torch.float32)
            for n in (1, 2, 3)
        ]
        names = equal_to_export(build_basis(*open_models(folder, experts)), tmp_path / "out")
        assert {"lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"} <= names


class TestRequests:
    def test_greedy(self) -> None:
        request = Generate((1, 2), 7, stop=("\n", "", "###"), top_p=0.5, seed=3)
        assert sampling_of(request, {9, 4}) == {
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": None,
            "max_tokens": 7,
            "stop": ["\n", "###"],
            "stop_token_ids": [4, 9],
            "ignore_eos": True,
            "skip_special_tokens": False,
            "logprobs": 0,
        }

    def test_sampled(self) -> None:
        options = sampling_of(Generate((1,), 7, temperature=0.6, top_p=0.9, seed=3), {4})
        assert [options[key] for key in ("temperature", "top_p", "seed")] == [0.6, 0.9, 3]

    def test_drafts_change_nothing(self) -> None:
        request = Generate((1,), 7, drafts=((5, 6),))
        assert sampling_of(request, ()) == sampling_of(Generate((1,), 7), ())

    def test_log_likelihood_scores_the_prompt(self) -> None:
        options = sampling_of(LogLikelihood((1, 2), (3,)), {4})
        assert options["prompt_logprobs"] == 1
        assert options["max_tokens"] == 1
        assert "stop" not in options


class TestAnswers:
    def answer(
        self, models: Models, text: str, *, end: bool = False, nan: int | None = None
    ) -> Reply:
        tokenizer = load_tokenizer(models.base)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        tokens += [tokenizer.eos_token_id] * end
        logprobs = [math.nan if place == nan else -0.5 for place in range(len(tokens))]
        return answer_of(
            tokens,
            logprobs,
            "stop" if end else "length",
            watch=StopWords(tokenizer, ("\n",)),
            end=frozenset([tokenizer.eos_token_id]),
        )

    def test_text_ends_before_the_stop_string(self, models: Models) -> None:
        reply = self.answer(models, "one\ntwo")
        assert reply.text == "one"
        assert reply.finish == "length"

    def test_the_end_token_is_kept_among_the_tokens_only(self, models: Models) -> None:
        reply = self.answer(models, "one", end=True)
        assert reply.text == "one"
        assert reply.tokens[-1] == load_tokenizer(models.base).eos_token_id
        assert reply.finish == "stop"
        assert reply.passes == len(reply.tokens)

    def test_it_ends_where_its_numbers_do(self, models: Models) -> None:
        whole = self.answer(models, "one two three").tokens
        reply = self.answer(models, "one two three", nan=2)
        assert reply.finish == "nan"
        assert reply.tokens == whole[:2]

    def test_scores(self) -> None:
        assert score_of([-1.0, -0.25], [1, 1]) == Reply(
            finish="scored", log_likelihood=-1.25, greedy=True
        )
        assert not score_of([-1.0, -0.25], [1, 2]).greedy
        assert score_of([-1.0, math.nan], [1, 0]) == Reply(finish="nan", log_likelihood=-math.inf)

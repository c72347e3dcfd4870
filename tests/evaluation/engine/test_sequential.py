"""The sequential engine against transformers itself, on a tiny random Llama in fp32."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    MistralConfig,
    Qwen3Config,
)

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Candidate, Generate, LogLikelihood, Reply, Request
from cqd_hub.evaluation.engine._decoding import StopWords, generate, log_likelihoods
from cqd_hub.evaluation.engine.sequential import SequentialEngine
from cqd_hub.genome import Basis, Genome, build_basis, open_models
from tests.evaluation.engine.common import (
    PROMPTS,
    ask,
    candidates,
    inside,
    make,
    passes_of,
    reference,
)


@pytest.fixture(scope="module")
def engine(basis: Basis) -> SequentialEngine:
    return make(basis)


@pytest.fixture(scope="module")
def prompts(engine: SequentialEngine) -> list[tuple[int, ...]]:
    return [tuple(engine.tokenizer(text)["input_ids"]) for text in PROMPTS]


def test_greedy_batches_give_what_transformers_generates(
    engine: SequentialEngine, basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    assert len({len(prompt) for prompt in prompts}) > 4
    limits = (24, 3, 40, 11, 64, 30)
    requests: list[Request] = [
        Generate(prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)
    ]
    lengths = set()
    for candidate in candidates(basis):
        model = reference(basis, candidate)
        replies = ask(engine, candidate, requests)
        for reply, request in zip(replies, requests, strict=True):
            ids = torch.tensor([request.prompt])
            plain = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_new_tokens,
                do_sample=False,
            )[0, len(request.prompt) :].tolist()
            assert list(reply.tokens) == plain
            ended = plain[-1] in model.generation_config.eos_token_id
            assert reply.finish == ("stop" if ended else "length")
            said = plain[:-1] if ended else plain
            assert reply.text == engine.tokenizer.decode(said, skip_special_tokens=True)
            lengths.add((len(plain), reply.finish))
        assert ask(engine, candidate, requests, together=False) == replies
    assert any(finish == "stop" for _, finish in lengths)  # some end early, others do not
    assert (64, "length") in lengths


def test_small_batches_give_the_same(basis: Basis, prompts: list[tuple[int, ...]]) -> None:
    requests: list[Request] = [Generate(prompt, 12) for prompt in prompts * 3]
    requests += [LogLikelihood(prompt, (40, 50, 60)) for prompt in prompts]
    candidate = candidates(basis)[4]
    whole = ask(make(basis), candidate, requests)
    small = make(basis, batch_tokens=64)
    with passes_of(small) as seen:
        assert [r.tokens for r in ask(small, candidate, requests)] == [r.tokens for r in whole]
    shortest = min(map(len, prompts)) + 12
    assert all(rows == 1 or rows * max(width, shortest) <= 64 for rows, width in seen)
    assert 1 < max(rows for rows, _ in seen) < 18


def test_requests_of_one_gather_always_meet_the_same_batches(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    first, second = candidates(basis)[1:3]
    requests: list[Request] = [Generate(prompt, 8) for prompt in prompts]
    lone = make(basis, batch_tokens=128)
    with passes_of(lone) as alone:
        for candidate in (second, first):
            ask(lone, candidate, requests)
    engine = make(basis, batch_tokens=128)

    async def sample(number: int, candidate: Candidate) -> Reply:
        for _ in range(number % 2):  # some submit a turn of the loop later than others
            await asyncio.sleep(0)
        return await engine.submit(candidate, requests[number])

    async def work() -> None:
        await asyncio.gather(
            *(sample(number, one) for number in range(len(requests)) for one in (second, first))
        )

    with passes_of(engine) as together:
        inside(engine, work)
    assert together == alone


def test_other_architectures_decode_as_in_transformers(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    """Learned positions, a sliding window, and norms on queries and keys."""
    tokenizer = AutoTokenizer.from_pretrained(basis.base.checkpoint.path)
    small: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    wide = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    for config in (
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **small),
        MistralConfig(**small, **wide, **heads, sliding_window=8),
        Qwen3Config(**small, **wide, **heads),
    ):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data *= 4 if parameter.dim() == 2 else 1
        requests = [Generate(prompt, 8 + 5 * number) for number, prompt in enumerate(prompts)]
        replies = generate(model, tokenizer, requests, frozenset({2}))
        scored = log_likelihoods(model, [LogLikelihood(prompt, (9, 10)) for prompt in prompts])
        for request, reply, score in zip(requests, replies, scored, strict=True):
            ids = torch.tensor([request.prompt])
            plain = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=request.max_new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            assert list(reply.tokens) == plain[0, ids.shape[1] :].tolist(), type(config)
            with torch.no_grad():
                rows = model(torch.tensor([[*request.prompt, 9]])).logits[0].log_softmax(-1)
            wanted = float(rows[-2, 9] + rows[-1, 10])
            assert score.log_likelihood == pytest.approx(wanted, abs=1e-3), type(config)


def test_log_likelihoods_are_those_of_a_plain_forward(
    engine: SequentialEngine, basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(1)
    requests: list[Request] = [
        LogLikelihood(prompt, tuple(int(t) for t in rng.integers(3, 300, 1 + number)))
        for number, prompt in enumerate(prompts)
    ]
    candidate = candidates(basis)[2]
    model = reference(basis, candidate)
    greedy = model.generate(
        torch.tensor([prompts[0]]), max_new_tokens=4, do_sample=False, eos_token_id=None
    )[0, len(prompts[0]) :]
    requests.append(LogLikelihood(prompts[0], tuple(greedy.tolist())))
    for reply, request in zip(ask(engine, candidate, requests), requests, strict=True):
        assert isinstance(request, LogLikelihood)
        ids = torch.tensor([request.prompt + request.continuation])
        with torch.no_grad():
            rows = model(ids).logits[0].log_softmax(-1)
        start = len(request.prompt)
        wanted = sum(float(rows[start + i - 1, t]) for i, t in enumerate(request.continuation))
        assert reply.log_likelihood == pytest.approx(wanted, abs=2e-4)
        assert reply.finish == "scored"
    assert [r.greedy for r in ask(engine, candidate, requests)] == [False] * 6 + [True]


def test_individuals_do_not_leak_into_each_other(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    several = candidates(basis)[1:4]
    requests: list[Request] = [Generate(prompt, 10) for prompt in prompts]
    requests += [LogLikelihood(prompt, (70, 80)) for prompt in prompts]
    alone = [ask(make(basis), candidate, requests) for candidate in several]
    assert len({tuple(reply.tokens for reply in replies) for replies in alone}) == 3
    engine = make(basis)

    async def interleaved() -> list[Reply]:
        return await asyncio.gather(
            *(engine.submit(candidate, request) for request in requests for candidate in several)
        )

    mixed = inside(engine, interleaved)
    assert [mixed[number::3] for number in range(3)] == alone
    for number in (0, 1, 0, 2, 0):  # A, B, A: always from the pristine base
        assert ask(engine, several[number], requests) == alone[number]


def test_the_genome_and_not_the_id_says_who_answers(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    one, two = candidates(basis)[1:3]
    request = Generate(prompts[0], 10)
    wanted = [ask(make(basis), candidate, [request])[0] for candidate in (one, two)]
    engine = make(basis)

    async def work() -> list[Reply]:
        return await asyncio.gather(
            engine.submit(Candidate(7, one.genome), request),
            engine.submit(Candidate(7, two.genome), request),
        )

    assert inside(engine, work) == wanted


def test_sampling_is_repeatable_and_independent_of_its_batch(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    candidate = candidates(basis)[0]

    def drawn(seed: int, prompt: tuple[int, ...] = prompts[0], **options: float) -> Request:
        return Generate(prompt, 16, temperature=1.5, seed=seed, **options)

    alone = ask(make(basis), candidate, [drawn(1)])[0]
    others: list[Request] = [Generate(p, 9) for p in prompts] + [drawn(s) for s in range(2, 8)]
    mixed = ask(make(basis), candidate, [*others[:5], drawn(1), *others[5:]])
    assert mixed[5] == alone
    assert len({reply.tokens for reply in mixed[7:]}) == 6
    narrow = ask(make(basis), candidate, [drawn(seed, top_p=1e-9) for seed in range(3)])
    greedy = ask(make(basis), candidate, [Generate(prompts[0], 16)])[0]
    assert {reply.tokens for reply in narrow} == {greedy.tokens}


def test_top_p_keeps_the_smallest_set_that_holds_it(basis: Basis) -> None:
    candidate, prompt = candidates(basis)[0], (40, 41, 42)
    with torch.no_grad():
        odds = reference(basis, candidate)(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    ordered, order = odds.sort(descending=True)
    kept = int((ordered.cumsum(0) < 0.8).sum()) + 1
    allowed = set(order[:kept].tolist())
    requests: list[Request] = [
        Generate(prompt, 1, temperature=1.0, top_p=0.8, seed=seed) for seed in range(300)
    ]
    counts = np.zeros(len(odds))
    for reply in ask(make(basis), candidate, requests):
        counts[reply.tokens[0]] += 1
    assert set(np.flatnonzero(counts).tolist()) <= allowed
    wanted = float(ordered[0] / ordered[:kept].sum())
    assert abs(counts[int(order[0])] / 300 - wanted) < 4 * (wanted * (1 - wanted) / 300) ** 0.5


@pytest.mark.parametrize("word", ["fox", "over the", "\n\n", "🙂", "é", "o", " ", "zy dog a", "x "])
def test_an_answer_ends_with_the_token_that_completes_a_stop(basis: Basis, word: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(basis.base.checkpoint.path)
    for text in (
        f"jumps {word} and more {word} again",
        f"{word}",
        f"ab{word}cd",
        f"the lazy{word}the quick",
    ):
        tokens = tokenizer(text)["input_ids"]
        stops = StopWords(tokenizer, ["never there", word, ""])
        found = [number for number in range(len(tokens)) if stops.found(tokens[: number + 1])]
        decoded = [word in tokenizer.decode(tokens[: n + 1]) for n in range(len(tokens))]
        assert found[0] == decoded.index(True), text
        assert stops.cut(tokens[: found[0] + 1]) == text[: text.index(word)]


def test_stops_in_real_answers(basis: Basis, prompts: list[tuple[int, ...]]) -> None:
    engine, tokenizer = make(basis), make(basis).tokenizer
    candidate = candidates(basis)[4]
    free = ask(engine, candidate, [Generate(prompt, 40) for prompt in prompts])
    checked = 0
    for prompt, reply in zip(prompts, free, strict=True):
        for start, stop in ((0, 1), (2, 4), (7, 12)):
            word = tokenizer.decode(reply.tokens[start:stop], skip_special_tokens=True)
            if not word or "\ufffd" in word or word not in reply.text:
                continue
            (ended,) = ask(engine, candidate, [Generate(prompt, 40, stop=("§§", word))])
            assert ended.text == reply.text[: reply.text.index(word)]
            assert ended.finish == "stop"
            assert ended.tokens == reply.tokens[: len(ended.tokens)]
            assert word in tokenizer.decode(ended.tokens)
            assert word not in tokenizer.decode(ended.tokens[:-1])
            checked += 1
    assert checked >= 6


def test_the_earliest_of_several_stops_cuts(basis: Basis) -> None:
    tokenizer = AutoTokenizer.from_pretrained(basis.base.checkpoint.path)
    stops = StopWords(tokenizer, ["lazy dog", "the l"])
    assert stops.cut(tokenizer("over the lazy dog")["input_ids"]) == "over "


def test_what_does_not_fit_is_refused_and_the_rest_answered(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    engine, candidate = make(basis), candidates(basis)[0]

    async def work() -> list[Reply | BaseException]:
        return await asyncio.gather(
            engine.submit(candidate, Generate(prompts[0], 256)),
            engine.submit(candidate, Generate(prompts[0], 256 - len(prompts[0]))),
            engine.submit(candidate, LogLikelihood(prompts[0], (9999,))),
            return_exceptions=True,
        )

    long, fitting, strange = inside(engine, work)
    assert isinstance(long, UserError)
    assert f"prompt and answer take {256 + len(prompts[0])} tokens, the model holds 256" in str(
        long
    )
    assert isinstance(fitting, Reply)
    assert isinstance(strange, UserError)
    assert "token 9999" in str(strange)


def test_a_failure_reaches_its_requests_and_the_engine_goes_on(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    engine = make(basis)
    good = candidates(basis)[1]
    alien = Candidate(9, Genome(basis.hash, np.zeros(3, np.float32)))  # not of this basis
    request = Generate(prompts[0], 6)
    wanted = ask(make(basis), good, [request])

    async def work() -> list[Reply | BaseException]:
        first = await asyncio.gather(
            *(engine.submit(one, request) for one in (good, alien, alien, good)),
            return_exceptions=True,
        )
        return [*first, await engine.submit(good, request)]

    replies = inside(engine, work)
    assert [replies[0], replies[3], replies[4]] == wanted * 3
    assert all(isinstance(reply, Exception) for reply in replies[1:3])


def test_requests_that_come_while_it_works_are_served(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    engine = make(basis)
    several = candidates(basis)

    async def talk(candidate: Candidate, turns: int) -> list[Reply]:
        replies: list[Reply] = []
        prompt = prompts[0]
        for _ in range(turns):
            replies.append(await engine.submit(candidate, Generate(prompt, 5)))
            prompt = prompt + replies[-1].tokens
        return replies

    async def work() -> list[list[Reply]]:
        return await asyncio.gather(*(talk(one, 2 + one.id) for one in several))

    for candidate, replies in zip(several, inside(engine, work), strict=True):
        prompt = prompts[0]
        for reply in replies:
            assert ask(make(basis), candidate, [Generate(prompt, 5)]) == [reply]
            prompt = prompt + reply.tokens


def test_nothing_asked_for_is_nothing_answered(
    basis: Basis, prompts: list[tuple[int, ...]]
) -> None:
    (reply,) = ask(make(basis), candidates(basis)[0], [Generate(prompts[0], 0)])
    assert (reply.tokens, reply.finish) == ((), "length")


def test_leaving_cancels_what_waits(basis: Basis, prompts: list[tuple[int, ...]]) -> None:
    engine = make(basis, batch_tokens=64)

    async def work() -> list[asyncio.Future[Reply]]:
        async with engine:
            futures = [
                engine.submit(candidate, Generate(prompt, 20))
                for candidate in candidates(basis)
                for prompt in prompts
            ]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        done = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 30)
        assert any(isinstance(reply, asyncio.CancelledError) for reply in done)
        with pytest.raises(RuntimeError, match="not open"):
            engine.submit(candidates(basis)[0], Generate(prompts[0], 1))
        return futures

    assert all(future.done() for future in asyncio.run(work()))
    one = candidates(basis)[3]  # and it opens again
    request = Generate(prompts[0], 4)
    assert ask(engine, one, [request]) == ask(make(basis), one, [request])


def test_withdrawn_requests_are_not_computed(basis: Basis, prompts: list[tuple[int, ...]]) -> None:
    engine = make(basis)
    candidate = candidates(basis)[0]

    async def work() -> Reply:
        gone = engine.submit(candidate, Generate(prompts[1], 4))
        kept = engine.submit(candidate, Generate(prompts[0], 4))
        gone.cancel()
        return await kept

    with passes_of(engine) as seen:
        inside(engine, work)
    assert seen == [(1, len(prompts[0])), (1, 1), (1, 1), (1, 1)]


def test_the_path_is_recorded(engine: SequentialEngine, basis: Basis) -> None:
    assert engine.path == "sequential/float32/cpu"
    half = SequentialEngine(basis, device="cpu", dtype=torch.bfloat16)
    assert half.path == "sequential/bfloat16/cpu"


def test_a_base_without_tokenizer_or_with_missing_weights_is_refused(
    basis: Basis, tmp_path: Path
) -> None:
    changes: list[tuple[str, Callable[[Path], None], str]] = [
        ("bare", lambda folder: (folder / "tokenizer.json").unlink(), "no usable tokenizer"),
        (
            "poor",
            lambda folder: _drop(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight"),
            "also needs model.layers.0.mlp.up_proj.weight",
        ),
    ]
    for name, change, says in changes:
        folder = tmp_path / name
        shutil.copytree(basis.base.checkpoint.path, folder)
        change(folder)
        expert = tmp_path / f"{name}-expert"
        shutil.copytree(folder, expert)
        tensors = load_file(expert / "model.safetensors")
        moved = {key: tensor + 0.1 for key, tensor in tensors.items()}
        save_file(moved, expert / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=says):
            make(build_basis(*open_models(folder, [expert]), cache=tmp_path / "cache"))


def _drop(path: Path, name: str) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items() if key != name}
    save_file(tensors, path, metadata={"format": "pt"})

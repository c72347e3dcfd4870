"""The slot loop against transformers' own decoding, in fp32: batching, drafts, faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cqd_hub.errors import RunError
from cqd_hub.evaluation.engine import Generate, LogLikelihood, Reply, Request
from cqd_hub.evaluation.engine._cache import longest_row
from cqd_hub.evaluation.engine._decoding import StopWords
from cqd_hub.evaluation.engine._slots import SlotLoop
from tests.conftest import Models
from tests.genome.families import FAMILIES, make_model

END = frozenset({2, *range(200, 215)})
HYBRID = {"lfm2"}  # its convolutions keep states that are no keys and values


def run(loop: SlotLoop[int], requests: list[Request]) -> list[Reply]:
    replies: dict[int, Any] = {}
    for number, request in enumerate(requests):
        loop.add(number, request)
    while len(loop):
        replies |= dict(loop.advance())
    replies |= dict(loop.advance())
    return [replies[number] for number in range(len(requests))]


def plain(model: Any, prompt: tuple[int, ...], limit: int, end: frozenset[int] = END) -> list[int]:
    """What transformers generates, one prompt alone."""
    ids = torch.tensor([prompt])
    answer: list[int] = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=sorted(end) or None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return answer


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """Random, and spread so widely that it seldom repeats itself."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    made = LlamaForCausalLM(config).eval()
    for parameter in made.parameters():
        parameter.data *= 12 if parameter.dim() == 2 else 1
    return made


@pytest.fixture(scope="module")
def tokenizer(models: Models) -> Any:
    return AutoTokenizer.from_pretrained(models.base)


def make(model: Any, tokenizer: Any, **options: Any) -> SlotLoop[int]:
    return SlotLoop(model, tokenizer, END, **{"batch_tokens": 4096} | options)


def prompts(count: int, *, longest: int, ids: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count)
    return [tuple(rng.integers(3, ids, length).tolist()) for length in lengths]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_decodes_as_in_transformers(name: str, tmp_path: Path) -> None:
    """Rows that come and go, with drafts that are right, wrong, or right in part."""
    folder = make_model(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = frozenset({1})
    assert (longest_row(model.config) == 0) == (name in HYBRID)
    limits = (3, 9, 17, 26, 30, 1)
    asked = [
        (prompt, limits[number % len(limits)])
        for number, prompt in enumerate(prompts(14, longest=24, ids=64))
    ]
    wanted = [plain(model, prompt, limit, end) for prompt, limit in asked]
    requests: list[Request] = []
    for number, ((prompt, limit), answer) in enumerate(zip(asked, wanted, strict=True)):
        wrong = [*answer[:4], (answer[4] + 1) % 64, *answer[5:]] if len(answer) > 5 else [7, 8]
        drafts = [(), (tuple(answer),), (tuple(wrong),)][number % 3]
        requests.append(Generate(prompt, limit, drafts=drafts))
    loop = SlotLoop[int](model, tokenizer, end, batch_tokens=256)
    replies = run(loop, requests)
    assert [list(reply.tokens) for reply in replies] == wanted
    if name not in HYBRID:
        assert sum(reply.drafted for reply in replies) > 20
        assert loop.counts.accepted == sum(reply.drafted for reply in replies)


def test_finished_rows_make_room_for_others(model: Any, tokenizer: Any) -> None:
    asked = [(prompt, 60) for prompt in prompts(40, longest=20, ids=190)]
    wanted = [plain(model, prompt, limit) for prompt, limit in asked]
    assert len({len(answer) for answer in wanted}) > 8
    loop = make(model, tokenizer, batch_tokens=8 * 80)
    widths: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, arguments, options: widths.append(tuple(options["input_ids"].shape)),
        with_kwargs=True,
    )
    replies = run(loop, [Generate(prompt, limit) for prompt, limit in asked])
    hook.remove()
    assert [list(reply.tokens) for reply in replies] == wanted
    assert [reply.passes for reply in replies] == [len(answer) for answer in wanted]
    assert max(rows for rows, _ in widths) <= 10  # 640 tokens of rows no shorter than 61
    steps, fills = [[w for w in widths if (w[1] > 1) == fill] for fill in (False, True)]
    tokens = sum(map(len, wanted))
    static = sum(max(map(len, wanted[n : n + 8])) for n in range(0, 40, 8))
    assert len(steps) < 0.8 * static  # rows are refilled before all of them are finished,
    assert len(fills) < 20  # and not one by one
    assert sum(rows for rows, _ in steps) == tokens - 40  # finished rows cost nothing
    assert loop.counts.tokens == tokens


def answers(model: Any, count: int, limit: int) -> list[tuple[tuple[int, ...], list[int]]]:
    return [(p, plain(model, p, limit)) for p in prompts(count, longest=20, ids=190, seed=3)]


def test_a_right_draft_takes_one_pass(model: Any, tokenizer: Any) -> None:
    known = answers(model, 10, 30)
    requests: list[Request] = [Generate(p, 30, drafts=(tuple(answer),)) for p, answer in known]
    loop = make(model, tokenizer)
    replies = run(loop, requests)
    assert [list(reply.tokens) for reply in replies] == [answer for _, answer in known]
    assert {reply.passes for reply in replies} == {1}
    assert loop.counts.passes == 1  # the prompts' own
    for reply, (_, answer) in zip(replies, known, strict=True):
        ended = answer[-1] in END
        assert reply.drafted == len(answer) - (1 if ended or len(answer) == 30 else 0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer, rng: ((),),
        lambda answer, rng: (tuple(rng.integers(0, 340, 30).tolist()),),
        lambda answer, rng: (tuple(answer) * 9,),
        lambda answer, rng: ((*answer[:5], -1, *answer[5:]),),
        lambda answer, rng: ((*answer[:5], 10**9, *answer[5:]),),
        lambda answer, rng: ((*answer[:3], 2, 2, *answer[3:]), tuple(answer[2:])),
        lambda answer, rng: ((2,), (201, *answer), (5,) * 40, tuple(answer[:-1])),
        lambda answer, rng: (tuple(answer[1:]), tuple(answer[::-1])),
        lambda answer, rng: tuple((*answer[:n], 3, *answer[n:]) for n in range(len(answer))),
    ],
    ids=["empty", "random", "long", "negative", "large", "ends", "several", "shifted", "many"],
)
def test_no_draft_changes_an_answer(
    model: Any, tokenizer: Any, spoil: Callable[..., tuple[tuple[int, ...], ...]]
) -> None:
    rng = np.random.default_rng(1)
    known = answers(model, 12, 40)
    words = [tokenizer.decode(answer[6:8]) if len(answer) > 8 else "" for _, answer in known]
    requests: list[Request] = []
    for (prompt, answer), word in zip(known, words, strict=True):
        drafts = spoil(answer, rng)
        requests += [
            Generate(prompt, 40, drafts=drafts),
            Generate(prompt, 7, drafts=drafts),
            Generate(prompt, 40, stop=(word,), drafts=drafts),
        ]
    with_drafts = run(make(model, tokenizer, batch_tokens=900), requests)
    bare = [
        Generate(r.prompt, r.max_new_tokens, r.stop) for r in requests if isinstance(r, Generate)
    ]
    assert with_drafts == run(make(model, tokenizer, batch_tokens=900), [*bare])
    assert [list(reply.tokens) for reply in with_drafts[::3]] == [answer for _, answer in known]


def test_a_draft_is_taken_up_again_where_the_answer_meets_it(model: Any, tokenizer: Any) -> None:
    (prompt, answer) = max(answers(model, 12, 40), key=lambda one: len(one[1]))
    assert len(answer) == 40
    changed = [*answer[:9], (answer[9] + 1) % 200, *answer[10:]]
    moved = [*answer[:20], 5, 6, 7, *answer[20:]]
    for draft, most in ((changed, 4), (moved, 4)):
        (reply,) = run(make(model, tokenizer), [Generate(prompt, 40, drafts=(tuple(draft),))])
        assert list(reply.tokens) == answer
        assert reply.passes <= most
    both = Generate(prompt, 40, drafts=(tuple(changed), (*answer[:9], *answer[9:])))
    assert run(make(model, tokenizer), [both])[0].passes <= 2


def test_sampled_answers_ignore_drafts(model: Any, tokenizer: Any) -> None:
    prompt, answer = answers(model, 1, 30)[0]
    bare = Generate(prompt, 30, temperature=1.0, seed=5)
    drawn = Generate(prompt, 30, temperature=1.0, seed=5, drafts=(tuple(answer),))
    replies = run(make(model, tokenizer), [bare, drawn, Generate(prompt, 30)])
    assert replies[0] == replies[1] != replies[2]
    assert replies[1].drafted == 0


def test_a_paused_loop_returns_and_carries_on(model: Any, tokenizer: Any) -> None:
    known = answers(model, 3, 40)
    loop = make(model, tokenizer)
    for number, (prompt, _) in enumerate(known):
        loop.add(number, Generate(prompt, 40))
    loop.pause = True
    assert loop.advance() == []
    loop.pause = False
    found: dict[int, Any] = {}
    while len(loop):
        found |= dict(loop.advance())
    assert [list(found[number].tokens) for number in range(3)] == [answer for _, answer in known]


class Small(torch.nn.Module):
    """A model on a device that holds only so many tokens at a time."""

    def __init__(self, model: Any, room: int) -> None:
        super().__init__()
        self._inner, self._room = [model], room
        self.config, self.device, self.dtype = model.config, model.device, model.dtype
        self.most = 0

    def get_input_embeddings(self) -> Any:
        return self._inner[0].get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self._inner[0].get_output_embeddings()

    def forward(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: Any) -> Any:
        held = input_ids.shape[0] * attention_mask.shape[-1]
        if held > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.most = max(self.most, held)
        return self._inner[0](input_ids=input_ids, attention_mask=attention_mask, **rest)


def test_a_batch_that_memory_does_not_hold_is_halved(model: Any, tokenizer: Any) -> None:
    known = answers(model, 16, 40)
    requests: list[Request] = [Generate(prompt, 40) for prompt, _ in known]
    requests += [Generate(known[0][0], 40, temperature=1.0, seed=1)]
    requests += [LogLikelihood(prompt, tuple(answer)) for prompt, answer in known]
    roomy = run(make(model, tokenizer), requests)
    small = Small(model, 200)
    loop = make(small, tokenizer)
    assert run(loop, requests)[:17] == roomy[:17]
    assert 60 < small.most <= 200
    scores = zip(run(loop, requests)[17:], roomy[17:], strict=True)
    assert all(one.log_likelihood == pytest.approx(two.log_likelihood) for one, two in scores)
    tiny = Small(model, 30)
    replies = run(make(tiny, tokenizer), [*requests, Generate((5, 6), 9)])
    assert isinstance(replies[-1], Reply)
    assert any(isinstance(reply, RunError) for reply in replies)
    lost = [reply for reply in replies if isinstance(reply, RunError)]
    assert "does not hold a single request" in str(lost[0])


def test_nan_ends_its_own_answer_alone(model: Any, tokenizer: Any) -> None:
    """Whoever gets the row of a NaN individual next must not see its keys and values."""
    known = answers(model, 12, 30)
    healthy = model.state_dict()["model.layers.1.input_layernorm.weight"].clone()
    weight = dict(model.named_parameters())["model.layers.1.input_layernorm.weight"]
    loop = make(model, tokenizer, batch_tokens=4096)
    try:
        weight.data.fill_(float("nan"))
        broken = run(loop, [Generate(prompt, 30) for prompt, _ in known])
        broken += run(loop, [LogLikelihood(prompt, (5, 6)) for prompt, _ in known])
    finally:
        weight.data.copy_(healthy)
    assert {reply.finish for reply in broken} == {"nan"}
    assert {reply.tokens for reply in broken} == {()}
    replies = run(loop, [Generate(prompt, 30) for prompt, _ in known])
    assert [list(reply.tokens) for reply in replies] == [answer for _, answer in known]


def test_an_answer_that_never_stops_meets_its_limit(model: Any, tokenizer: Any) -> None:
    loop = SlotLoop[int](model, tokenizer, frozenset(), batch_tokens=4096)
    replies = run(loop, [Generate((9, 8), limit) for limit in (0, 1, 200)])
    assert [len(reply.tokens) for reply in replies] == [0, 1, 200]
    assert {reply.finish for reply in replies} == {"length"}


def test_stop_words_are_those_of_plain_decoding(model: Any, tokenizer: Any) -> None:
    prompt, answer = max(answers(model, 12, 40), key=lambda one: len(one[1]))
    word = tokenizer.decode(answer[10:12])
    stops = StopWords(tokenizer, [word])
    at = next(n for n in range(1, 41) if stops.found(answer[:n]))
    for drafts in ((), (tuple(answer),)):
        (reply,) = run(make(model, tokenizer), [Generate(prompt, 40, stop=(word,), drafts=drafts)])
        assert list(reply.tokens) == answer[:at]
        assert reply.finish == "stop"

"""Batched decoding of one resident model: pure torch, no queue, no individuals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from cqd_hub.evaluation.engine._interface import Generate, LogLikelihood, Reply

# Children say what their parents said: what a text holds is remembered of so many.
_TAILS = 1 << 16
_ANSWERS = 1 << 12


class StopWords:
    """Strings that end an answer, found without decoding every row at every step.

    Args:
        tokenizer: A transformers tokenizer.
        words: The stop strings; empty ones are ignored.
    """

    def __init__(self, tokenizer: Any, words: Sequence[str]) -> None:
        self._decode, self._words = tokenizer.decode, [word for word in words if word]
        # A token is at least one byte, so the newest stop lies within this many tokens.
        self._window = max((len(word.encode()) for word in self._words), default=0) + 4
        self._last = {word[-1] for word in self._words} | {"\ufffd"}
        # Some tokenizers drop the space that a lone token begins with.
        self._spaced = any(word[-1].isspace() for word in self._words)
        self._may_end: dict[int, bool] = {}
        self._ends_there = lru_cache(_TAILS)(self._holds_stop)
        self._text_of = lru_cache(_ANSWERS)(self._cut)

    def found(self, tokens: Sequence[int]) -> bool:
        """Whether the last token has just completed a stop string."""
        if not self._words:
            return False
        newest = tokens[-1]
        if newest not in self._may_end:
            text = self._decode([newest], skip_special_tokens=False)
            self._may_end[newest] = self._spaced or any(letter in text for letter in self._last)
        if not self._may_end[newest]:
            return False
        return self._ends_there(tuple(tokens[-self._window :]))

    def _holds_stop(self, tail: tuple[int, ...]) -> bool:
        text = self._decode(tail, skip_special_tokens=False)
        return any(word in text for word in self._words)

    def cut(self, tokens: Sequence[int]) -> str:
        """The text before the first stop string, without special tokens."""
        return self._text_of(tuple(tokens))

    def _cut(self, tokens: tuple[int, ...]) -> str:
        text = self._decode(tokens, skip_special_tokens=True)
        ends = [text.index(word) for word in self._words if word in text]
        return text[: min(ends)] if ends else text


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    requests: Sequence[Generate],
    end: frozenset[int],
    *,
    assign: Callable[[Sequence[int]], None] = lambda rows: None,
) -> list[Reply]:
    """Decode a static batch, left-padded, dropping rows as they finish; drafts are not used.

    Args:
        model: Any causal LM of transformers, whatever its cache holds.
        tokenizer: Its tokenizer.
        requests: The batch.
        end: Token ids that end an answer.
        assign: Called before a pass with the numbers of the requests its rows belong to.

    Returns:
        One reply per request, in order.
    """
    device = model.device
    ids, mask, positions = _left_padded([request.prompt for request in requests], device)
    stops = {words: StopWords(tokenizer, words) for words in {r.stop for r in requests}}
    watch = [stops[request.stop] for request in requests]
    draws = [draws_of(request) for request in requests]
    tokens: list[list[int]] = [[] for _ in requests]
    finish = ["length"] * len(requests)
    passes = [0] * len(requests)
    rows = list(range(len(requests)))  # rows still in the batch
    live = [request.max_new_tokens > 0 for request in requests]
    cache = DynamicCache(config=model.config)
    shrinks = all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
    while any(live[row] for row in rows):
        assign(rows)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        largest, chosen = logits.max(-1)
        finite = largest.isfinite().tolist()
        for place, row in enumerate(rows):
            generator = draws[row]
            if generator is not None and finite[place]:
                chosen[place] = choose(logits[place], requests[row], generator)
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if not live[row]:
                continue
            passes[row] += 1
            if not finite[place]:
                finish[row], live[row] = "nan", False
                continue
            tokens[row].append(token)
            if token in end or watch[row].found(tokens[row]):
                finish[row], live[row] = "stop", False
            elif len(tokens[row]) == requests[row].max_new_tokens:
                live[row] = False
        kept = [place for place, row in enumerate(rows) if live[row]]
        if shrinks and kept and len(kept) <= 0.75 * len(rows):
            index = torch.tensor(kept, device=device)
            cache.batch_select_indices(index)
            rows = [rows[place] for place in kept]
            chosen, mask, positions = chosen[index], mask[index], positions[index]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        positions = positions[:, -1:] + 1
    return [
        Reply(
            text=watch[row].cut(without_end(tokens[row], end)),
            tokens=tuple(tokens[row]),
            finish=finish[row],
            passes=passes[row],
        )
        for row in range(len(requests))
    ]


@torch.inference_mode()
def log_likelihoods(model: PreTrainedModel, requests: Sequence[LogLikelihood]) -> list[Reply]:
    """Score a batch of continuations, left-padded so that all of them end in the last column."""
    rows = [(request.prompt + request.continuation)[:-1] for request in requests]
    ids, mask, positions = _left_padded(rows, model.device)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=max(len(request.continuation) for request in requests),
    ).logits
    replies = []
    for row, request in enumerate(requests):
        target = torch.tensor(request.continuation, device=model.device)
        log_probs = logits[row, -len(target) :].float().log_softmax(-1)
        picked = log_probs.gather(1, target[:, None]).sum()
        if picked.isnan():
            replies.append(Reply(finish="nan", log_likelihood=-math.inf, passes=1))
            continue
        greedy = bool((log_probs.argmax(-1) == target).all())
        replies.append(
            Reply(finish="scored", log_likelihood=float(picked), greedy=greedy, passes=1)
        )
    return replies


def _left_padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and positions, each [rows, longest]; masked ids do not matter."""
    longest = max(len(row) for row in rows)
    ids, mask = torch.zeros((2, len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return ids.to(device), mask.to(device), positions.to(device)


def without_end(tokens: list[int], end: frozenset[int]) -> list[int]:
    """An answer without the token that ended it."""
    return tokens[:-1] if tokens and tokens[-1] in end else tokens


def draws_of(request: Generate) -> torch.Generator | None:
    """The generator that a sampled answer draws from; None for a greedy one."""
    return torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None


def choose(logits: torch.Tensor, request: Generate, draws: torch.Generator) -> int:
    """One token of ``[vocabulary]`` logits, by temperature and nucleus."""
    odds = (logits.float() / request.temperature).softmax(-1).cpu()
    if request.top_p < 1:
        ordered, order = odds.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= request.top_p] = 0
        odds = torch.zeros_like(odds).scatter(0, order, ordered)
    return int(torch.multinomial(odds, 1, generator=draws))

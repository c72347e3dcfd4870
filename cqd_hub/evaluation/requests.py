"""One lm-eval instance to one engine request, and which of several choices was the likeliest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Generate, LogLikelihood, Reply, Request

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DECODING = {"until", "do_sample", "temperature", "top_p", *_LIMITS}


def build_request(instance: Any, tokenizer: Any, *, chat: bool, seed: int, where: str) -> Request:
    """Tokenise what lm-eval asks of the model.

    Args:
        instance: ``lm_eval.api.instance.Instance``.
        tokenizer: The engine's.
        chat: The context went through the chat template, which holds its own special tokens.
        seed: Of a sampled answer.
        where: Named in errors.

    Raises:
        UserError: The task wants a kind of request or decoding that no engine here offers.
    """

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=not chat)["input_ids"]

    if instance.request_type == "generate_until":
        context, options = instance.args[:2]
        return _generate(_started(encode(context), tokenizer, where), options, seed, where)
    if instance.request_type == "loglikelihood":
        context, continuation = instance.args[:2]
        spaces = len(context) - len(context.rstrip())
        if spaces:  # a token often begins with its space: it belongs to the continuation
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        prompt, whole = encode(context), encode(context + continuation)
        answer = whole[len(prompt) :]
        if not answer:  # merged into the prompt's last token: score from where they part
            prompt = _common(prompt, whole)
            answer = whole[len(prompt) :]
        if not answer:
            raise UserError(
                "an answer to score is empty", where=where, remedy="check the task's choices"
            )
        return LogLikelihood(_started(prompt, tokenizer, where), tuple(answer))
    raise UserError(
        f"{instance.request_type} gives no score in 0..1",
        where=where,
        remedy="choose a task that generates text or picks a choice",
    )


def _common(one: list[int], two: list[int]) -> list[int]:
    """The tokens that both begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))
    return [token for token, _ in pairs]


def _started(prompt: list[int], tokenizer: Any, where: str) -> tuple[int, ...]:
    """*prompt*, or the token that begins a text where it is empty."""
    if prompt:
        return tuple(prompt)
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (token,)
    raise UserError(
        "a prompt is empty and the tokenizer has no token to begin with",
        where=where,
        remedy="give the task a description, or the tokenizer a bos_token",
    )


def _generate(prompt: tuple[int, ...], options: dict[str, Any], seed: int, where: str) -> Generate:
    until = options.get("until") or []
    temperature = float(options.get("temperature") or 0.0)
    sampled = options.get("do_sample", temperature > 0)
    if sampled and options.get("temperature") is None:
        temperature = 1.0
    known = _DECODING if sampled and temperature > 0 else _DECODING | {"top_k"}
    for key in sorted(set(options) - known):
        if options[key] not in (None, False, 1):  # num_beams: 1 asks for nothing special
            raise UserError(
                f"the task decodes with {key}, which no engine here offers",
                where=where,
                remedy="copy the task's YAML without it",
            )
    limits = [options[key] for key in _LIMITS if options.get(key) is not None]
    return Generate(
        prompt=prompt,
        max_new_tokens=int(limits[0]) if limits else 256,
        stop=tuple([until] if isinstance(until, str) else until),
        temperature=temperature if sampled else 0.0,
        top_p=float(options.get("top_p") or 1.0) if sampled else 1.0,
        seed=seed,
    )


def likeliest(replies: Sequence[Sequence[Reply]]) -> str:
    """What a log-likelihood task 'answered': the number of the likeliest choice."""
    likelihoods = [answers[0].log_likelihood for answers in replies]
    return str(max(range(len(likelihoods)), key=likelihoods.__getitem__))

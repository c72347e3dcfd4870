"""One lm-eval instance to one engine request."""

from __future__ import annotations

from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Generate, LogLikelihood, Request

_DECODING = {"until", "do_sample", "temperature", "top_p", "max_gen_toks", "max_new_tokens"}


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
        return _generate(encode(context), options, seed, where)
    if instance.request_type == "loglikelihood":
        context, continuation = instance.args[:2]
        spaces = len(context) - len(context.rstrip())
        if spaces:  # a token often begins with its space: it belongs to the continuation
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        prompt, whole = encode(context), encode(context + continuation)
        start = prompt or [tokenizer.bos_token_id or tokenizer.eos_token_id]
        return LogLikelihood(tuple(start), tuple(whole[len(prompt) :]))
    raise UserError(
        f"{instance.request_type} gives no score in 0..1",
        where=where,
        remedy="choose a task that generates text or picks a choice",
    )


def _generate(prompt: list[int], options: dict[str, Any], seed: int, where: str) -> Generate:
    for key in sorted(set(options) - _DECODING):
        if options[key] not in (None, False, 1):  # num_beams: 1 asks for nothing special
            raise UserError(
                f"the task decodes with {key}, which no engine here offers",
                where=where,
                remedy="copy the task's YAML without it",
            )
    until = options.get("until") or []
    sampled = options.get("do_sample", False)
    return Generate(
        prompt=tuple(prompt),
        max_new_tokens=int(options.get("max_gen_toks") or options.get("max_new_tokens") or 256),
        stop=tuple([until] if isinstance(until, str) else until),
        temperature=float(options.get("temperature") or 1.0) if sampled else 0.0,
        top_p=float(options.get("top_p") or 1.0) if sampled else 1.0,
        seed=seed,
    )

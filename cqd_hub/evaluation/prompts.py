"""What prompts of an lm-eval task are made of: questions, examples, the chat template."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

from cqd_hub.errors import UserError

_POOL = 2000  # documents that few-shot examples are drawn from, at most


def keep_shots_apart(
    task: Any,
    shots: int,
    sampled: Collection[str],
    question: Callable[[dict[str, Any]], str],
    where: str,
) -> None:
    """Take every sample out of the documents that a task's examples are drawn from.

    Args:
        task: lm-eval's.
        shots: Examples before each sample, at least one.
        sampled: What the samples ask.
        question: What a document asks.
        where: Named in errors.

    Raises:
        UserError: Too few documents are left.
    """
    from lm_eval.api.samplers import FirstNSampler

    if task.fewshot_cfg.split is None and task.fewshot_cfg.samples:
        return
    ordered = isinstance(task.sampler, FirstNSampler)
    pool = list(task.sampler.fewshot_docs())
    if len(pool) > _POOL and not ordered:
        pool = random.Random(0).sample(pool, _POOL)
    pool = [document for document in pool if question(document) not in sampled]
    # Where examples come from the test split, lm-eval draws one more than it shows.
    spare = task.fewshot_cfg.split == task.config.test_split and not ordered
    if len(pool) < shots + spare:
        raise UserError(
            f"{len(pool)} documents are left for {shots} few-shot examples beside the samples",
            where=where,
            remedy="lower it, or leave some documents out of `splits` or `samples`",
        )
    task.sampler.replace_df(pool)


def question_of(task: Any, document: dict[str, Any]) -> str:
    """What is asked, without examples; for a bare log-likelihood the text that is scored too."""
    parts = [task.doc_to_text(document)]
    if task.config.doc_to_choice is not None:
        parts.append(task.doc_to_choice(document))
    elif task.OUTPUT_TYPE == "loglikelihood":
        parts.append(task.doc_to_target(document))
    return " | ".join(str(part) for part in parts)


def chat_text(
    tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    """The chat template over a history; without a generation prompt its last turn stays open."""
    return tokenizer.apply_chat_template(
        history,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )

"""What vLLM is given and what comes back, as plain values: nothing of vLLM is imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cqd_hub.evaluation.engine._decoding import StopWords, without_end
from cqd_hub.evaluation.engine._interface import LogLikelihood, Reply, Request
from cqd_hub.genome import Basis
from cqd_hub.genome.export.checkpoint import stored_parts


def tensors_of(
    basis: Basis, slots: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """An individual as a checkpoint of the base would hold it: every stored name once.

    Args:
        basis: Names the tensors.
        slots: The individual's weights by slot name.
    """
    for part in stored_parts(basis):
        members = [basis.layout.slots[index] for index in part.slots]
        if not members:  # no weight: as it lies
            yield part.name, basis.base.checkpoint.tensor(part.name)
        elif members[0].index is None:
            yield part.name, slots[members[0].name].reshape(part.shape)
        else:
            yield part.name, torch.stack([slots[slot.name] for slot in members])


def sampling_of(request: Request, end: Iterable[int]) -> dict[str, Any]:
    """A request as the options of `vllm.SamplingParams`.

    Log-likelihoods are those of a prompt; vLLM insists on one token more. The log-probability of
    each chosen token is asked for, as it alone tells of logits that are no numbers.
    """
    if isinstance(request, LogLikelihood):
        return {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 1, "ignore_eos": True}
    return {
        "temperature": request.temperature,
        "top_p": request.top_p if request.temperature > 0 else 1.0,
        "seed": request.seed if request.temperature > 0 else None,
        "max_tokens": request.max_new_tokens,
        "stop": [word for word in request.stop if word],
        "stop_token_ids": sorted(end),
        "ignore_eos": True,  # which tokens end an answer is said above
        "skip_special_tokens": False,  # stop strings may be special tokens
        "logprobs": 0,
    }


def answer_of(
    tokens: Sequence[int],
    logprobs: Sequence[float],
    finish: str,
    *,
    watch: StopWords,
    end: frozenset[int],
) -> Reply:
    """A generated answer, with the text that the other engines would give it.

    Args:
        tokens: All that were generated.
        logprobs: Theirs; the answer ends before the first that is no number.
        finish: ``"stop"`` or ``"length"``.
        watch: For the request's stop strings.
        end: Token ids that end an answer.
    """
    kept = next((n for n, one in enumerate(logprobs) if math.isnan(one)), len(tokens))
    answer = list(tokens[:kept])
    return Reply(
        watch.cut(without_end(answer, end)),
        tuple(answer),
        finish if kept == len(tokens) else "nan",
        passes=len(tokens),
    )


def score_of(logprobs: Sequence[float], ranks: Sequence[int]) -> Reply:
    """A log-likelihood, from what the continuation's tokens have; the likeliest has rank 1."""
    total = sum(logprobs)
    if math.isnan(total):
        return Reply(finish="nan", log_likelihood=-math.inf, passes=1)
    greedy = all(rank == 1 for rank in ranks)
    return Reply(finish="scored", log_likelihood=total, greedy=greedy, passes=1)

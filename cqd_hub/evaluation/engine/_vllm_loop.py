"""Requests of one individual on their way through vLLM."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.engine._decoding import StopWords
from cqd_hub.evaluation.engine._handover import answer_of, sampling_of, score_of
from cqd_hub.evaluation.engine._interface import Generate, LogLikelihood, Reply, Request
from cqd_hub.evaluation.engine._queue import Job, tokens_in
from cqd_hub.evaluation.engine._rows import Counts


@contextmanager
def as_error() -> Iterator[None]:
    """Whatever vLLM raises, in one line."""
    try:
        yield
    except (RunError, UserError):
        raise
    except Exception as error:
        line = str(error).strip().split("\n")[0] or type(error).__name__
        raise RunError(
            f"vLLM failed: {line}",
            where="evaluation.engine",
            remedy="its log is above; sequential, population and auto do without it",
        ) from error


class VllmLoop:
    """What `SlotLoop` is for a resident model, for one that vLLM holds.

    Args:
        engine: `vllm.LLMEngine`.
        tokenizer: The model's.
        end: Token ids that end an answer.
        counts: Added to.
    """

    def __init__(self, engine: Any, tokenizer: Any, end: frozenset[int], counts: Counts) -> None:
        self._engine, self._tokenizer, self._end = engine, tokenizer, end
        self.counts, self.pause = counts, False
        self._asked: dict[str, tuple[Job, Request]] = {}
        self._done: list[tuple[Job, Reply | Exception]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._asked) + len(self._done)

    def add(self, ticket: Job, request: Request, owner: Hashable = None) -> None:
        """See `SlotLoop.add`."""
        if isinstance(request, Generate) and request.max_new_tokens < 1:
            self._done.append((ticket, Reply(finish="length")))
            return
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        number = str(next(self._numbers))
        try:
            with as_error():
                params = sampling_of(request, self._end)
                params["output_kind"] = RequestOutputKind.FINAL_ONLY
                prompt = tokens_input([*tokens_in(request)])
                self._engine.add_request(number, prompt, SamplingParams(**params))
            self._asked[number] = ticket, request
        except RunError as error:
            self._done.append((ticket, error))

    def drop(self, gone: Callable[[Job], bool]) -> None:
        """See `SlotLoop.drop`."""
        dropped = [number for number, (ticket, _) in self._asked.items() if gone(ticket)]
        for number in dropped:
            del self._asked[number]
        self._done = [one for one in self._done if not gone(one[0])]
        if dropped:
            with contextlib.suppress(Exception):  # where vLLM is gone, the next step says so
                self._engine.abort_request(dropped)

    def clear(self) -> None:
        """See `SlotLoop.clear`."""
        self.drop(lambda ticket: True)

    def advance(self) -> list[tuple[Job, Reply | Exception]]:
        """See `SlotLoop.advance`."""
        while self._asked and not self._done and not self.pause:
            with as_error():
                outputs = self._engine.step()
            self.counts.passes += 1
            for output in outputs:
                if output.finished and output.request_id in self._asked:
                    ticket, request = self._asked.pop(output.request_id)
                    self._done.append((ticket, self._reply(request, output)))
        done, self._done = self._done, []
        return done

    def _reply(self, request: Request, output: Any) -> Reply | Exception:
        made = output.outputs[0]
        if made.finish_reason not in ("stop", "length"):
            return RunError(f"vLLM gave a request up: {made.finish_reason}")
        if isinstance(request, LogLikelihood):
            found = output.prompt_logprobs[len(request.prompt) :]
            scored = [row[token] for token, row in zip(request.continuation, found, strict=True)]
            return score_of([one.logprob for one in scored], [one.rank for one in scored])
        tokens = list(made.token_ids)
        self.counts.tokens += len(tokens)
        return answer_of(
            tokens,
            [row[token].logprob for token, row in zip(tokens, made.logprobs, strict=False)],
            made.finish_reason,
            watch=StopWords(self._tokenizer, request.stop),
            end=self._end,
        )

"""Continuous batching over one resident model: rows come and go, drafts are verified on the way.

Free rows are filled several at a time: a prefill costs about as much as a decoding step, however
few rows it has. A draft is verified in the pass that reads its prompt. Greedy answers are what
plain decoding gives: of a draft only the tokens that the model itself chooses are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

from cqd_hub.evaluation.engine._cache import longest_row
from cqd_hub.evaluation.engine._decoding import (
    StopWords,
    choose,
    draws_of,
    generate,
    log_likelihoods,
    without_end,
)
from cqd_hub.evaluation.engine._drafts import Drafts
from cqd_hub.evaluation.engine._interface import LogLikelihood, Reply, Request
from cqd_hub.evaluation.engine._reader import Assign, Reader
from cqd_hub.evaluation.engine._rows import (
    Counts,
    Row,
    Ticket,
    is_out_of_memory,
    length_of,
    too_large,
)

_Result = TypeVar("_Result")

_LOGITS = 1 << 27  # of one pass, at most
_CHUNK = {"cpu": 4096, "cuda": 32768}  # tokens of one prefill
_PASS = 64  # what a pass costs beside its tokens, in tokens
_TRUST = 0.05  # how fast the share of accepted tokens is forgotten


class SlotLoop(Generic[Ticket]):
    """Answers requests in whatever order they finish.

    Greedy, sampled and log-likelihood requests; models whose cache holds more than keys and values
    (`longest_row`) are decoded in static batches instead, without drafts.

    Args:
        model: A causal LM of transformers.
        tokenizer: Its tokenizer.
        end: Token ids that end an answer.
        batch_tokens: Rows × (prompt + answer) at most; halved whenever memory runs out.
        assign: Called before a pass with the owners of its rows, and of the tokens that its head
            sees (of the rows again, where it sees all).

    Attributes:
        counts: What was done so far.
        pause: Set from another thread, it makes `advance` return early.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        end: frozenset[int],
        *,
        batch_tokens: int,
        assign: Assign = lambda rows, head: None,
    ) -> None:
        self._model, self._tokenizer, self._end = model, tokenizer, end
        self._device: torch.device = model.device
        self._budget, self._assign = batch_tokens, assign
        self._longest = longest_row(model.config)
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._reader = Reader(model, assign)
        self._cache = self._reader.cache
        self._rows: list[Row[Ticket]] = []
        self._waiting: list[Row[Ticket]] = []
        self._sorted = True
        self._static: list[Row[Ticket]] = []
        self._scores: list[tuple[Ticket, LogLikelihood, Hashable]] = []
        self._watches: dict[tuple[str, ...], StopWords] = {}
        self._done: list[tuple[Ticket, Reply | Exception]] = []
        self._accepted = 0.7
        self.counts = Counts()
        self.pause = False

    def __len__(self) -> int:
        """Requests whose replies are still to be had."""
        queues: tuple[list[Any], ...] = (
            self._rows,
            self._waiting,
            self._static,
            self._scores,
            self._done,
        )
        return sum(len(queue) for queue in queues)

    def add(self, ticket: Ticket, request: Request, owner: Hashable = None) -> None:
        """Queue a request; its reply comes from `advance` with the *ticket*."""
        if isinstance(request, LogLikelihood):
            self._scores.append((ticket, request, owner))
            self._sorted = False
            return
        if request.stop not in self._watches:
            self._watches[request.stop] = StopWords(self._tokenizer, request.stop)
        greedy = request.temperature <= 0
        fits = length_of(request) <= self._longest
        row = Row(
            ticket,
            request,
            owner,
            self._watches[request.stop],
            Drafts(request.drafts, rows=self._vocabulary, end=self._end)
            if greedy and fits and request.drafts
            else None,
            draws_of(request),
        )
        if request.max_new_tokens < 1:
            self._finish(row, "length")
        else:
            (self._waiting if fits else self._static).append(row)
            self._sorted = False

    def drop(self, gone: Callable[[Ticket], bool]) -> None:
        """Forget requests that nobody waits for."""
        self._scores = [one for one in self._scores if not gone(one[0])]
        self._waiting = [row for row in self._waiting if not gone(row.ticket)]
        self._static = [row for row in self._static if not gone(row.ticket)]
        self._free([n for n, row in enumerate(self._rows) if gone(row.ticket)])

    def clear(self) -> None:
        """Forget everything, the cache's memory included."""
        self.drop(lambda ticket: True)
        self._done = []
        self._cache.release()

    @torch.inference_mode()
    def advance(self) -> list[tuple[Ticket, Reply | Exception]]:
        """Work until something is finished, or `pause` is set from another thread."""
        if not self._sorted:
            self._scores.sort(key=lambda one: -length_of(one[1]))
            # Long beside short, so that packs are full, and alike in whatever order they came.
            self._waiting.sort(key=lambda row: hash(row.request.prompt))
            self._static.sort(key=lambda row: -row.limit)
            self._sorted = True
        while not self._done and len(self) and not self.pause:
            if self._scores:
                self._score()
            elif self._static:
                self._decode_static()
            else:
                self._refill()
                if self._rows and not self._done:
                    self._step()
        done, self._done = self._done, []
        return done

    # Rows in.

    def _refill(self) -> None:
        """Prefill what waits, once a quarter of the rows is free or nothing else is to do."""
        fitting = self._fitting()
        if not fitting:
            return
        slots = max(1, self._budget // max(row.limit for row in [*self._rows, *fitting]))
        if self._rows and len(fitting) < min(slots / 4, len(self._waiting)):
            return
        while fitting := self._fitting():
            taken = fitting[: self._chunk(fitting)]
            chosen = set(map(id, taken))
            self._waiting = [row for row in self._waiting if id(row) not in chosen]
            first = len(self._rows)
            self._rows += taken
            self._run(list(range(first, len(self._rows))), self._reader.begin)

    def _fitting(self) -> list[Row[Ticket]]:
        """The first of those that wait, as many as fit beside the rows there are."""
        longest, count = max((row.limit for row in self._rows), default=0), len(self._rows)
        for number, row in enumerate(self._waiting):
            longest, count = max(longest, row.limit), count + 1
            if count > 1 and longest * count > self._budget:
                return self._waiting[:number]
        return list(self._waiting)

    def _chunk(self, rows: list[Row[Ticket]]) -> int:
        """How many rows to prefill in one pass."""
        most = min(self._budget, _CHUNK.get(self._device.type, _CHUNK["cuda"]))
        tokens = logits = 0
        for number, row in enumerate(rows):
            row.propose()
            tokens += row.length + len(row.proposal)
            logits += (len(row.proposal) + 1) * self._vocabulary
            if number and (tokens > most or logits > _LOGITS):
                return number
        return len(rows)

    # One pass.

    def _step(self) -> None:
        """Decode all rows, with their drafts or without, or those that have drafts alone.

        Rows of a pass have one width: whichever promises most tokens for its cost is chosen.
        """
        for row in self._rows:
            row.propose()
        everyone = list(range(len(self._rows)))
        drafting = [number for number in everyone if self._rows[number].proposal]
        rows = everyone
        if drafting:
            room = max(0, _LOGITS // self._vocabulary // len(everyone) - 1)
            for row in self._rows:
                del row.proposal[room:]
            ahead = max(len(row.proposal) for row in self._rows)
            gain = self._accepted * sum(len(row.proposal) for row in self._rows)
            rates = {
                "plain": len(everyone) / (_PASS + len(everyone)),
                "all": (len(everyone) + gain) / (_PASS + len(everyone) * (ahead + 1)),
                "some": (len(drafting) + gain) / (_PASS + len(drafting) * (ahead + 1)),
            }
            best = max(rates, key=rates.__getitem__)
            if best == "plain":
                for row in self._rows:
                    row.proposal = []
            elif best == "some":
                rows = drafting
        self._run(rows, self._reader.carry_on)

    def _run(self, rows: list[int], forward: Callable[..., torch.Tensor]) -> None:
        """One pass over *rows*, and what comes of it."""
        entries = [self._rows[number] for number in rows]
        passed = self._unless_memory_ends(lambda: self._pick(entries, forward(rows, entries)))
        if passed is None:
            self._shrink()
            return
        self.counts.passes += 1
        picks, finite = passed
        start, finished = 0, []
        for number, row in zip(rows, entries, strict=True):
            part = slice(start, start + len(row.proposal) + 1)
            start, row.passes = part.stop, row.passes + 1
            how = self._accept(row, picks[part], finite[part])
            if how:
                finished.append(number)
                self._leave(row, number, how)
        self._free(finished)

    def _pick(self, rows: list[Row[Ticket]], logits: torch.Tensor) -> tuple[list[int], list[bool]]:
        """The token chosen after each of the tokens, and whether its logits are numbers."""
        largest, picks = logits.max(-1)
        finite = largest.isfinite()
        place = 0
        for row in rows:
            if row.draws is not None and finite[place]:
                picks[place] = choose(logits[place], row.request, row.draws)
            place += len(row.proposal) + 1
        return picks.tolist(), finite.tolist()

    def _accept(self, row: Row[Ticket], picks: list[int], finite: list[bool]) -> str:
        """Lengthen an answer by what the model chose; return how it ended, or ""."""
        before, how = row.drafted, ""
        for place in range(len(row.proposal) + 1):
            if not finite[place]:
                how = "nan"
                break
            token = picks[place]
            agreed = place < len(row.proposal) and row.proposal[place] == token
            row.answer.append(token)
            row.drafted += agreed
            self.counts.tokens += 1
            if token in self._end or row.watch.found(row.answer):
                how = "stop"
            elif len(row.answer) == row.request.max_new_tokens:
                how = "length"
            if how or not agreed:
                break
        if row.proposal:
            taken = row.drafted - before
            self.counts.proposed += len(row.proposal)
            self.counts.accepted += taken
            if row.passes > 1:  # the first draft is verified whatever the chances
                self._accepted += _TRUST * (taken / len(row.proposal) - self._accepted)
        return how

    # Rows out.

    def _leave(self, row: Row[Ticket], number: int, how: str) -> None:
        """A row's end; where NaN may be another row's of the same pack, it begins again alone."""
        if how == "nan":
            self._cache.clear(number)
            if not row.alone:
                row.alone, row.answer, row.drafted, row.draws = True, [], 0, draws_of(row.request)
                self._waiting.append(row)
                return
        self._finish(row, how)

    def _finish(self, row: Row[Ticket], how: str) -> None:
        reply = Reply(
            text=row.watch.cut(without_end(row.answer, self._end)),
            tokens=tuple(row.answer),
            finish=how,
            passes=row.passes,
            drafted=row.drafted,
        )
        self._done.append((row.ticket, reply))

    def _free(self, numbers: list[int]) -> None:
        """Give rows up; the last ones take their places, so that all that is in use is first."""
        moved: dict[int, int] = {}  # target → source
        for number in sorted(numbers, reverse=True):
            last = self._rows.pop()
            source = moved.pop(len(self._rows), len(self._rows))
            if number < len(self._rows):
                self._rows[number] = last
                moved[number] = source
        if moved:
            longest = max(self._rows[target].length for target in moved) - 1
            self._cache.move(list(moved.values()), list(moved), longest)

    def _shrink(self) -> None:
        """Memory ran out: begin the rows there are again, half as many at a time."""
        lost, self._rows = self._rows, []
        if len(lost) == 1:
            self._done.append((lost[0].ticket, too_large()))
        else:
            self._waiting = [*lost, *self._waiting]
        self._cache.release()
        self._halve()

    def _unless_memory_ends(self, work: Callable[[], _Result]) -> _Result | None:
        """What *work* returns, or None if memory ran out; what the failure held is let go of."""
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _halve(self) -> None:
        self._budget = max(1, self._budget // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # Without slots.

    def _score(self) -> None:
        longest, count = length_of(self._scores[0][1]), 0
        most = 0
        for _, request, _ in self._scores:
            most = max(most, len(request.continuation))
            logits = (count + 1) * most * self._vocabulary
            if count and (longest * (count + 1) > self._budget or logits > _LOGITS):
                break
            count += 1
        batch = self._scores[:count]
        self._assign([owner for _, _, owner in batch], None)
        requests = [request for _, request, _ in batch]
        replies = self._unless_memory_ends(lambda: log_likelihoods(self._model, requests))
        if replies is None:
            if count == 1:
                self._done.append((batch[0][0], too_large()))
                del self._scores[0]
            self._halve()
            return
        del self._scores[:count]
        self.counts.passes += 1
        self._done += [(one[0], reply) for one, reply in zip(batch, replies, strict=True)]

    def _decode_static(self) -> None:
        longest, count = max(row.limit for row in self._static), 1
        while count < len(self._static) and longest * (count + 1) <= self._budget:
            count += 1
        batch = self._static[:count]
        owners = [row.owner for row in batch]
        replies = self._unless_memory_ends(
            lambda: generate(
                self._model,
                self._tokenizer,
                [row.request for row in batch],
                self._end,
                assign=lambda rows: self._assign([owners[row] for row in rows], None),
            )
        )
        if replies is None:
            if count == 1:
                self._done.append((batch[0].ticket, too_large()))
                del self._static[0]
            self._halve()
            return
        del self._static[:count]
        self.counts.passes += max(reply.passes for reply in replies)
        self.counts.tokens += sum(len(reply.tokens) for reply in replies)
        self._done += [(row.ticket, reply) for row, reply in zip(batch, replies, strict=True)]

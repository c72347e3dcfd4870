"""AgentBench v0.2: the controller's API, text alone."""

from __future__ import annotations

import ast
import asyncio
from typing import Any

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.episodes import Message, Verdict

from .client import garbage, plain
from .reading import Index, Protocol, Told, bounded, in_unit, kept, member, speakable, status_of

_ROLES = {"user": "user", "agent": "assistant"}
_CHANGES = ("INSERT", "DELETE", "UPDATE")
_LONGEST = 20_000


class Controller(Protocol):
    """v0.2. `POST /start_sample`, then `/interact` while the status is ``running``."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Its lock on a worker gives up after two seconds; there is no gain in asking at once.
        self._judging = asyncio.Lock()

    async def start(self, index: Index) -> tuple[int, Told]:
        answer = await self.server.ask_until_free(
            "/start_sample", {"name": self.name, "index": index}
        )
        where = f"{self.server.url}/start_sample"
        session = member(answer.value, "session_id", int, where)
        try:
            return session, self._told(answer.value, where, opening=True)
        except RunError:
            await self.cancel(session)
            raise

    async def interact(self, session: int, reply: Message) -> Told:
        return await self._interact(session, "normal", speakable(reply.content))

    async def context_full(self, session: int) -> Told | None:
        return await self._interact(session, "agent context limit", None)

    async def _interact(self, session: int, status: str, content: str | None) -> Told:
        response = {"status": status, "content": content}
        answer = await self.server.ask(
            "/interact", {"session_id": session, "agent_response": response}
        )
        where = f"{self.server.url}/interact"
        if member(answer.value, "session_id", int, where) != session:
            raise garbage("it is of another session", where)
        return self._told(answer.value, where, opening=False)

    def _told(self, value: Any, where: str, *, opening: bool) -> Told:
        output = member(value, "output", dict, where)
        status = status_of(output, where)
        told = Told(status, (), output)
        if told.over:
            return told
        messages = [self._message(one, where) for one in member(output, "history", list, where)]
        if not opening:
            # The whole conversation is sent each time, of a long one its latest part: what is
            # new follows the last message of the model's.
            last = [place for place, one in enumerate(messages) if one.role == "assistant"]
            if not last:
                raise garbage("the history lacks our reply", where)
            messages = messages[last[-1] + 1 :]
        if not messages:
            raise garbage("a running sample without a new message", where)
        return told._replace(messages=bounded(messages, where))

    @staticmethod
    def _message(value: Any, where: str) -> Message:
        role = _ROLES.get(member(value, "role", str, where))
        if role is None:
            raise garbage(f"role is {plain(repr(value['role']), 60)}", where)
        return Message(role, member(value, "content", str, where))  # type: ignore[arg-type]

    async def judge(self, index: Index, told: Told) -> Verdict:
        """`result.result` where the task says it (OS); DBBench's answer through its own
        `/calculate_overall`, of that one sample."""
        result, where = told.outcome.get("result"), f"{self.server.url}/interact"
        if not result and told.status != "completed":
            return Verdict(0.0, told.status)
        if not isinstance(result, dict) or not ("result" in result or "answer" in result):
            raise UserError(
                f"the task {self.name} gives no verdict per sample",
                where="options.name",
                remedy="use an OS or DBBench task",
            )
        note = plain(result.get("error") or "", 300)
        if "result" not in result:
            score = await self._overall(index, told, result)
        elif isinstance(result["result"], bool):
            score = float(result["result"])
        else:
            score = in_unit(kept(result["result"], int | float, "result", where), "its result")  # type: ignore[arg-type]
        return Verdict(score, told.status, note)

    async def _overall(self, index: Index, told: Told, result: dict[str, Any]) -> float:
        where = f"{self.server.url}/calculate_overall"
        kind, answer = member(result, "type", str, where), member(result, "answer", str, where)
        if kind not in _CHANGES:
            answer = harmless(answer)
        output: dict[str, Any] = {
            "index": index,
            "status": told.status,
            "result": {"answer": answer, "type": kind, "error": ""},
            "history": [],
        }
        async with self._judging:
            found = await self.server.ask(
                "/calculate_overall", {"name": self.name, "results": [output]}
            )
        key = f"{kind if kind in ('INSERT', 'UPDATE') else 'SELECT'}_accuracy"
        return in_unit(member(found.value, key, int | float, where), key)  # type: ignore[arg-type]


def harmless(answer: str) -> str:
    """What DBBench's judge, which evaluates answers as Python on its own machine, may be given.

    A literal that is a list (or can be made one) is written anew; all else as a list of that one
    text, which is what the judge takes it for when it cannot evaluate it.
    """
    given: list[Any] = [answer]
    if len(answer) <= _LONGEST:
        try:
            read = list(ast.literal_eval(answer))
            if ast.literal_eval(repr(read)) == read:
                given = read
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
    return repr(given)

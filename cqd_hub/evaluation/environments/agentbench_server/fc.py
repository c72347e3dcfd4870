"""AgentBench's function-calling worker (agentrl-worker): messages and tools as OpenAI has them."""

from __future__ import annotations

import json
import secrets
from typing import Any

from cqd_hub.errors import RunError
from cqd_hub.evaluation.episodes import Message, Tool, ToolCall, Verdict

from .client import Away, Refused, garbage, plain
from .reading import (
    RUNNING,
    Index,
    Protocol,
    Told,
    bounded,
    in_unit,
    listed,
    member,
    speakable,
    status_of,
)

_ROLES = ("system", "user", "assistant", "tool")


class Worker(Protocol):
    """The worker itself: sessions are numbered by us, unless a header names another number."""

    async def indices(self) -> list[Index]:
        return [index for index in await super().indices() if index != -1]  # -1: made to order

    async def start(self, index: Index) -> tuple[int, Told]:
        where = f"{self.server.url}/start_sample"
        session = secrets.randbelow(1 << 31)
        body = {"name": self.name, "index": index, "session_id": session}
        try:
            answer = await self.server.ask_until_free("/start_sample", body)
        except (Away, Refused):
            raise
        except RunError:  # it may have begun all the same
            await self.cancel(session)
            raise
        named = answer.headers.get("session_id", "")
        if named.isascii() and named.isdigit() and len(named) < 20:
            session = int(named)
        try:
            told = self._told(answer.value, where)
        except RunError:
            await self.cancel(session)
            raise
        return session, told

    async def interact(self, session: int, reply: Message) -> Told:
        answer = await self.server.ask(
            "/interact", {"session_id": session, "messages": [_written(reply)]}
        )
        where = f"{self.server.url}/interact"
        told = self._told(member(answer.value, "env_out", dict, where), where)
        if any(one.role == "assistant" for one in told.messages):
            raise garbage("a turn that rewrites what the model said", where)
        return told

    def _told(self, value: Any, where: str) -> Told:
        status = status_of(value, where)
        if member(value, "finish", bool, where) == (status == RUNNING):
            raise garbage(f"finish is {value['finish']}, status {status!r}", where)
        if status != RUNNING:
            return Told(status, (), value)
        messages = [_message(one, where) for one in member(value, "messages", list, where)]
        if not messages:
            raise garbage("a running sample without a new message", where)
        return Told(status, bounded(messages, where), tools=_tools(value, where))

    async def judge(self, index: Index, told: Told) -> Verdict:
        """The metric `score` where the task gives one, else the last reward."""
        where = f"{self.server.url}/interact"
        metric = told.outcome.get("metric")
        score = metric.get("score") if isinstance(metric, dict) else None
        if isinstance(score, bool) or not isinstance(score, int | float):
            score = member(told.outcome, "reward", int | float, where)  # type: ignore[arg-type]
        return Verdict(in_unit(score, "its reward"), told.status)


def _written(reply: Message) -> dict[str, Any]:
    """The model's reply as OpenAI has it."""
    written: dict[str, Any] = {"role": "assistant", "content": speakable(reply.content)}
    if reply.calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for call in reply.calls
        ]
    return written


def _message(value: Any, where: str) -> Message:
    role = member(value, "role", str, where)
    if role not in _ROLES:
        raise garbage(f"role is {plain(repr(role), 60)}", where)
    calls = tuple(_call(one, where) for one in listed(value, "tool_calls", where))
    answers = value.get("tool_call_id")
    if role == "tool" and not isinstance(answers, str):
        raise garbage("a tool's message answers no call", where)
    return Message(role, _text(value.get("content"), where), calls, answers or "")  # type: ignore[arg-type]


def _text(content: Any, where: str) -> str:
    """A message's text: one, or in parts; other parts than text are refused."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise garbage("a message's content is no text", where)
    return "".join(member(part, "text", str, where) for part in content)


def _call(value: Any, where: str) -> ToolCall:
    function = member(value, "function", dict, where)
    try:
        arguments = json.loads(member(function, "arguments", str, where))
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise garbage("a call's arguments are no JSON object", where)
    return ToolCall(
        member(function, "name", str, where), arguments, member(value, "id", str, where)
    )


def _tools(value: dict[str, Any], where: str) -> tuple[Tool, ...]:
    tools = []
    for one in listed(value, "tools", where):
        function = member(one, "function", dict, where)
        name = member(function, "name", str, where)
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, dict):
            raise garbage(f"the parameters of {plain(name, 60)} are no object", where)
        tools.append(Tool(name, str(function.get("description") or ""), parameters))
    return tuple(tools)

"""One problem being played on one machine."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Literal

from cqd_hub.evaluation.environments.agentbench_os.dialects import Dialect
from cqd_hub.evaluation.environments.agentbench_os.grammar import (
    Action,
    Bash,
    parse_call,
    parse_text,
)
from cqd_hub.evaluation.environments.agentbench_os.judge import judge, run_script
from cqd_hub.evaluation.environments.agentbench_os.problem import Problem
from cqd_hub.evaluation.environments.agentbench_os.prompts import Prompts
from cqd_hub.evaluation.episodes import COMPLETED, Episode, Message, Observation, Turn, Verdict
from cqd_hub.evaluation.machines import Machine, MachineLost

INVALID_ACTION = "agent invalid action"
TASK_ERROR = "task error"
UNKNOWN = "unknown"
_LONGEST, _KEPT = 800, 780
_CUT = "\n[truncated because the output is too long]"
# Colours, titles and other control sequences of a terminal.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|\x07")


def reply_text(printed: str) -> str:
    """What the model is told of a command's output, control sequences of a terminal left out."""
    text = _CONTROL.sub("", printed)
    if len(text) > _LONGEST:
        text = text[:_KEPT] + _CUT
    return f"The output of the OS:\n\n{text}" if text else "The output of the OS is empty."


class Playing(Episode):
    """A problem on its machine, set up by `set_up` before the first step.

    Args:
        machine: A fresh one; the episode closes it.
        lost: Called with the replies so far when the machine is lost: decides on a verdict, or
            raises RunError to have the episode played again.
    """

    def __init__(
        self,
        machine: Machine,
        problem: Problem,
        dialect: Dialect,
        prompts: Prompts,
        *,
        lost: Callable[[tuple[str, ...], MachineLost], Awaitable[Verdict]],
    ) -> None:
        self._machine, self._problem = machine, problem
        self._dialect, self._prompts = dialect, prompts
        self._lost = lost
        self._notes: list[str] = []
        self._replies: tuple[str, ...] = ()
        self.broken = ""
        asked = Message("user", prompts.before + problem.description)
        self.opening = (*prompts.opening, asked)

    async def set_up(self) -> None:
        """Run the problem's init scripts, then its start command in the shell.

        A script that fails makes `broken` say so; in a dialect that minds, the first step then
        ends the episode, unknown.

        Raises:
            MachineLost: The machine died of it.
        """
        await self._machine.shell(f"cd {self._dialect.folder}")
        for number, script in enumerate(self._problem.init, start=1):
            ran = await run_script(self._machine, script, self._dialect)
            if ran.exit_code != 0:
                how = "took too long" if ran.exit_code is None else f"exited with {ran.exit_code}"
                said = (ran.stderr or ran.stdout).strip()[-200:]
                failure = f"init script {number} {how}" + (f": {said!a}" if said else "")
                if self._dialect.strict_init:
                    self.broken = failure
                    return
                self._notes.append(failure)
        if self._problem.start is not None:
            await self._machine.shell(self._problem.start)

    async def step(self, reply: Message) -> Turn:
        if self.broken:
            return self._verdict(0.0, UNKNOWN, self.broken)
        calls = [f"{call.name} {dict(call.arguments)}" for call in reply.calls]
        self._replies = (*self._replies, "\n".join([reply.content, *calls]))
        try:
            if self._dialect.tools:
                return await self._call(reply)
            action = parse_text(reply.content)
            if action is None:
                return await self._failed(INVALID_ACTION)
            return await self._act(action, "user", "")
        except MachineLost as lost:
            return await self._lost(self._replies, lost)

    async def end(self, status: str) -> Verdict:
        try:
            return await self._failed(status)
        except MachineLost as lost:
            return await self._lost((*self._replies, status), lost)

    async def close(self) -> None:
        await self._machine.close()

    async def _call(self, reply: Message) -> Turn:
        """Only the first function called counts."""
        if not reply.calls:
            return Observation((Message("user", self._prompts.no_call),))
        call = reply.calls[0]
        action = parse_call(call.name, call.arguments)
        if action is None:
            return Observation((Message("tool", self._prompts.bad_call, call=call.id),))
        return await self._act(action, "tool", call.id)

    async def _act(self, action: Action, role: Literal["user", "tool"], call: str) -> Turn:
        if not isinstance(action, Bash):
            return await self._judged(action.answer, COMPLETED)
        printed = await self._machine.shell(action.script, seconds=self._dialect.command_seconds)
        if printed.ended == "time" and self._dialect.always_judged:
            return await self._failed(COMPLETED)
        return Observation((Message(role, reply_text(printed.text), call=call),))

    async def _failed(self, status: str) -> Verdict:
        """The verdict on an episode that ends without an answer."""
        if self.broken:
            return self._verdict(0.0, UNKNOWN, self.broken)
        if not self._dialect.always_judged:
            return self._verdict(0.0, status, "")
        if self._problem.wants_answer:
            return self._verdict(0.0, status, "no answer")
        return await self._judged("", status)

    async def _judged(self, answer: str | None, status: str) -> Verdict:
        judgement = await judge(self._machine, self._problem, answer, self._dialect)
        return self._verdict(float(judgement.passed), status, judgement.reason)

    def _verdict(self, score: float, status: str, reason: str) -> Verdict:
        return Verdict(score, status, "; ".join([*self._notes, *([reason] if reason else [])]))


class Unplayable(Episode):
    """A problem whose set-up destroys its machine: no reply can be judged."""

    def __init__(self, opening: tuple[Message, ...], reason: str) -> None:
        self.opening = opening
        self._verdict = Verdict(0.0, UNKNOWN, reason)

    async def step(self, reply: Message) -> Turn:
        return self._verdict

    async def end(self, status: str) -> Verdict:
        return self._verdict

"""One problem being played on one machine."""

from __future__ import annotations

import re
from typing import Literal

from cqd_hub.errors import RunError
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


class Lost(RunError):
    """The machine that the sample *name* was played on is gone.

    Args:
        setting_up: Before the model's turn.
    """

    def __init__(self, name: str, loss: MachineLost, *, setting_up: bool = False) -> None:
        self.loss, self.setting_up = loss, setting_up
        super().__init__(
            f"a machine was lost: {loss}",
            where=f"agentbench_os {name}",
            remedy="run the same command again",
        )


class Playing(Episode):
    """A problem on its machine, set up by `set_up` before the first step.

    Args:
        name: The sample's id.
        machine: A fresh one; the episode closes it.
    """

    def __init__(
        self,
        name: str,
        machine: Machine,
        problem: Problem,
        dialect: Dialect,
        prompts: Prompts,
    ) -> None:
        self._name, self._machine, self._problem = name, machine, problem
        self._dialect, self._prompts = dialect, prompts
        self._notes: list[str] = []
        self.broken = ""
        asked = Message("user", prompts.before + problem.description)
        self.opening = (*prompts.opening, asked)

    async def set_up(self) -> None:
        """Run the problem's init scripts, then its start command in the shell.

        A script that fails makes `broken` say so; in a dialect that minds, the first step then
        ends the episode, unknown.

        Raises:
            Lost: The machine died of it.
        """
        try:
            await self._set_up()
        except MachineLost as loss:
            raise Lost(self._name, loss, setting_up=True) from loss

    async def _set_up(self) -> None:
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
        try:
            if self._dialect.tools:
                return await self._call(reply)
            action = parse_text(reply.content)
            if action is None:
                return await self._failed(INVALID_ACTION)
            return await self._act(action, "user", "")
        except MachineLost as loss:
            raise Lost(self._name, loss) from loss

    async def end(self, status: str) -> Verdict:
        try:
            return await self._failed(status)
        except MachineLost as loss:
            raise Lost(self._name, loss) from loss

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

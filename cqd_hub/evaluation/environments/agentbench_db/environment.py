"""The environment and its episodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.databases import Answered, Cell, DatabaseLost, Databases, Session
from cqd_hub.evaluation.environments.agentbench_db import grammar, judge
from cqd_hub.evaluation.episodes import (
    COMPLETED,
    CONTEXT_FULL,
    ROUNDS_SPENT,
    Environment,
    Episode,
    Message,
    Observation,
    Resources,
    Sample,
    Turn,
    Verdict,
)

from .data import Problem, problem_of, read_samples
from .prompts import read_prompts

INVALID = "agent validation failed"
FAILED = "task error"
_SHOWN = 800
_OPERATIONS = {"agentbench-v0.2": 15, "cycleqd": 5, "agentbench-fc": 15}
_NO_CALL = "No function was called. Call execute_sql or commit_final_answer."
_NO_SUCH_CALL = "There is no such function. Call execute_sql or commit_final_answer."
_NO_ARGUMENT = "The function was called without its argument."

# What MariaDB answers differently each time, or may: its numbers of connections, times, counters.
_UNSTEADY = re.compile(
    r"uuid|sys_guid|connection_id|random_bytes|encrypt|_lock|processlist|information_schema|status"
    r"|variables|@@|timestamp\s*=|pseudo_thread|prepare|execute\s+immediate|analyze|profile",
    re.IGNORECASE,
)


class DBBench(Environment):
    """AgentBench's DBBench in its dialects.

    - ``agentbench-v0.2``: ``Action:`` text, 15 statements.
    - ``cycleqd``: the same with 5; at the limit what was said is judged.
    - ``agentbench-fc``: function calls, 15 replies, forgiving comparison.

    A sample's score is 0 or 1. A table change is judged by the table whatever the dialect says of
    the conversation, as in the originals, except that function calling wants it committed.
    """

    class Options(Environment.Options):
        """What may be chosen."""

        data: str = Field(
            default="", description="AgentBench's dev.jsonl or standard.jsonl, or where they are"
        )
        dialect: Literal["agentbench-v0.2", "agentbench-fc", "cycleqd"] = "agentbench-v0.2"
        engine: Literal["sqlite", "mariadb"] = "sqlite"
        prompts: str = Field(
            default="own", description="own, none, or a checkout or file with the original text"
        )
        faithful: bool = Field(
            default=False, description="refuse other prompts than the original, and SQLite"
        )
        operations: Annotated[int, Field(ge=1)] | None = Field(
            default=None, description="statements (function calling: replies), at most"
        )

    repeatable: ClassVar[bool] = True
    options: Options

    def __init__(self, options: Options, folder: Path) -> None:
        super().__init__(options, folder)
        if not options.data:
            raise UserError(
                "no data",
                where="options.data",
                remedy="name a checkout of AgentBench, its dev.jsonl, or a data set of the Hub",
            )
        self.prompts = read_prompts(options.prompts, options.dialect, folder)
        if options.faithful and self.prompts.whose != "upstream":
            raise UserError(
                f"faithful wants the original prompts, not {self.prompts.whose}",
                where="options.prompts",
                remedy="name a checkout of AgentBench or CycleQD",
            )
        if options.faithful and options.engine != "mariadb":
            raise UserError(
                f"faithful wants a MySQL server, not {options.engine}",
                where="options.engine",
                remedy="write engine: mariadb",
            )
        self.operations = options.operations or _OPERATIONS[options.dialect]
        self.calls = options.dialect == "agentbench-fc"
        # A text dialect hears the model once more after the last statement.
        self.rounds = self.operations if self.calls else self.operations + 1
        self.tools = self.prompts.tools
        self.kind = f"{options.dialect}/{self.prompts.kind}/{options.engine}"
        self._samples: Mapping[str, Sequence[Sample]] | None = None
        self._databases: Databases | None = None

    def samples(self) -> Mapping[str, Sequence[Sample]]:
        if self._samples is None:
            self._samples = read_samples(self.options.data, self.folder, self.options.engine)
        return self._samples

    def remembered(self, reply: str) -> bool:
        return self.options.engine != "mariadb" or _UNSTEADY.search(reply) is None

    async def open(self, resources: Resources) -> None:
        if self.options.engine == "mariadb":
            from cqd_hub.evaluation.databases.mariadb import open_mariadb

            self._databases = await open_mariadb(note=resources.note)
        else:
            self._databases = await _open_sqlite(resources)
        self.guarantees = self._databases.guarantees

    async def close(self) -> None:
        if self._databases is not None:
            await self._databases.close()
            self._databases = None

    async def begin(self, sample: Sample) -> Episode:
        problem = problem_of(sample.document, sample.id)
        if self._databases is None:
            raise RuntimeError("the environment is not open")
        try:
            session = await self._databases.begin(problem.tables)
        except UserError as error:
            return _Unplayable(self._opening(problem), str(error))
        kind = _CallEpisode if self.calls else _TextEpisode
        return kind(self, problem, session)

    def _opening(self, problem: Problem) -> tuple[Message, ...]:
        return self.prompts.calling(problem) if self.calls else self.prompts.opening(problem)

    async def wanted(self, problem: Problem) -> tuple[str, ...]:
        """The digests that a right change leaves.

        Raises:
            RunError: The engine failed.
        """
        if problem.digests:
            return problem.digests
        assert self._databases is not None
        async with await self._databases.begin(problem.tables) as session:
            await _safely(session.execute(problem.sql))
            return await _digests(session, problem)


async def _open_sqlite(resources: Resources) -> Databases:
    from cqd_hub.evaluation.databases.sqlite import open_sqlite

    sandbox = await resources.sandbox()
    return await open_sqlite(sandbox, workers=resources.settings.sandbox_workers)


async def _safely(asked: Any) -> Any:
    """Await what a database is asked.

    Raises:
        RunError: It was lost.
    """
    try:
        return await asked
    except DatabaseLost as lost:
        raise RunError(f"the database was lost: {lost}") from lost


async def _digests(session: Session, problem: Problem) -> tuple[str, ...]:
    found = [await _safely(session.digest(table.name)) for table in problem.tables]
    return tuple(sorted(found))


def shown(answered: Answered) -> str:
    """An answer as the connector's Python prints it, the first 800 characters."""
    if answered.error:
        text = answered.error
    else:
        pieces, length = [], 0
        for row in answered.rows:
            pieces.append(_row(row))
            length += len(pieces[-1]) + 2
            if length > _SHOWN:
                break
        text = f"[{', '.join(pieces)}]"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}[TRUNCATED]"


def _row(row: tuple[Cell, ...]) -> str:
    """A row's text; of long cells no more than can be shown."""
    return repr(
        tuple(cell[: _SHOWN + 1] if isinstance(cell, str | bytes) else cell for cell in row)
    )


class _Episode(Episode):
    """What both kinds of dialect share."""

    def __init__(self, environment: DBBench, problem: Problem, session: Session) -> None:
        self.opening = environment._opening(problem)
        self._environment, self._problem, self._session = environment, problem, session

    async def _execute(self, sql: str) -> str:
        return shown(await _safely(self._session.execute(sql)))

    async def _judge(self, right: Callable[[], bool], status: str) -> Verdict:
        if self._problem.modifies:
            wanted = await self._environment.wanted(self._problem)
            found = await _digests(self._session, self._problem)
            good, why = found == tuple(sorted(wanted)), "the table is not as it should be"
        else:
            good, why = right(), "the answer is not right"
        return Verdict(float(good), status, "" if good else why)

    async def close(self) -> None:
        await self._session.close()


class _TextEpisode(_Episode):
    """AgentBench v0.2's and CycleQD's."""

    _spent = 0

    async def step(self, reply: Message) -> Turn:
        said = grammar.read(reply.content)
        limit = self._environment.operations
        if said.operates and self._spent < limit:
            if said.sql is not None:
                self._spent += 1
                return Observation((Message("user", await self._execute(said.sql)),))
            # CycleQD looks for an answer all the same.
            answer = said.answer if self._environment.options.dialect == "cycleqd" else None
        else:
            answer = said.answer
        status = COMPLETED if answer is not None else INVALID
        if not answer and self._spent >= limit:
            status = ROUNDS_SPENT
        return await self._end(answer or "", status)

    async def end(self, status: str) -> Verdict:
        return await self._end("", status)

    async def _end(self, answer: str, status: str) -> Verdict:
        label = self._problem.label
        return await self._judge(lambda: judge.right_answer(answer, label), status)


class _CallEpisode(_Episode):
    """The function-calling one."""

    async def step(self, reply: Message) -> Turn:
        if not reply.calls:
            return Observation((Message("user", _NO_CALL),))
        seen = []
        for call in reply.calls:
            arguments = list(call.arguments.values())
            if call.name == "commit_final_answer":
                if not arguments:
                    return Verdict(0.0, FAILED, "committed without an answer")
                given, label = arguments[0], self._problem.label
                return await self._judge(lambda: judge.right_answers(given, label), COMPLETED)  # noqa: B023
            if call.name != "execute_sql":
                text = _NO_SUCH_CALL
            elif not arguments:
                text = _NO_ARGUMENT
            else:
                text = await self._execute(str(arguments[0]))
            seen.append(Message("tool", text, call=call.id))
        return Observation(tuple(seen))

    async def end(self, status: str) -> Verdict:
        why = "nothing was committed" if status in (ROUNDS_SPENT, CONTEXT_FULL) else ""
        return Verdict(0.0, status, why)


class _Unplayable(Episode):
    """A sample whose table cannot be made; nothing it says can be right."""

    def __init__(self, opening: tuple[Message, ...], why: str) -> None:
        self.opening, self._why = opening, why

    async def step(self, reply: Message) -> Turn:
        return Verdict(0.0, FAILED, self._why)

    async def end(self, status: str) -> Verdict:
        return Verdict(0.0, FAILED, self._why)

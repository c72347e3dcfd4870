"""AgentBench's OS interaction as an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from cqd_hub.errors import RunError, UserError
from cqd_hub.evaluation.environments.agentbench_os.data import read_samples
from cqd_hub.evaluation.environments.agentbench_os.dialects import DIALECTS, Name
from cqd_hub.evaluation.environments.agentbench_os.episode import TASK_ERROR, UNKNOWN, Lost, Playing
from cqd_hub.evaluation.environments.agentbench_os.faults import needs_users
from cqd_hub.evaluation.environments.agentbench_os.problem import Problem
from cqd_hub.evaluation.environments.agentbench_os.prompts import (
    Prompts,
    no_prompts,
    own_prompts,
)
from cqd_hub.evaluation.environments.agentbench_os.upstream import upstream_prompts
from cqd_hub.evaluation.episodes import Environment, Episode, Resources, Sample, Verdict
from cqd_hub.evaluation.machines import (
    MachineLimits,
    MachineLost,
    Machines,
    open_machines,
    single_user,
)

_WHERE = "agentbench_os"
# A machine waits as long as the model takes to answer: what runs in it is bounded by command.
_MACHINE_SECONDS = 7 * 86_400.0


class OperatingSystem(Environment):
    """Problems on a Linux machine: questions about it and tasks to do on it, as root.

    Implements AgentBench's OS interaction (v0.2 and the function-calling version) and CycleQD's
    port of it. It departs from them where the shell is read: replies end with the command and not
    with what looks like a prompt, so none is cut short or empty by accident, and a command is
    ended after its time instead of left running behind an empty reply.
    """

    class Options(Environment.Options):
        """See docs/agentbench-os.md.

        Attributes:
            data: A checkout of AgentBench, a folder, a file, or a data set of the Hub.
            dialect: Whose rules.
            prompts: ``own``, ``none``, or the path of a checkout (or CycleQD's samples) to read
                upstream's from.
            faithful: Refuse prompts other than upstream's.
            machines: Which kind; ``auto`` takes bubblewrap.
            image: Of the machine; by default the one `cqd-hub sandbox build` makes.
        """

        data: str | None = None
        dialect: Name = "agentbench-v0.2"
        prompts: str = "own"
        faithful: bool = False
        machines: Literal["auto", "bubblewrap", "docker"] = "auto"
        image: str | None = None

    repeatable = False
    options: Options

    def __init__(self, options: Options, folder: Path) -> None:
        super().__init__(options, folder)
        self._dialect = DIALECTS[options.dialect]
        self._prompts = _prompts(options, folder, tools=self._dialect.tools)
        self.rounds, self.tools = self._dialect.rounds, self._prompts.tools
        if options.data is None:
            raise UserError(
                "needs data, which is not part of cqd-hub",
                where=f"{_WHERE}.data",
                remedy="options: {data: PATH of a checkout of github.com/THUDM/AgentBench, or of "
                "its files}",
            )
        self._samples = read_samples(options.data, folder, self._dialect, where=f"{_WHERE}.data")
        self._machines: Machines | None = None
        self._named: set[str] = set()

    def samples(self) -> Mapping[str, Sequence[Sample]]:
        if not single_user(self.options.machines):
            return self._samples
        return {
            split: [replace(one, fault=one.fault or needs_users(one.document)) for one in samples]
            for split, samples in self._samples.items()
        }

    async def open(self, resources: Resources) -> None:
        self._note = resources.note
        self._machines = await open_machines(
            self.options.machines, image=self.options.image, note=resources.note
        )
        self.kind = f"{self.options.dialect}/{self._prompts.kind}/{self._machines.kind}"
        self.guarantees = self._machines.guarantees

    async def close(self) -> None:
        if self._machines is not None:
            await self._machines.close()

    async def begin(self, sample: Sample) -> Episode:
        problem = Problem.model_validate(sample.document)
        machine = await self._open_machines.start(self._limits)

        playing = Playing(sample.id, machine, problem, self._dialect, self._prompts)
        try:
            await playing.set_up()
        except BaseException:
            await playing.close()
            raise
        if playing.broken:
            self._name_broken(sample, playing.broken)
        return playing

    async def lost(self, sample: Sample, error: RunError) -> Verdict | None:
        """Lost twice, while a fresh machine works, is the doing of what was played on it."""
        if not isinstance(error, Lost) or not await self._works():
            return None
        reason = f"the machine was lost twice: {error.loss}"
        if error.setting_up:
            self._name_broken(sample, reason)
        return Verdict(0.0, UNKNOWN if error.setting_up else TASK_ERROR, reason)

    @property
    def _open_machines(self) -> Machines:
        if self._machines is None:
            raise RuntimeError("the environment is not open")
        return self._machines

    @property
    def _limits(self) -> MachineLimits:
        return MachineLimits(memory_mb=self._dialect.memory_mb, machine_seconds=_MACHINE_SECONDS)

    async def _works(self) -> bool:
        machine = await self._open_machines.start(self._limits)
        try:
            return (await machine.run("true")).exit_code == 0
        except MachineLost:
            return False
        finally:
            await machine.close()

    def _name_broken(self, sample: Sample, reason: str) -> None:
        if sample.id not in self._named:
            self._named.add(sample.id)
            self._note(f"{_WHERE}: {sample.id} cannot be set up and is scored 0, unknown: {reason}")


def _prompts(options: OperatingSystem.Options, folder: Path, *, tools: bool) -> Prompts:
    where = f"{_WHERE}.prompts"
    if options.faithful and options.prompts in ("own", "none"):
        raise UserError(
            f"faithful: true needs upstream's prompts, not {options.prompts}",
            where=where,
            remedy="options: {prompts: PATH of a checkout of AgentBench}, or leave faithful out",
        )
    if options.prompts == "own":
        return own_prompts(tools=tools)
    if options.prompts == "none":
        return no_prompts(tools=tools)
    path = folder / Path(options.prompts).expanduser()
    return upstream_prompts(path, tools=tools, where=where)

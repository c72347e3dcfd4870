"""Machines in Docker: a container of the imported image, its command the same first process."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import asdict

from cqd_hub.evaluation.sandbox._sandboxes import no_proxies
from cqd_hub.evaluation.sandbox._worker import start_process
from cqd_hub.evaluation.sandbox.box import enter, groups, layers

from ._agent import AgentMachine, agent_frame, end_process
from ._bubblewrap import PYTHON
from ._interface import MachineLimits
from ._spare import SpareMachines

DEFAULT_IMAGE = "cqd-hub-machine"


class DockerMachines(SpareMachines):
    """One container per machine, one command of the engine for all that happens in it."""

    def __init__(self, image: str, digest: str) -> None:
        super().__init__()
        self._image = image
        self.kind = f"docker-{digest}"
        self.guarantees = (
            "docker: one container per machine without network; root inside with part of Docker's "
            "capabilities, system calls filtered by the engine and by us; memory, written bytes "
            "and files, and processes bounded together; CPU time per process, output and time "
            f"bounded; as strong as the container engine; image {image}"
        )

    async def _new(self, limits: MachineLimits) -> AgentMachine:
        name = f"cqd-hub-{uuid.uuid4().hex}"
        process = await start_process(docker_run(name, self._image, limits), None)

        async def end() -> None:
            # The agent ends with its standard input; the client with the container.
            if not await end_process(process, 10, ask=False):
                await _kill(name)

        machine = AgentMachine(process, limits, end)
        assert process.stdin is not None
        process.stdin.write(agent_frame(asdict(limits), memory=None, container=True))
        return machine


async def _kill(name: str) -> None:
    pipe = asyncio.subprocess.PIPE
    with contextlib.suppress(OSError):
        killer = await asyncio.create_subprocess_exec(
            "docker", "kill", name, stdout=pipe, stderr=pipe
        )
        await killer.communicate()


def docker_run(name: str, image: str, limits: MachineLimits) -> list[str]:
    """The command that starts a machine.

    Its root file system is a layer of our own, for the engine bounds none: that takes rights
    to mount, which the first process gives up before anything else runs.
    """
    memory = limits.memory_mb + limits.disk_mb + groups.AGENT_MB  # what is written lies in memory
    capabilities = [name.removeprefix("CAP_") for name in enter.CAPABILITIES]
    return [
        *("docker", "run", "--rm", "--interactive", "--name", name, "--pull", "never"),
        *("--network", "none", "--log-driver", "none", "--user", "0:0"),
        *("--cap-drop", "ALL", *(f"--cap-add={name}" for name in (*capabilities, *layers.RIGHTS))),
        *("--security-opt", "no-new-privileges", "--security-opt", "apparmor=unconfined"),
        *("--pids-limit", str(limits.processes + groups.AGENT_TASKS)),
        *("--memory", f"{memory}m", "--memory-swap", f"{memory}m"),
        *("--hostname", "box", "--workdir", "/", *no_proxies()),
        *("--entrypoint", PYTHON[0], image, *PYTHON[1:]),
    ]

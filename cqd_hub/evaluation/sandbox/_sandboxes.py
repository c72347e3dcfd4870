"""The sandboxes: warm workers (bubblewrap, landlock) and one container per answer (docker)."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import platform
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from cqd_hub.errors import UserError

from ._programs import (
    Limits,
    Outcome,
    Program,
    SandboxFailure,
    Status,
    outcome_of,
    printable,
    request_of,
)
from ._start import FLAGS, Service, Start, first_frame, frame
from ._worker import PATIENCE, PROBE, Worker, WorkerLost, exchange, last_words, sound

WALLS = (1, 3, 9)  # the wall limit of each attempt, as a multiple of the asked one
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_PYTHON = f"Python {platform.python_version()}"
GUARANTEES = {
    "bubblewrap": (
        "own user, pid, mount, ipc, uts, cgroup and network namespaces per worker, and user, pid, "
        "mount and ipc ones per answer; no network, no host files but a read-only /usr and Python; "
        "private tmpfs bounded in bytes and files; no capabilities, filtered system calls; CPU, "
        "memory per process, process count, output and wall time bounded; total memory sampled, "
        f"not reserved; same kernel; {_PYTHON}"
    ),
    "landlock": (
        "weaker than bubblewrap: no namespaces; Landlock hides files beyond a read-only /usr, "
        "Python and a private folder; names, sizes and times of hidden files can be looked up; "
        "started by an ordinary user, no chmod, chown, utime, xattr or priorities; no "
        "sockets, filtered system calls; CPU, memory per process, output and wall time bounded; "
        "total memory, processes, bytes and files written sampled "
        f"every 25 ms, not reserved; same kernel, same process numbers; {_PYTHON}"
    ),
    "docker": (
        "one container per answer without network, capabilities or a writable root; memory, "
        "processes, CPU, tmpfs, output and wall time bounded; as strong as the container engine; "
        "Python and tools of image {image}"
    ),
}


class Sandbox(abc.ABC):
    """A place where text written by a model may run.

    Attributes:
        kind: bubblewrap, landlock or docker.
        guarantees: One line for the manifest: what is bounded and what is not.
    """

    kind: str
    guarantees: str

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @abc.abstractmethod
    async def open(self) -> None:
        """Run a trivial answer."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End every box."""

    @abc.abstractmethod
    def service(self, service: Service) -> AbstractContextManager[Start]:
        """How to start *service* in a box of this kind: its command, environment, first frame.

        It ends with its standard input; what it does before is for the caller to bound in time.
        """

    @abc.abstractmethod
    async def _attempt(self, request: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
        """Return the report of one try.

        Raises:
            WorkerLost: the box died, hung, or could not be made.
        """

    async def run(self, program: Program, limits: Limits = Limits()) -> Outcome:  # noqa: B008
        """Run one program in a box of its own; calls queue for free workers.

        Raises:
            SandboxFailure: the machine failed three times; the answer has no verdict.
        """
        request = request_of(program, limits)
        reasons, deaths = [], 0
        for factor in WALLS:
            request["limits"]["wall_seconds"] = limits.wall_seconds * factor
            try:
                report = await self._attempt(request, fresh=factor != WALLS[0])
            except WorkerLost as lost:
                reasons.append(str(lost))
                deaths += lost.died
                continue
            if report["end"] != "wall":
                return outcome_of(program, report)
            reasons.append(f"no core for it within {limits.wall_seconds * factor:g} s")
        if deaths == len(WALLS):
            # Every fresh box ran a trivial answer before this one ended it.
            return Outcome(Status.FAILED, None, f"ended its box each time: {reasons[-1]}", 0.0)
        raise SandboxFailure(
            f"an answer could not be run: {'; '.join(reasons)}",
            where=f"{self.kind} sandbox",
            remedy="free some cores or memory, then run the same command again",
        )


class WarmSandbox(Sandbox):
    """Answers queue over *workers* warm boxes; a box that misbehaves is replaced."""

    def __init__(
        self, kind: str, start: Callable[..., AbstractContextManager[Start]], workers: int
    ) -> None:
        self.kind, self.guarantees = kind, f"{kind}: {GUARANTEES[kind]}"
        self._start = start
        self._idle: asyncio.Queue[Worker | None] = asyncio.Queue()
        for _ in range(workers):
            self._idle.put_nowait(None)

    async def open(self) -> None:
        """Start one worker now, so that what is missing shows at once; the others when needed."""
        self._idle.get_nowait()
        self._idle.put_nowait(await self._new())

    def service(self, service: Service) -> AbstractContextManager[Start]:
        return self._start(service)

    async def _new(self) -> Worker:
        worker = Worker(self._start)
        try:
            await worker.open()
        except BaseException:
            await worker.close()
            raise
        return worker

    async def _attempt(self, request: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
        worker = await self._idle.get()
        healthy = False
        try:
            if worker is not None and fresh:
                await worker.close()
                worker = None
            if worker is None:
                worker = await self._new()
            report = await worker.ask(request)
            healthy = True
            return report
        finally:
            if worker is not None and not healthy:  # lost, or this call was cancelled midway
                await worker.close()
            self._idle.put_nowait(worker if healthy else None)

    async def close(self) -> None:
        while not self._idle.empty():
            worker = self._idle.get_nowait()
            if worker is not None:
                await worker.close()


class DockerSandbox(Sandbox):
    """One container per answer: slow to start, nothing to share."""

    kind = "docker"

    def __init__(self, image: str, workers: int) -> None:
        self.guarantees = f"docker: {GUARANTEES['docker'].format(image=image)}"
        self._image = image
        self._free = asyncio.Semaphore(workers)
        self._first = first_frame({"kind": "container", "once": True})

    async def open(self) -> None:
        """Run a trivial answer.

        Raises:
            UserError: no engine, no image, or no python3 (3.9 or later) or bash in it.
        """
        try:
            report = await self._attempt(PROBE, fresh=True)
        except (WorkerLost, FileNotFoundError) as error:
            raise UserError(
                f"the docker sandbox does not work: {error}",
                remedy="start the engine, and `docker pull` an image with python3 and bash",
            ) from None
        if not sound(report):
            raise UserError(f"the docker sandbox does not work: {printable(str(report))}")

    async def _attempt(self, request: dict[str, Any], *, fresh: bool) -> dict[str, Any]:
        name = f"cqd-hub-{uuid.uuid4().hex}"
        async with self._free:
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                *_docker_run(name, self._image, request["limits"]),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
            wall = request["limits"]["wall_seconds"] + PATIENCE + 30
            try:
                async with asyncio.timeout(wall):
                    # Standard input stays open until the report is here: a box ends when it ends.
                    report = await exchange(process, self._first + frame(request))
            except TimeoutError:
                raise WorkerLost("the container hung") from None
            except (OSError, EOFError, ValueError):
                words = await last_words(process)
                await process.wait()
                raise WorkerLost(words, died=process.returncode == 137) from None
            finally:
                await self._end(process, name)
        if report["end"] == "setup":
            raise WorkerLost(printable(report["detail"]))
        return report

    @contextlib.contextmanager
    def service(self, service: Service) -> Iterator[Start]:
        name = f"cqd-hub-{uuid.uuid4().hex}"
        first = first_frame({"kind": "container", "once": False}, service=service)
        limits = {"memory_mb": service.memory_mb, "disk_mb": 1, "processes": 1, "files": 16}
        command = _docker_run(name, self._image, limits)
        try:
            yield Start(command, dict(os.environ), first)
        finally:
            # Gone already if it saw the end of its input.
            subprocess.run(["docker", "kill", name], capture_output=True, check=False)

    async def _end(self, process: asyncio.subprocess.Process, name: str) -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            pipe = asyncio.subprocess.PIPE
            killer = await asyncio.create_subprocess_exec(
                "docker", "kill", name, stdout=pipe, stderr=pipe
            )
            await killer.communicate()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def close(self) -> None:
        """Nothing stays: a container ends with its answer."""


def _docker_run(name: str, image: str, limits: dict[str, Any]) -> list[str]:
    memory = limits["memory_mb"] + 2 * limits["disk_mb"] + 64  # its tmpfs and the keeper count too
    # Owned by the user: a mode would yield to that of the image's own folder.
    tmpfs = "rw,exec,nosuid,nodev,uid=65534,gid=65534,mode=755,"
    tmpfs += f"size={limits['disk_mb']}m,nr_inodes={limits['files'] + 1}"
    return [
        *("docker", "run", "--rm", "--interactive", "--name", name, "--pull", "never"),
        *("--network", "none", "--ipc", "none", "--read-only", "--log-driver", "none"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65534:65534"),
        *("--pids-limit", str(limits["processes"] + 2)),
        *("--memory", f"{memory}m", "--memory-swap", f"{memory}m"),
        *("--tmpfs", f"/work:{tmpfs}", "--tmpfs", f"/tmp:{tmpfs}"),
        *("--hostname", "box", "--workdir", "/work", "--env", "PYTHONHASHSEED=0"),
        *no_proxies(),
        *("--entrypoint", "python3", image, *FLAGS),
    ]


def no_proxies() -> list[str]:
    """Else the client puts the user's proxies, with their passwords, into every container."""
    names = [name for word in _PROXIES for name in (word, word.upper())]
    return [word for name in names for word in ("--env", f"{name}=")]

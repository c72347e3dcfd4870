"""Which executor a person asked for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub.errors import RunError, UserError
from cqd_hub.recipe import Recipe
from cqd_hub.run.executors._interface import Executor
from cqd_hub.run.executors._local import LocalExecutor
from cqd_hub.run.executors._processes import ProcessExecutor
from cqd_hub.run.executors._ray import RayExecutor
from cqd_hub.run.executors._worker import Opening
from cqd_hub.run.lineup import Lineup, open_lineup
from cqd_hub.run.workbench import open_workbench

_ADDRESS = re.compile(r"(ray://)?[\w.\-\[\]:]+:\d+")


class Choice(NamedTuple):
    """Who is to evaluate.

    Args:
        kind: ``local`` (this process), ``processes`` of this machine, or ``ray``.
        workers: How many; None for as many as there is room for.
        address: Of a Ray cluster; None for the one that is found, or a new one.
    """

    kind: str
    workers: int | None = None
    address: str | None = None


def choose(executor: str, workers: int | None, device: str) -> Choice:
    """Read the command line's words.

    Args:
        executor: auto, local, processes, ray, ``ray://host:port`` or ``host:port``.
        workers: How many, or None.
        device: The recipe's; with ``auto`` and several GPUs, each gets a process of its own.

    Raises:
        UserError: No such executor.
    """
    if executor == "auto":
        gpus = _gpus() if device == "auto" and workers is None else 0
        if gpus > 1:
            return Choice("processes", gpus)
        return Choice("local") if workers is None else Choice("processes", workers)
    if executor == "local":
        if workers not in (None, 1):
            raise UserError(
                "the local executor is one worker",
                where="--workers",
                remedy="leave --executor out for worker processes",
            )
        return Choice("local")
    if executor == "processes":
        return Choice("processes", workers or max(_gpus(), 1))
    if executor == "ray":
        return Choice("ray", workers)
    if _ADDRESS.fullmatch(executor):
        return Choice("ray", workers, executor)
    raise UserError(
        f"{executor!r} is no executor",
        where="--executor",
        remedy="use local, processes, ray or ray://HOST:PORT",
    )


@asynccontextmanager
async def open_executor(
    choice: Choice,
    recipe: Recipe,
    folder: Path,
    *,
    run: Path,
    pins: Mapping[str, str],
    note: Callable[[str], None],
) -> AsyncIterator[tuple[Lineup, Executor]]:
    """Open what makes a run's children, and who evaluates them.

    Args:
        choice: From `choose`.
        recipe: What is run; relative paths start from *folder*.
        run: The run directory.
        pins: Commits of models of the Hub that a run keeps to.
        note: Called with a line for what a person should know.

    Raises:
        UserError: Anything wrong with models, tasks, device, sandbox or cluster.
        RunError: A model cannot be had from the Hub now, a worker cannot be started.
    """
    if choice.kind == "local":
        async with open_workbench(recipe, folder, run=run, pins=pins, note=note) as bench:
            yield bench, LocalExecutor(bench)
        return
    lineup = open_lineup(recipe, folder, run=run, pins=pins, note=note)
    opening = Opening(
        recipe=recipe.model_dump(mode="json"),
        folder=str(folder.resolve()),
        run=str(run.resolve()),
        basis=lineup.basis.hash,
        pins=lineup.models.pins,
        threads=_threads(choice),
    )
    executor: Executor
    if choice.kind == "ray":
        executor = RayExecutor(
            opening, lineup.basis, address=choice.address, workers=choice.workers, note=note
        )
    else:
        executor = ProcessExecutor(opening, _environments(choice.workers or 1), note=note)
    async with executor:
        yield lineup, executor


def common_manifest(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all workers promise.

    Raises:
        RunError: They differ in more than versions and the names of devices.
    """
    first, *others = manifests
    for other in others:
        for key in first:
            if key != "versions" and other.get(key) != first[key]:
                one, another = _short(first[key]), _short(other.get(key))
                raise RunError(
                    f"two workers differ in {key}: {one} and {another}",
                    where="--executor",
                    remedy="set device, dtype and sandbox in the recipe, and use like machines",
                )
    return dict(first)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _threads(choice: Choice) -> int:
    """Of each of several workers on one CPU; 0 leaves torch its own way."""
    if choice.kind != "processes" or choice.workers in (None, 1) or _gpus():
        return 0
    return max(1, (os.cpu_count() or 1) // choice.workers)


def _environments(workers: int) -> list[Mapping[str, str]]:
    """One GPU for each worker, in turn, where there are any."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(_gpus())]
    if not names or not _gpus():
        return [{} for _ in range(workers)]
    return [{"CUDA_VISIBLE_DEVICES": names[n % len(names)]} for n in range(workers)]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()

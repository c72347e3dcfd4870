"""The command that looks ahead: plan."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cqd_hub.cli.options import JsonOption, OverrideOption, QuietOption, RecipeArgument

if TYPE_CHECKING:
    from cqd_hub.run.plan import Plan


def plan(
    recipe: RecipeArgument,
    overrides: OverrideOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will take before any weights are downloaded: memory, disk, time, and engine.

    Reads headers of the models and prompts of the tasks, and measures this machine for a few
    seconds.

    Examples:

        cqd-hub plan quickstart

        cqd-hub plan recipe.yaml --set search.children=400 --set genome.rank=64 --json
    """
    from cqd_hub.recipe import Recipe, find_recipe, load_yaml
    from cqd_hub.run.plan import make_plan

    def note(line: str) -> None:
        if not quiet:
            print(f"  {line}", file=sys.stderr)

    path = find_recipe(recipe)
    made = make_plan(load_yaml(path, Recipe, overrides or []), path.resolve().parent, note=note)
    if as_json:
        print(json.dumps(made.record()))
        return
    rows = list(_rows(made))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    from cqd_hub.files import size_text

    yield "device", f"{plan.device}, {plan.dtype}"
    yield "engine", f"{plan.engine.kind}: {plan.engine.reason}"
    if plan.device != "cpu" and plan.weights == "host":
        yield "weights", "kept in the host's memory, and streamed for every child"
    for what, size in plan.memory.items():
        yield f"memory: {what}", size_text(size)
    yield "memory: together", size_text(sum(plan.memory.values()))
    yield "memory: of the process", size_text(plan.host)
    for what, size in plan.disk.items():
        yield f"disk: {what}", size_text(size)
    parts = ", ".join(f"{what} {_time(t)}" for what, t in plan.child._asdict().items())
    yield "a child", f"{_time(plan.per_child)} ({parts})"
    for what, seconds in plan.seconds.items():
        yield f"time: {what}", _time(seconds)
    yield "time: together", _time(sum(plan.seconds.values()))
    rates = plan.rates
    yield (
        "measured",
        f"{rates.multiply / 1e9:.3g} Gflop/s, {rates.bandwidth / 1e9:.3g} GB/s, "
        f"{rates.token * 1e6:.3g} µs a prompt token, {rates.step * 1e3:.3g} ms a decoding pass, "
        f"{rates.execution * 1e3:.3g} ms an execution",
    )
    for line in plan.assumed:
        yield "assumed", line


def _time(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"

"""What was planned and what it took, from a run's ``plan.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub.files import size_text


class Compared(NamedTuple):
    """One line: what, as planned, as measured, and how many times the plan that is."""

    name: str
    planned: str
    measured: str
    ratio: float


def compared(folder: Path, seconds: dict[str, float]) -> list[Compared]:
    """Lines of all that was both planned and measured; none where there is no plan.

    Args:
        folder: A run directory.
        seconds: Phase of a child → its mean, as recorded.
    """
    try:
        content = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        plan, took = content["plan"], content["took"]
        return [line for line in _lines(plan, took, seconds) if line is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _lines(
    plan: dict[str, Any], took: dict[str, Any], seconds: dict[str, float]
) -> list[Compared | None]:
    children = took.get("children")
    per_child = took["seconds"] / children if children else None
    lines = [
        _line("wall time per child (throughput)", plan["per_child_seconds"], per_child, _seconds)
    ]
    for phase in ("materialise", "generate", "execute"):
        name = f"{phase}, of one child"
        lines.append(_line(name, plan["child"][phase], seconds.get(phase), _seconds))
    memory = sum(plan["memory"].values())
    lines.append(_line("memory of the device, at its peak", memory, took.get("device"), _size))
    lines.append(_line("memory of the process, at its peak", plan["host"], took.get("host"), _size))
    disk = plan["disk"].get("run", 0) + plan["disk"].get("merges", 0)
    lines.append(_line("disk of the run", disk, took.get("disk"), _size))
    return lines


def _line(name: str, planned: float, measured: float | None, text: Any) -> Compared | None:
    if not measured or not planned:
        return None
    return Compared(name, text(planned), text(measured), float(measured) / float(planned))


def _seconds(value: float) -> str:
    return f"{value:.3f} s"


def _size(value: float) -> str:
    return size_text(int(value))

"""The ancestors of one individual, down to the experts, as a small layered graph."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cqd_hub.report._data import RunData
from cqd_hub.report._figures import COLOURS, INK, SOFT, new_figure, safe
from cqd_hub.report._text import percent, short
from cqd_hub.run.journal import Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GENERATIONS = 5  # ancestors drawn back to here
_NODES = 22
_WIDTH, _HEIGHT, _STEP_X = 1.42, 0.46, 1.88  # inches
_SLOT, _PASSAGE = 0.62, 0.2  # height of a node's place in its column, and of a line's

Place = tuple[int, int]  # (id, column); in another column than its own: a line passing through


@dataclass(frozen=True)
class Lineage:
    """What is drawn.

    Attributes:
        column: Id → its column, 0 the oldest.
        parents: Id → its drawn parents.
        cut: Ids whose parents are left out.
    """

    column: dict[int, int]
    parents: dict[int, tuple[int, ...]]
    cut: frozenset[int]


def lineage_of(run: RunData, individual: int) -> Lineage:
    """Return the ancestors of *individual*: at most five generations and about 20 nodes."""
    depth = {individual: 0}
    parents: dict[int, tuple[int, ...]] = {}
    cut = set()
    # Children have higher ids than their parents, and an aggregate (< 0) is nobody's parent: so
    # each node comes up after everything made from it.
    queue = [(individual >= 0, -individual)]
    while queue:
        number = -heapq.heappop(queue)[1]
        drawn = tuple(dict.fromkeys(_parents(run, number)))
        new = [parent for parent in drawn if parent not in depth]
        if drawn and (depth[number] == _GENERATIONS or len(depth) + len(new) > _NODES):
            cut.add(number)
            drawn = ()
        parents[number] = drawn
        for parent in drawn:
            if parent not in depth:
                heapq.heappush(queue, (parent >= 0, -parent))
            depth[parent] = max(depth.get(parent, 0), depth[number] + 1)
    roots = [n for n in depth if run.individuals[n].role == Role.EXPERT and n != individual]
    last = max((depth[number] for number in depth if number not in roots), default=0)
    depth |= dict.fromkeys(roots, last + 1)
    deepest = max(depth.values())
    return Lineage({n: deepest - d for n, d in depth.items()}, parents, frozenset(cut))


def lineage_figure(run: RunData, individual: int) -> Figure:
    """Draw the ancestors of *individual*, oldest left; averages are of the optimisation split."""
    from matplotlib.patches import FancyBboxPatch, PathPatch
    from matplotlib.path import Path

    lineage = lineage_of(run, individual)
    lines = _lines(lineage)
    height_of = _heights(lineage, lines)
    top, bottom = max(height_of.values()), min(height_of.values())
    left, right = -_WIDTH / 2 - 0.36, max(lineage.column.values()) * _STEP_X + _WIDTH / 2 + 0.1
    low, high = bottom - _HEIGHT / 2 - 0.1, top + _HEIGHT / 2 + 0.1
    figure = new_figure(right - left, high - low)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)

    for start, end in lines:
        x0, x1 = start[1] * _STEP_X + _WIDTH / 2, end[1] * _STEP_X - _WIDTH / 2
        y0, y1 = height_of[start], height_of[end]
        middle = (x0 + x1) / 2
        points = [(x0, y0), (middle, y0), (middle, y1), (x1, y1)]
        codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
        if lineage.column[end[0]] != end[1]:
            points.append((x1 + _WIDTH, y1))
            codes.append(Path.LINETO)
        axes.add_patch(
            PathPatch(Path(points, codes), fill=False, edgecolor="#8b97a6", linewidth=1.1)
        )
    for number, column in lineage.column.items():
        x, y = column * _STEP_X, height_of[number, column]
        expert = run.individuals[number].role == Role.EXPERT
        axes.add_patch(
            FancyBboxPatch(
                (x - _WIDTH / 2, y - _HEIGHT / 2),
                _WIDTH,
                _HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.07",
                facecolor="#fdf1d8" if expert else "white",
                edgecolor=COLOURS[0] if number == individual else "#8b97a6",
                linewidth=2.2 if number == individual else 1.0,
                zorder=2,
            )
        )
        _label(axes, run, number, x, y)
        if number in lineage.cut:
            axes.text(x - _WIDTH / 2 - 0.06, y, "…", ha="right", va="center", fontsize=12)
    return figure


def describe(run: RunData, individual: int) -> str:
    """Return the lineage in words, for those who do not see the picture."""
    lineage = lineage_of(run, individual)
    lines = []
    for number in sorted(lineage.parents, reverse=True):
        parents = _parents(run, number)
        if parents:
            names = " and ".join(_name(run, parent) for parent in dict.fromkeys(parents))
            lines.append(f"{_name(run, number)} from {names} ({operators(run, number)})")
    return "; ".join(lines) or f"{_name(run, individual)} has no parents"


def operators(run: RunData, individual: int) -> str:
    """Return how an individual was made, in a few characters: ``53:47 + svd os``."""
    lineage = run.individuals[individual].lineage
    parts = []
    crossover = lineage.get("crossover")
    shares = _shares((crossover if isinstance(crossover, dict) else lineage).get("shares"))
    method = crossover.get("method", "linear") if isinstance(crossover, dict) else "linear"
    if method != "linear":
        parts.append(f"{method} {shares}".strip())
    elif shares and len(set(_parents(run, individual))) > 1:
        parts.append(shares)
    mutation = lineage.get("mutation")
    kind = mutation.get("kind", "none") if isinstance(mutation, dict) else "none"
    if isinstance(mutation, dict) and kind != "none":
        of = lineage.get("expert") if kind == "svd" and mutation.get("of") != "child" else ""
        parts.append(f"{kind} {of or ''}".strip())
    return short(" + ".join(parts) or "copy", 40)


def _label(axes: Axes, run: RunData, number: int, x: float, y: float) -> None:
    average = run.average(number)
    score = "" if average is None else f"  {percent(average)}"
    if "stopped_early" in run.individuals[number].lineage:
        score = "  stopped"
    first = safe(short(_name(run, number), 15) + score)
    expert = run.individuals[number].role == Role.EXPERT
    second = "expert" if expert else safe(operators(run, number), 23)
    axes.text(x, y + 0.09, first, ha="center", va="center", fontsize=8.5, color=INK, zorder=3)
    axes.text(x, y - 0.10, second, ha="center", va="center", fontsize=7.2, color=SOFT, zorder=3)


def _name(run: RunData, number: int) -> str:
    one = run.individuals[number]
    return one.name if one.role != Role.CHILD else f"#{number}"


def _parents(run: RunData, number: int) -> list[int]:
    recorded = run.individuals[number].lineage.get("parents") or []
    return [int(parent) for parent in recorded if int(parent) in run.individuals]


def _shares(shares: Any) -> str:
    """The parents' shares in percent; ≈ where they differ between tensors and a mean is shown."""
    if not isinstance(shares, list) or len(shares) < 2:
        return ""
    try:
        each = [np.asarray(share, float) for share in shares]
    except (TypeError, ValueError):
        return ""
    if not all(share.size and np.isfinite(share).all() for share in each):
        return ""
    varies = "≈" if any(share.size > 1 for share in each) else ""
    return varies + ":".join(f"{100 * share.mean():.0f}" for share in each)


def _lines(lineage: Lineage) -> list[tuple[Place, Place]]:
    """Return all lines from one column to the next; children of one parent share its line."""
    lines = set()
    for number, parents in lineage.parents.items():
        end = lineage.column[number]
        for parent in parents:
            start = lineage.column[parent]
            for column in range(start, end - 1):
                lines.add(((parent, column), (parent, column + 1)))
            lines.add(((parent, end - 1), (number, end)))
    return sorted(lines)


def _heights(lineage: Lineage, lines: list[tuple[Place, Place]]) -> dict[Place, float]:
    """Return each place's height, ordered so that few lines cross."""
    neighbours: dict[Place, list[Place]] = {}
    for start, end in lines:
        neighbours.setdefault(start, []).append(end)
        neighbours.setdefault(end, []).append(start)
    places = {(number, column) for number, column in lineage.column.items()} | neighbours.keys()
    columns: list[list[Place]] = [[] for _ in range(max(lineage.column.values()) + 1)]
    for place in sorted(places):
        columns[place[1]].append(place)

    height: dict[Place, float] = {}

    def stack(column: list[Place]) -> None:
        sizes = [_SLOT if lineage.column[n] == at else _PASSAGE for n, at in column]
        middles = sum(sizes) / 2 - (np.cumsum(sizes) - np.array(sizes) / 2)
        height.update(zip(column, middles.tolist(), strict=True))

    for column in columns:
        stack(column)
    for sweep in range(12):
        for column in columns if sweep % 2 else columns[::-1]:
            wanted = {
                place: float(np.mean([height[other] for other in neighbours.get(place, [place])]))
                for place in column
            }
            column.sort(key=lambda place: -wanted[place])
            stack(column)
    return height

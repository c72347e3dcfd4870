"""Curves over the children told, and the table as a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cqd_hub.report._data import History
from cqd_hub.report._figures import COLOURS, DASHES, INK, SOFT, new_figure, plain, safe
from cqd_hub.report._table import Row
from cqd_hub.report._text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUPS = {
    "base": (SOFT, "s"),
    "expert": ("#e69f00", "^"),
    "baseline": (SOFT, "D"),
    "elite": ("#0072b2", "o"),
    "aggregate": ("#009e73", "P"),
}


def curves_figure(history: History, skills: Sequence[str], experts_best: float) -> Figure:
    """Draw QD score, coverage, average and best per skill over the children told.

    Args:
        history: The archives after each child, at least one.
        skills: Names of the K skills.
        experts_best: The highest average of an expert, 0..1; drawn for reference.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(8.4, 6.0)
    (qd, coverage), (average, best) = figure.subplots(2, 2, sharex=True)
    told = history.children
    _step(qd, told, history.qd_score.sum(axis=1))
    plain(qd, title="QD score, summed over the archives")
    _step(coverage, told, 100 * history.coverage.mean(axis=1))
    plain(coverage, title="Coverage, mean over the archives (%)")
    for axes in (qd, coverage):
        axes.set_ylim(bottom=0)

    children = 100 * history.average
    average.plot(
        told, children, ".", color="#9fb4c7", markersize=4, label="each child", clip_on=False
    )
    running = np.fmax.accumulate(np.fmax(children, 100 * experts_best))
    _step(average, told, running, label="best so far")
    average.axhline(
        100 * experts_best, color=COLOURS[1], linestyle="--", linewidth=1.3, label="best expert"
    )
    plain(average, title="Average over the skills (%)", x="children told")
    for k, skill in enumerate(skills):
        _step(best, told, 100 * history.best[:, k], k, label=safe(skill, 24))
    plain(best, title="Best per skill (%)", x="children told")
    for axes in (average, best):
        axes.margins(y=0.12)
        axes.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
    qd.set_xlim(0, told[-1])
    qd.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _step(
    axes: Axes, x: np.ndarray, y: np.ndarray, colour: int = 0, label: str | None = None
) -> None:
    axes.plot(
        x,
        y,
        drawstyle="steps-post",
        color=COLOURS[colour % len(COLOURS)],
        linestyle=DASHES[colour % len(DASHES)] if colour else "-",
        linewidth=1.8,
        label=label,
    )


def table_figure(rows: Sequence[Row]) -> Figure:
    """Draw each row's average with its 95 % interval, the best expert's as reference line."""
    figure = new_figure(7.6, 0.36 * len(rows) + 1.1)
    axes = figure.subplots()
    place = np.arange(len(rows))[::-1]
    for y, row in zip(place, rows, strict=True):
        colour, marker = _GROUPS[row.group]
        mean, low, high = (100 * value for value in row.average[:3])
        axes.plot([low, high], [y, y], color=colour, linewidth=2.0, solid_capstyle="butt")
        axes.plot([mean], [y], marker=marker, color=colour, markersize=7.5, linestyle="none")
        axes.annotate(
            f"{percent(mean / 100)}  [{percent(low / 100)}, {percent(high / 100)}]",
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            fontweight="bold" if row.chosen else "normal",
            color=INK,
        )
    best = next((row for row in rows if row.group == "expert" and row.difference is None), None)
    if best is not None:
        axes.axvline(100 * best.average.mean, color=_GROUPS["expert"][0], linestyle="--", zorder=0)
    plain(
        axes,
        x=f"average over {len(rows[0].skills)} skills on {rows[0].split} (%), "
        f"n = {_counts(rows)}, 95 % confidence intervals",
    )
    axes.grid(visible=False, axis="y")
    axes.set_yticks(place, [_wrapped(row) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(INK)
        label.set_fontweight("bold" if row.chosen else "normal")
    axes.tick_params(axis="y", labelsize=9, length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    return figure


def _wrapped(row: Row) -> str:
    text = safe(row.label, 80) + (" (chosen)" if row.chosen else "")
    # An individual that is several things breaks between them.
    return "\n".join(line for part in text.split(", ") for line in textwrap.wrap(part, 30))


def _counts(rows: Sequence[Row]) -> str:
    counts = {row.average.n for row in rows}
    return str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"

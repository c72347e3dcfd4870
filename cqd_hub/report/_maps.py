"""A picture of one archive: quality as colour over the other skills' scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cqd_hub.report._figures import EMPTY, INK, MARKERS, SCALE, new_figure, plain, safe
from cqd_hub.search import Archive, GridArchive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_PANELS = 9


class Colours(NamedTuple):
    """A colour scale: as what plots take, and as what turns values into colours."""

    norm: Normalize
    mappable: ScalarMappable


class Marked(NamedTuple):
    """An expert to mark: its name and (K,) optimisation scores."""

    name: str
    scores: np.ndarray


def archive_figure(archive: Archive, skills: Sequence[str], experts: Sequence[Marked]) -> Figure:
    """Draw one archive, scores in %.

    Two skills: bars over the other skill (points without a grid). Three: a map. More: one map per
    pair of the other skills, at most nine, each cell showing the best over the remaining skills.
    """
    pairs = panels_of(archive.skill, len(skills))[:_PANELS]
    if not pairs:
        figure = new_figure(5.6, 3.9)
        axes = figure.subplots()
        _line(axes, archive, skills, experts)
        axes.set_title(safe(_title(archive, skills)), fontsize=11, color=INK, loc="left")
    else:
        columns = min(len(pairs), 3)
        rows = -(-len(pairs) // columns)
        size = 3.4 if len(pairs) == 1 else 3.1
        figure = new_figure(size * columns + 0.9, size * rows + (0.7 if len(pairs) == 1 else 0.4))
        grid = figure.subplots(rows, columns, squeeze=False)
        colours = _colours(archive)
        for axes in grid.flat[len(pairs) :]:
            axes.set_visible(False)
        for axes, pair in zip(grid.flat, pairs, strict=False):
            _map(axes, archive, pair, skills, experts, colours)
        figure.suptitle(safe(_title(archive, skills)), fontsize=11, color=INK, x=0.02, ha="left")
        bar = figure.colorbar(
            colours.mappable, ax=list(grid.flat[: len(pairs)]), shrink=0.9, aspect=28
        )
        bar.set_label(safe(f"{skills[archive.skill]} score (%)"), fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8, length=3)
        bar.outline.set_visible(False)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(4, max(1, len(experts))),
        fontsize=8,
        frameon=False,
    )
    return figure


def panels_of(skill: int, skills: int) -> list[tuple[int, int]]:
    """Return the pairs of other skills that need a map; none for two skills."""
    return list(combinations([other for other in range(skills) if other != skill], 2))


def _title(archive: Archive, skills: Sequence[str]) -> str:
    places = round(len(archive) / archive.coverage)
    kind = "cells" if isinstance(archive, GridArchive) else "places"
    return f"Archive {skills[archive.skill]}: {len(archive)} of {places} {kind} filled"


def _map(
    axes: Axes,
    archive: Archive,
    pair: tuple[int, int],
    skills: Sequence[str],
    experts: Sequence[Marked],
    colours: Colours,
) -> None:
    x, y = pair
    plain(axes, x=f"{skills[x]} score (%)", y=f"{skills[y]} score (%)", grid=False)
    if isinstance(archive, GridArchive):
        low, high = 100 * archive.bounds.T
        across, along = (archive.measures.index(skill) for skill in pair)
        bins = archive.bins[across], archive.bins[along]
        best = np.full(bins[::-1], np.nan)
        for cell, elite in archive.cells.items():
            place = cell[along], cell[across]
            best[place] = np.fmax(best[place], 100 * elite.scores[archive.skill])
        axes.pcolormesh(
            np.linspace(low[x], high[x], bins[0] + 1),
            np.linspace(low[y], high[y], bins[1] + 1),
            np.ma.masked_invalid(best),
            cmap=SCALE,
            norm=colours.norm,
            edgecolors="white",
            linewidth=0.6 if max(bins) <= 30 else 0,
        )
        axes.set_facecolor(EMPTY)
    else:
        scores = 100 * archive.elites.scores
        axes.set_facecolor(EMPTY)
        axes.scatter(
            scores[:, x],
            scores[:, y],
            c=scores[:, archive.skill],
            cmap=SCALE,
            norm=colours.norm,
            s=42,
            edgecolors="white",
            linewidth=0.6,
        )
        low = 100 * np.min([*archive.elites.scores, *(e.scores for e in experts)], axis=0) - 4
        high = 100 * np.max([*archive.elites.scores, *(e.scores for e in experts)], axis=0) + 4
        axes.set_xlim(low[x], high[x])
        axes.set_ylim(low[y], high[y])
    axes.set_box_aspect(1)
    _mark(
        axes,
        experts,
        [np.clip(100 * one.scores[x], low[x], high[x]) for one in experts],
        [np.clip(100 * one.scores[y], low[y], high[y]) for one in experts],
    )


def _line(axes: Axes, archive: Archive, skills: Sequence[str], experts: Sequence[Marked]) -> None:
    other = 1 - archive.skill
    plain(axes, x=f"{skills[other]} score (%)", y=f"{skills[archive.skill]} score (%)")
    where = [100 * one.scores[other] for one in experts]
    colours = _colours(archive)
    if isinstance(archive, GridArchive):
        low, high = 100 * archive.bounds[other]
        width = (high - low) / archive.bins[0]
        place = [low + (cell[0] + 0.5) * width for cell in archive.cells]
        height = [100 * elite.scores[archive.skill] for elite in archive.cells.values()]
        axes.bar(
            place, height, width=0.92 * width, color=colours.mappable.to_rgba(np.array(height))
        )
        axes.set_xlim(low, high)
        where = list(np.clip(where, low, high))
    else:
        scores = 100 * archive.elites.scores
        axes.scatter(
            scores[:, other],
            scores[:, archive.skill],
            color=colours.mappable.to_rgba(scores[:, archive.skill]),
            s=42,
            edgecolors="white",
            linewidth=0.6,
        )
    axes.set_ylim(bottom=0)
    _mark(axes, experts, where, [100 * one.scores[archive.skill] for one in experts])


def _mark(axes: Axes, experts: Sequence[Marked], x: Sequence[float], y: Sequence[float]) -> None:
    from matplotlib.patheffects import withStroke

    for number, (expert, across, along) in enumerate(zip(experts, x, y, strict=True)):
        axes.plot(
            [across],
            [along],
            marker=MARKERS[number % len(MARKERS)],
            # Larger ones first, so that experts at one place all stay visible.
            markersize=max(11 - 2 * number, 5),
            # Hollow, so that the colour beneath shows; with a light rim, so that it shows itself.
            markerfacecolor="none",
            markeredgecolor="black",
            markeredgewidth=1.4,
            path_effects=[withStroke(linewidth=3.4, foreground="white")],
            linestyle="none",
            clip_on=False,
            zorder=5 + number,
            label=safe(f"expert {expert.name}", 30),
        )


def _colours(archive: Archive) -> Colours:
    """Map the qualities held, lowest to highest, to the colour scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    quality = 100 * archive.elites.scores[:, archive.skill]
    low, high = float(quality.min()), float(quality.max())
    if high - low < 2:
        low, high = max(0.0, high - 2), max(high, 2.0)
    return Colours(Normalize(low, high), ScalarMappable(Normalize(low, high), SCALE))

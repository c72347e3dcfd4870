"""Everything a report consists of, written into the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.files import write_atomic
from cqd_hub.report._curves import curves_figure, table_figure
from cqd_hub.report._data import RunData, load_run
from cqd_hub.report._figures import png
from cqd_hub.report._lineage import describe, lineage_figure
from cqd_hub.report._maps import Marked, archive_figure, panels_of
from cqd_hub.report._page import Picture, render
from cqd_hub.report._table import Row, as_csv, as_json, notes, table_of
from cqd_hub.report._text import percent
from cqd_hub.run.archives import vector
from cqd_hub.run.journal import Role
from cqd_hub.search import Archive, GridArchive


class ReportPaths(NamedTuple):
    """What `build_report` wrote."""

    page: Path
    table_csv: Path
    table_json: Path
    figures: tuple[Path, ...]


def build_report(folder: Path, *, lineage_of: int | None = None) -> ReportPaths:
    """Write ``figures/*.png``, ``report.html``, ``table.csv`` and ``table.json`` into *folder*.

    It may be called at any time, also while another process runs the search there; what has not
    been measured yet is left out. Each file is replaced whole. The table is `results_table`'s.

    Args:
        folder: A run directory.
        lineage_of: Whose ancestors to draw. Default: the chosen model's, or before there is one the
            best average elite's.

    Raises:
        UserError: No run directory, one that cannot be read, or no individual *lineage_of* in it.
    """
    run = load_run(folder)
    rows = table_of(run)
    table = _table(rows) if rows else None
    maps = [_map(run, archive) for archive in run.archives]
    curves = _curves(run)
    lineage = _lineage(run, rows, lineage_of)
    page = render(run, rows, table=table, maps=maps, curves=curves, lineage=lineage)

    pictures = [one for one in (table, *maps, curves, lineage) if one is not None]
    paths = ReportPaths(
        folder / "report.html",
        folder / "table.csv",
        folder / "table.json",
        tuple(folder / "figures" / f"{one.name}.png" for one in pictures),
    )
    for path, one in zip(paths.figures, pictures, strict=True):
        write_atomic(path, one.png)
    write_atomic(paths.table_csv, as_csv(rows, run.skills))
    write_atomic(paths.table_json, as_json(rows))
    write_atomic(paths.page, page)
    return paths


def _table(rows: list[Row]) -> Picture:
    said = "; ".join(
        f"{row.label} {percent(row.average.mean)} "
        f"({percent(row.average.low)} to {percent(row.average.high)})"
        for row in rows
    )
    return Picture(
        "table",
        png(table_figure(rows)),
        f"Average score of each model with its interval: {said}.",
        "Right is better. The dashed line is the best expert. Where intervals overlap, look at the "
        "paired difference in the table: it is sharper. " + notes(rows)[0],
    )


def _map(run: RunData, archive: Archive) -> Picture:
    skills = run.skills
    quality, others = skills[archive.skill], [s for k, s in enumerate(skills) if k != archive.skill]
    experts = [
        Marked(name, vector(run.scores["optimisation"][number], run.recipe))
        for number, name in run.experts.items()
    ]
    best = archive.best
    leader = f", best {percent(best.scores[archive.skill])} % by #{best.individual}" if best else ""
    place = "cell" if isinstance(archive, GridArchive) else "point"
    if len(skills) == 2:
        caption = f"Higher and brighter = better at {quality}; right = better at {others[0]}."
    elif len(skills) == 3:
        caption = f"Brighter = better at {quality}; right = better at {others[0]}; up = better at "
        caption += f"{others[1]}. The upper right corner is good at both."
    else:
        caption = f"Brighter = better at {quality}; each {place} lies by two of the other skills."
        if place == "cell":
            caption += " It shows the best one over all values of the rest."
        drawn, pairs = 9, len(panels_of(archive.skill, len(skills)))
        if pairs > drawn:
            caption += f" The first {drawn} of {pairs} pairs are drawn."
    return Picture(
        f"archive-{quality}",
        png(archive_figure(archive, skills, experts)),
        f"Archive of {quality} over {' and '.join(others)}: {len(archive)} elites{leader}.",
        caption,
        wide=len(skills) > 3,
    )


def _curves(run: RunData) -> Picture | None:
    averages = [run.average(number) for number in run.experts]
    known = [average for average in averages if average is not None]
    if run.history is None or not known or not run.history.children[-1]:
        return None
    history = run.history
    stopped = (
        f" {len(run.stopped)} children were stopped early, once no archive could keep them; they "
        "have no average to draw."
        if run.stopped
        else ""
    )
    return Picture(
        "curves",
        png(curves_figure(history, run.skills, max(known))),
        f"After {history.children[-1]} children: QD score {history.qd_score[-1].sum():.2f} (from "
        f"{history.qd_score[0].sum():.2f}), mean coverage {percent(history.coverage[-1].mean())} % "
        f"(from {percent(history.coverage[0].mean())} %).",
        "All on the optimisation samples. The highest of many noisy scores is partly luck, so the "
        "best so far rises even where nothing improves; the test table says what holds." + stopped,
    )


def _lineage(run: RunData, rows: list[Row], asked: int | None) -> Picture | None:
    if asked is not None and asked not in run.individuals:
        raise UserError(
            f"has no individual {asked}",
            where=str(run.folder),
            remedy="name one that table.csv or the journal lists",
        )
    subject = asked if asked is not None else _subject(run, rows)
    if subject is None:
        return None
    name = run.individuals[subject].name
    if run.individuals[subject].role == Role.CHILD:
        name = f"#{subject}"
    return Picture(
        "lineage",
        png(lineage_figure(run, subject)),
        f"Lineage of {name}: {describe(run, subject)}.",
        f"How {name} (blue frame) came about, from left to right; experts are yellow. In each box: "
        "id, average over the skills on the optimisation samples in %, and how it was made: the "
        "parents’ shares (≈ where they differ between layers) and the mutation. A share below 0 or "
        "above 100 is extrapolation: a step beyond one parent, away from the other; only the sum "
        "of the shares is always 100. “svd X” adds to each matrix some of expert X’s singular "
        "directions, each with a random weight; “svd” alone, some of the child’s own. … stands for "
        "older ancestors.",
    )


def _subject(run: RunData, rows: list[Row]) -> int | None:
    """The chosen model where it has ancestors, else the best elite."""
    if run.results and run.individuals[run.results.chosen].lineage.get("parents"):
        return run.results.chosen
    elites = [row for row in rows if row.group == "elite"]
    return max(elites, key=lambda row: row.average.mean).id if elites else None

"""Figures: made for every kind of run, whole images that show something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cqd_hub.errors import UserError
from cqd_hub.report import build_report
from cqd_hub.report._data import load_run
from cqd_hub.report._lineage import lineage_of, operators
from cqd_hub.report._maps import archive_figure, panels_of
from cqd_hub.search import GridArchive
from tests.report.runs import SKILLS, make_run

FIGURES = {"table.png", "curves.png", "lineage.png"}


def check_image(path: Path) -> None:
    """A whole PNG of sane size that is neither blank nor one colour."""
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        width, height = image.size
        assert 300 <= width <= 2600
        assert 100 <= height <= 2600
        grey = np.asarray(image.convert("L"))
    assert np.count_nonzero(np.bincount(grey.ravel())) > 20
    assert 0.005 < (grey < 245).mean() < 0.95


@pytest.mark.parametrize(
    ("skills", "kind", "finished"),
    [
        (2, "grid", True),
        (2, "novelty", False),
        (3, "grid", False),
        (3, "novelty", True),
        (4, "grid", True),
        (4, "novelty", False),
    ],
)
def test_every_kind_of_run(tmp_path: Path, skills: int, kind: str, finished: bool) -> None:
    folder = make_run(tmp_path / "run", skills=skills, kind=kind, children=20, finished=finished)
    paths = build_report(folder)
    expected = FIGURES | {f"archive-{skill}.png" for skill in SKILLS[:skills]}
    assert {path.name for path in (folder / "figures").iterdir()} == expected
    assert {path.name for path in paths.figures} == expected
    for path in paths.figures:
        check_image(path)
    assert paths.page.stat().st_size < 3_000_000


def test_only_experts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=0, finished=False)
    paths = build_report(folder)
    names = {path.name for path in paths.figures}
    assert names == {"table.png", *(f"archive-{skill}.png" for skill in SKILLS[:3])}
    for path in paths.figures:
        check_image(path)
    assert "has not finished" in paths.page.read_text()


def test_nothing_told_yet(tmp_path: Path) -> None:
    import sqlite3

    folder = make_run(tmp_path / "run", children=0, finished=False)
    database = sqlite3.connect(folder / "journal.sqlite")
    for table in ("told", "measurements", "individuals"):
        database.execute(f"DELETE FROM {table}")
    database.commit()
    database.close()
    paths = build_report(folder)
    assert paths.figures == ()
    assert "Nothing has been measured yet" in paths.page.read_text()
    with pytest.raises(UserError, match="no individual 3"):
        build_report(folder, lineage_of=3)


def test_second_process_while_the_writer_holds_the_journal(tmp_path: Path) -> None:
    from cqd_hub.run.journal import Individual, Journal, Role

    folder = make_run(tmp_path / "run", children=5, finished=False)
    writer = Journal(folder)
    try:
        # Recorded and not yet told, as between a child's verdict and the end of its generation.
        writer.add(Individual(8, Role.CHILD, "child 8", b"g", "h"), ())
        code = "import sys, pathlib; from cqd_hub.report import build_report; "
        code += "build_report(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
        writer.tell([8])
    finally:
        writer.close()
    assert "5 of 5 children" in (folder / "report.html").read_text()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=15)
    first = {path: path.read_bytes() for path in build_report(folder).figures}
    page = (folder / "report.html").read_bytes()
    again = build_report(folder)
    assert {path: path.read_bytes() for path in again.figures} == first
    assert again.page.read_bytes() == page
    assert not [path.name for path in folder.rglob(".*")], "temporary files are gone"


def test_map_puts_quality_at_its_cell(tmp_path: Path) -> None:
    archive = GridArchive(skill=0, bounds=np.array([[0, 1], [0, 1], [0, 1]]), bins=4)
    archive.insert(1, np.array([0.3, 0.9, 0.1]))
    archive.insert(2, np.array([0.8, 0.1, 0.6]))
    figure = archive_figure(archive, ["a", "b", "c"], [])
    axes = figure.axes[0]
    assert "b score" in axes.get_xlabel()
    assert "c score" in axes.get_ylabel()
    (mesh,) = axes.collections
    shown = mesh.get_array().reshape(4, 4)
    assert shown[0, 3] == pytest.approx(30)  # row: c in [0, 0.25); column: b in [0.75, 1]
    assert shown[2, 0] == pytest.approx(80)
    assert shown.count() == 2
    assert "2 of 16 cells" in figure.get_suptitle()


def test_projection_keeps_the_best(tmp_path: Path) -> None:
    archive = GridArchive(skill=0, bounds=np.array([[0, 1]] * 4), bins=2)
    archive.insert(1, np.array([0.3, 0.1, 0.1, 0.1]))
    archive.insert(2, np.array([0.7, 0.1, 0.1, 0.9]))
    figure = archive_figure(archive, ["a", "b", "c", "d"], [])
    assert panels_of(0, 4) == [(1, 2), (1, 3), (2, 3)]
    (mesh,) = figure.axes[0].collections
    assert mesh.get_array().reshape(2, 2)[0, 0] == pytest.approx(70)


def test_lineage_is_bounded_and_ordered(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", children=150, finished=False))
    lineage = lineage_of(run, 152)
    assert max(lineage.column.values()) <= 6
    assert len(lineage.column) <= 23
    assert lineage.cut, "older ancestors are left out and marked"
    for number, parents in lineage.parents.items():
        assert all(lineage.column[parent] < lineage.column[number] for parent in parents)
        if number not in lineage.cut and number > 2:
            assert set(parents) == set(run.individuals[number].lineage["parents"])


def test_lineage_reaches_the_experts(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", children=3, finished=False))
    lineage = lineage_of(run, 5)
    assert not lineage.cut
    experts = [number for number in lineage.column if number < 3]
    assert len(experts) >= 2
    assert {lineage.column[number] for number in experts} == {0}
    assert operators(run, 5).startswith("≈")
    assert operators(run, 5).endswith("svd db")


def test_a_merge_method_is_named(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", children=3, finished=False))
    lineage = run.individuals[5].lineage
    crossed = lineage["crossover"]
    lineage["crossover"] = {**crossed, "method": "dare_ties"}
    assert operators(run, 5).startswith("dare_ties ≈")
    lineage["crossover"] = {"method": "karcher"}
    assert operators(run, 5) == "karcher + svd db"


def test_lineage_of_anyone(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", children=8)
    for number in (0, 4, -3):
        paths = build_report(folder, lineage_of=number)
        check_image(folder / "figures" / "lineage.png")
        name = {0: "coding", 4: "#4", -3: "aggregate"}[number]
        assert f"Lineage of {name}:" in paths.page.read_text()
    with pytest.raises(UserError, match="no individual 99"):
        build_report(folder, lineage_of=99)


def test_importing_draws_nothing() -> None:
    code = "import sys, cqd_hub.report; "
    code += "print({'matplotlib', 'jinja2', 'torch', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "set()"

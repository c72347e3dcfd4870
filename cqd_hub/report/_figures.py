"""What all figures share: colours, plain axes, PNG bytes. Figure objects only, no pyplot state."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from cqd_hub.report._text import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, EMPTY = "#1c2430", "#6b7482", "#eceef1"
SCALE = "viridis"  # perceptually uniform, and readable with any colour vision
# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 160


def new_figure(width: float, height: float) -> Figure:
    """Return a white figure (inches) that lays itself out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return *figure* as a PNG; the same figure gives the same bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def plain(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: bool = True) -> None:
    """Give *axes* their texts and take away what carries no information."""
    axes.set_title(safe(title), fontsize=10, color=INK, loc="left")
    axes.set_xlabel(safe(x), fontsize=9, color=INK)
    axes.set_ylabel(safe(y), fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=SOFT, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b8bec7")
    if grid:
        axes.grid(color="#e4e7eb", linewidth=0.7)
        axes.set_axisbelow(True)


def safe(text: str, length: int = 80) -> str:
    """Return *text* on one line, without hidden characters and never read as a formula."""
    return short(text, length).replace("$", r"\$")

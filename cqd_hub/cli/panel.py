"""The live panel of a run: a line with count, bar and time left, and one of words that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_BAR = (8, 40)  # columns of the bar, at least and at most


class State(NamedTuple):
    """What is counted, how far it is, and words about it, the most telling first.

    Args:
        what: "children" or "individuals".
        left: How long it will take yet, and what that covers; may be empty.
    """

    what: str
    done: int
    total: int
    left: str
    words: tuple[str, ...]


class Panel:
    """Renders `state` in the width there is: count and time left always, the rest as room allows.

    Attributes:
        state: What to show.
    """

    state: State | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For rich."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        state, width = self.state, options.max_width
        if state is None:
            return
        count = f"  {state.what} {state.done:>{len(str(state.total))}}/{state.total}"
        room = width - len(count) - len(state.left) - 2
        line = Table.grid(padding=(0, 1, 0, 0))
        cells = [Text(count, no_wrap=True)]
        if room >= _BAR[0]:
            bar = ProgressBar(state.total, state.done, width=min(room, _BAR[1]))
            line.add_row(*cells, bar, Text(state.left, no_wrap=True))
        else:
            line.add_row(*cells, Text(state.left, no_wrap=True))
        yield line
        if state.words:
            words = fitted(state.words, width - 2)
            yield Text(f"  {words}", style="dim", no_wrap=True, overflow="ellipsis")


def fitted(pieces: Sequence[str], width: int) -> str:
    """Return as many *pieces* as fit in *width* columns, in their order; the first in any case."""
    line = pieces[0]
    for piece in pieces[1:]:
        if len(line) + 3 + len(piece) <= width:
            line = f"{line} · {piece}"
    return line


def score(value: float) -> str:
    """Return a score in 0..1 as people read it, in %."""
    return f"{100 * value:.1f}"

"""What people look at: the table with intervals, figures, and one page that opens anywhere.

Everything is derived from a run directory (manifest, journal, results), during a run or after it,
also by a second process. matplotlib and Jinja2 are imported only when something is drawn.
"""

from __future__ import annotations

from cqd_hub.report._build import ReportPaths, build_report
from cqd_hub.report._table import Row, format_table, headline, notes, results_table
from cqd_hub.report._text import visible

__all__ = [
    "ReportPaths",
    "Row",
    "build_report",
    "format_table",
    "headline",
    "notes",
    "results_table",
    "visible",
]

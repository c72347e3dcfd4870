"""The three skills of the agents' quickstart, as problems with the dialogues that solve them.

How problems are drawn and split is the quickstart's, whose package this makes importable.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "quickstart"))

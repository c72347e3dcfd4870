"""What a run writes of its basis: enough to publish its genomes without opening a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqd_hub.files import write_atomic
from cqd_hub.genome.transfer import layout_as_json

if TYPE_CHECKING:
    from cqd_hub.genome.basis import Basis

NAME = "layout.json"
FORMAT = 1


def layout_record(basis: Basis) -> dict[str, Any]:
    """The layout of a basis, and where its factors are cached."""
    return {
        "format": FORMAT,
        "basis": basis.hash,
        **layout_as_json(basis.layout),
        "factors": [{"folder": store.folder.name, "hash": store.hash} for store in basis.factors],
    }


def write_layout(folder: Path, basis: Basis) -> None:
    """Write the record into a run directory."""
    write_atomic(folder / NAME, json.dumps(layout_record(basis)) + "\n")

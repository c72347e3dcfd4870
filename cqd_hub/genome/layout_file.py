"""A run's layout as JSON: what its genomes' coefficients mean, without opening a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cqd_hub.genome.layout import Layout, Slot

if TYPE_CHECKING:
    from cqd_hub.genome.basis import Basis

FORMAT = 1


def layout_record(basis: Basis) -> dict[str, Any]:
    """What `layout_of` reads, and where the experts' factors are cached."""
    layout = basis.layout
    return {
        "format": FORMAT,
        "basis": basis.hash,
        "slots": [
            [slot.name, list(slot.shape), slot.kind, slot.tensor, slot.index]
            for slot in layout.slots
        ],
        "experts": list(layout.experts),
        "ranks": [list(row) for row in layout.ranks],
        "tails": [[int(tail) for tail in row] for row in layout.tails],
        "factors": [{"folder": store.folder.name, "hash": store.hash} for store in basis.factors],
    }


def layout_of(record: dict[str, Any]) -> Layout:
    """The layout of a record.

    Raises:
        ValueError: It is none of this format.
    """
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"layout format {record['format']!r}, known is {FORMAT}")
        return Layout(
            slots=tuple(
                Slot(str(name), tuple(map(int, shape)), kind, str(tensor), index)
                for name, shape, kind, tensor, index in record["slots"]
            ),
            experts=tuple(map(str, record["experts"])),
            ranks=tuple(tuple(map(int, row)) for row in record["ranks"]),
            tails=tuple(tuple(map(bool, row)) for row in record["tails"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no layout: {error!r}") from None

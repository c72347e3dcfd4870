"""A basis on its way to other machines: made once, by the driver, since SVDs differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cqd_hub.files import cache_folder, new_folder
from cqd_hub.genome import Basis
from cqd_hub.genome.store import FactorStore, exclusive


def basis_files(basis: Basis) -> Iterator[tuple[str, str, Path]]:
    """(store, file, path) of all that the factors are kept in."""
    for store in basis.factors:
        for path in sorted(store.folder.iterdir()):
            yield store.folder.name, path.name, path


def place_basis(stores: Mapping[str, Mapping[str, Callable[[], bytes]]]) -> Sequence[str]:
    """Write what this machine's cache lacks of store → file → content; returns what it wrote.

    Processes of one machine wait for each other: each file is asked for once.
    """
    written = []
    for name, files in stores.items():
        place = cache_folder() / "basis" / name
        with exclusive(place):
            if FactorStore(place).intact():
                continue
            with new_folder(place) as folder:
                for file, content in files.items():
                    (folder / file).write_bytes(content())
            written.append(name)
    return written

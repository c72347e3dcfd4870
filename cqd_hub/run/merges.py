"""A run's merged children: where they are kept, and who knows their parents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cqd_hub.genome import Genome, Materialiser
from cqd_hub.recipe import Recipe
from cqd_hub.run.journal import Journal

if TYPE_CHECKING:
    from cqd_hub.genome import Basis
    from cqd_hub.genome.merge.store import MergeStore


def open_merges(folder: Path, recipe: Recipe) -> MergeStore | None:
    """The store of the run in *folder*; None where every crossover is linear."""
    if recipe.variation.crossover.method == "linear":
        return None
    from cqd_hub.genome.merge.store import MergeStore

    def genome_of(genome_hash: str) -> Genome:
        journal = Journal(folder)  # a connection of its own: this may be any thread
        try:
            return Genome.from_bytes(journal.genome(genome_hash))
        finally:
            journal.close()

    def digest_of(merge: str) -> str | None:
        journal = Journal(folder)
        try:
            return journal.merge_digest(merge)
        finally:
            journal.close()

    return MergeStore(
        folder / "merges",
        budget=recipe.genome.disk_bytes,
        genome_of=genome_of,
        digest_of=digest_of,
    )


@asynccontextmanager
async def present(store: MergeStore | None, genome: Genome) -> AsyncIterator[None]:
    """Have the merges that *genome* weighs made, beside the event loop, and kept meanwhile."""
    if store is None or not genome.merges:
        yield
        return
    import torch

    count = torch.get_num_threads()

    def ensure() -> None:
        torch.set_num_threads(count)  # a fresh thread's are what the engine's happen to be
        store.ensure(list(genome.merges))

    with store.holding(genome.merges):
        await asyncio.to_thread(ensure)
        yield


@contextmanager
def kept_merges(
    folder: Path, manifest: Mapping[str, Any], recipe: Recipe, basis: Basis, genome: Genome
) -> Iterator[MergeStore | None]:
    """A run's store, for reading the merges that *genome* weighs; all of them are there.

    What was cleared is made again on the kind of device that made it first, where there is one:
    elsewhere it would come out different.
    """
    import torch

    store = open_merges(folder, recipe)
    if store is None or not genome.merges:
        yield store
        return
    made_on = str(manifest["engine"]).rsplit("/", 1)[-1]
    device = "cuda" if made_on == "cuda" and torch.cuda.is_available() else "cpu"
    with store.holding(genome.merges):
        if not store.holds(genome.merges):
            Materialiser(basis, device=device, merges=store)  # attaches itself
            store.ensure(genome.merges)
        yield store

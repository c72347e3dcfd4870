"""The merges that a published individual weighs, made again from its parents' genomes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cqd_hub.errors import CqdHubError, UserError
from cqd_hub.pull.published import Person, Published

if TYPE_CHECKING:
    from cqd_hub.genome import Basis, Genome
    from cqd_hub.genome.merge.store import MergeStore

_ROOM = 20 * 10**9  # bytes of merges kept at a time; parents of parents are made one by one


@contextmanager
def made_again(
    published: Published, person: Person, genome: Genome, basis: Basis
) -> Iterator[MergeStore | None]:
    """Yield a store that holds what *genome* weighs, for as long as the block runs.

    None where it weighs nothing. Merges are deterministic on one kind of machine and library
    versions; elsewhere they may differ in their last bits.

    Raises:
        UserError: The archive lacks a parent, or its record of a merge is none.
        RunError: No space.
    """
    if not genome.merges:
        yield None
        return
    from cqd_hub.genome import Materialiser
    from cqd_hub.genome.merge.store import MergeStore

    where = f"{published}: individual {person.id}"
    known = {person.genome_hash: number for number, person in published.people.items()}

    def genome_of(genome_hash: str) -> Genome:
        if genome_hash not in known:
            raise UserError("is a merge of somebody that the archive does not hold", where=where)
        return published.genome(known[genome_hash])[1]

    with tempfile.TemporaryDirectory(prefix="cqd-hub-merges-") as folder:
        store = MergeStore(Path(folder), budget=_ROOM, genome_of=genome_of)
        Materialiser(basis, merges=store)  # attaches itself
        with store.holding(genome.merges):
            try:
                store.ensure(genome.merges)
            except CqdHubError:
                raise
            except (ValueError, TypeError, LookupError, AttributeError):
                raise UserError("holds a record of a merge that is none", where=where) from None
            yield store

"""Elites of an earlier run that a new run's archives begin with.

They are kept in the run directory as they came, so that a resumed run needs nothing but itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import new_folder
from cqd_hub.genome import Genome, Layout
from cqd_hub.genome.transfer import layout_as_json, layout_of_json, transfer

if TYPE_CHECKING:
    from cqd_hub.genome import Basis

_FOLDER = "seeds"


class Seed(NamedTuple):
    """One elite: its id in the run that it comes from, and its genome as it was there."""

    id: int
    genome: bytes
    genome_hash: str


class Moved(NamedTuple):
    """A seed in the new run's basis."""

    seed: Seed
    genome: Genome


@dataclass(frozen=True)
class Seeds:
    """Elites to begin with.

    Args:
        source: Where they come from: ``hf://datasets/ns/run@sha``, or a folder.
        base: SHA-256 of the base that they were made from.
        layout: Of their genomes.
        elites: By id.
    """

    source: str
    base: str
    layout: Layout
    elites: tuple[Seed, ...]

    def record(self) -> dict[str, Any]:
        """What a manifest says of them."""
        digest = hashlib.sha256()
        for seed in self.elites:
            digest.update(f"{seed.id} {seed.genome_hash}\n".encode())
        return {"source": self.source, "elites": len(self.elites), "sha256": digest.hexdigest()}

    def lineage(self, seed: Seed) -> dict[str, Any]:
        """What the journal says of one of them."""
        return {"from": {"source": self.source, "individual": seed.id, "genome": seed.genome_hash}}

    def moved(self, basis: Basis) -> list[Moved]:
        """Their genomes in *basis*; those that are an expert, or each other, are left out.

        Raises:
            UserError: Another base, or a genome that cannot be moved exactly.
        """
        if basis.base.checkpoint.content_hash != self.base:
            raise UserError(
                "its elites were made from another base",
                where=self.source,
                remedy="use the base (and revision) that its manifest names",
            )
        known = {
            Genome.of_expert(basis.hash, basis.layout, number).hash
            for number in range(len(basis.experts))
        }
        found = []
        for seed in self.elites:
            where = f"{self.source}: individual {seed.id}"
            genome = transfer(Genome.from_bytes(seed.genome), self.layout, basis, where=where)
            if genome.hash not in known:
                known.add(genome.hash)
                found.append(Moved(seed, genome))
        return found

    def save(self, run: Path) -> None:
        """Keep them in a run directory, unless they are there."""
        if (run / _FOLDER).exists():
            return
        index = {
            "source": self.source,
            "base": self.base,
            "layout": layout_as_json(self.layout),
            "elites": [[seed.id, seed.genome_hash] for seed in self.elites],
        }
        try:
            with new_folder(run / _FOLDER) as folder:
                for seed in self.elites:
                    (folder / f"{seed.genome_hash}.safetensors").write_bytes(seed.genome)
                (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"cannot be written: {error.strerror}",
                where=str(run / _FOLDER),
                remedy="free some space and run the same command again",
            ) from None


def load_seeds(run: Path) -> Seeds | None:
    """The seeds that a run directory keeps, or None.

    Raises:
        RunError: They are damaged.
    """
    folder = run / _FOLDER
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        elites = tuple(
            Seed(number, (folder / f"{genome_hash}.safetensors").read_bytes(), genome_hash)
            for number, genome_hash in index["elites"]
        )
        return Seeds(index["source"], index["base"], layout_of_json(index["layout"]), elites)
    except FileNotFoundError:
        if not folder.exists():
            return None
        reason = "a file is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    raise RunError(
        f"is damaged: {reason}",
        where=str(folder),
        remedy="delete it and run the same command again: it will be fetched again",
    )


def seeds_of_run(folder: Path, *, note: Any = lambda line: None) -> Seeds:
    """The elites of a run directory as it stands.

    Raises:
        UserError: No run there, no elites yet, or its models have changed.
    """
    from cqd_hub.run.archives import expert_scores, make_cycle, replay
    from cqd_hub.run.directory import read_manifest, read_recipe
    from cqd_hub.run.journal import Journal
    from cqd_hub.run.lineup import open_basis

    recipe, manifest = read_recipe(folder), read_manifest(folder)
    assert manifest is not None  # read_recipe has read it
    journal = Journal(folder)
    try:
        told = len(journal.told())
        if not told:
            raise UserError("has no elites yet", where=str(folder), remedy="let it run for a while")
        cycle = make_cycle(recipe, expert_scores(journal))
        for _ in replay(cycle, recipe, journal):
            pass
        numbers = {n for archive in cycle.archives for n in archive.elites.individuals.tolist()}
        people = [journal.individual(number) for number in sorted(numbers)]
    finally:
        journal.close()
    basis = open_basis(recipe, Path(manifest["folder"]), expected=manifest["basis"], note=note)
    return Seeds(
        str(folder.resolve()),
        basis.base.checkpoint.content_hash,
        basis.layout,
        tuple(Seed(one.id, one.genome, one.genome_hash) for one in people),
    )

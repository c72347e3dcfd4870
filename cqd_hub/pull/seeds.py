"""What `evolve --from` begins with: a run directory, an archive on the Hub, or what is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cqd_hub.errors import UserError
from cqd_hub.hub.client import Hub
from cqd_hub.hub.reference import parse
from cqd_hub.pull.published import Published
from cqd_hub.run.directory import read_manifest
from cqd_hub.run.seeds import Seed, Seeds, load_seeds, seeds_of_run


def find_seeds(
    place: str | None, out: Path, *, note: Callable[[str], None] = lambda line: None
) -> Seeds | None:
    """The elites that a run begins with, or None.

    A run that has begun keeps its own: nothing is fetched, whatever its source holds by now.

    Args:
        place: A run directory, ``ns/run``, ``ns/run@revision`` or ``hf://datasets/ns/run``.
        out: The directory of the run that is begun or resumed.
        note: Called with a line for what is repaired.

    Raises:
        UserError: Nothing there to begin with, or the run began with something else.
        RunError: A file is damaged, or the disk is full.
        HubAway: The Hub does not answer.
    """
    begun = (read_manifest(out) or {}).get("seeds")
    if begun is not None:
        source = str(begun["source"])
        if place is None or not _same(place, source):
            asked = "none are asked for" if place is None else f"not of {place}"
            raise UserError(
                f"began with elites of {source}, {asked}",
                where=str(out),
                remedy=f"resume it with --from {source}, or choose another --out",
            )
        return load_seeds(out) or _fetched(source, note)
    return None if place is None else _fetched(place, note)


def _fetched(place: str, note: Callable[[str], None]) -> Seeds:
    if (Path(place).expanduser() / "manifest.json").exists():
        return seeds_of_run(Path(place).expanduser(), note=note)
    if Path(place).expanduser().is_dir():
        raise UserError(
            "is no run directory", where=place, remedy="name one made by `cqd-hub evolve`"
        )
    published = Published(place, Hub(note=note), note=note)
    numbers = sorted({elite.id for elite in published.elites})
    if not numbers:
        raise UserError("has no elites", where=str(published), remedy="push more of the run")
    found = published.genomes(numbers)
    seeds = [Seed(number, found[number][0], found[number][1].hash) for number in numbers]
    base = published.head.models.base.sha256
    return Seeds(str(published), base, published.layout, tuple(seeds))


def _same(place: str, source: str) -> bool:
    """Whether *place* means the *source* that a manifest names."""
    if not source.startswith("hf://"):
        return str(Path(place).expanduser().resolve()) == source
    if Path(place).expanduser().is_dir():
        return False
    asked, kept = parse(place, kind="dataset"), parse(source)
    pinned = asked.revision if len(asked.revision or "") == 40 else None
    return (asked.repo, asked.kind) == (kept.repo, kept.kind) and pinned in (None, kept.revision)

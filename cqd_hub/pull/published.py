"""A published archive, read back: everything in it is a stranger's until it is checked.

Format 1, see ``docs/hub.md``. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from cqd_hub.errors import UserError
from cqd_hub.genome import Genome, Layout
from cqd_hub.genome.transfer import check_genome, layout_of_json
from cqd_hub.hub.client import Hub
from cqd_hub.hub.reference import parse
from cqd_hub.pull.parquet import read_rows
from cqd_hub.pull.source import Source
from cqd_hub.recipe.schema import Name

FORMAT = 1
HEAD = "cqd_hub.json"
JSON_LIMIT = 64 << 20  # bytes of a JSON file
SHARD_LIMIT = 2 << 30  # bytes of a parquet shard
# What reading bytes that are no genome raises.
_MALFORMED = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_PUSHED = "ask its owner to push it again with `cqd-hub push`"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=100_000)]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class Model(_Read):
    """A model that a run was made from; ``reference`` is None if it was a local folder."""

    reference: str | None = None
    sha256: Hash


class Models(_Read):
    """Base and experts."""

    base: Model
    experts: dict[Name, Model]


class BasisRecord(_Read):
    """Which basis the genomes belong to, and its files where it was published."""

    hash: Hash
    files: list[str] | None = None


class Leader(_Read):
    """An archive's best elite."""

    leader: int | None = None


class Snapshot(_Read):
    """The archives when they were pushed."""

    archives: dict[str, Leader] = Field(default_factory=dict)


class Head(_Read):
    """What ``cqd_hub.json`` says of an archive."""

    name: str
    run: str
    told: int
    shards: dict[str, Count]
    basis: BasisRecord
    models: Models
    skills: list[Name]
    elites: Snapshot = Snapshot()
    chosen: int | None = None
    models_published: dict[str, str] = Field(default_factory=dict)

    def leader(self, skill: str) -> int | None:
        """The best elite of a skill's archive."""
        found = self.elites.archives.get(skill)
        return found.leader if found else None


class Person(NamedTuple):
    """An individual without its genome; ``shard`` is the number of the shard that holds it."""

    id: int
    role: str
    name: str
    genome_hash: str
    scores: dict[str, float]
    shard: int


class Elite(NamedTuple):
    """One elite of the latest snapshot; ``cell`` is None in an archive without a grid."""

    skill: str
    cell: tuple[int, ...] | None
    id: int
    name: str
    quality: float
    average: float
    scores: dict[str, float]
    genome_hash: str


class Published:
    """An archive on the Hub at one commit.

    Args:
        place: ``ns/run``, ``ns/run@revision`` or ``hf://datasets/ns/run``.
        hub: The connection.
        note: Called with a line for what is repaired.

    Raises:
        UserError: No such repository, none that `cqd-hub push` made, one of a newer format, or one
            that does not hold what it should.
    """

    def __init__(
        self, place: str, hub: Hub, *, note: Callable[[str], None] = lambda line: None
    ) -> None:
        reference = parse(place, kind="dataset")
        if reference.kind != "dataset":
            raise UserError(
                "is a model; archives are data sets",
                where=place,
                remedy="name the run's archive, or load the model by its id",
            )
        self.source = Source(hub, reference, note=note)
        if HEAD not in self.source:
            raise UserError(
                f"is no archive: it has no {HEAD}",
                where=str(self.source),
                remedy="name what `cqd-hub push` made",
            )
        self.head = self._head()

    def __str__(self) -> str:
        return str(self.source)

    def json(self, path: str) -> Any:
        """One of its JSON files."""
        return read_json(self.source.fetch(path, limit=JSON_LIMIT), f"{self}/{path}")

    @cached_property
    def layout(self) -> Layout:
        """What gives the genomes' coefficients their meaning."""
        try:
            return layout_of_json(self.json("layout.json"))
        except ValueError as error:
            raise UserError(
                f"holds no layout: {error}", where=f"{self}/layout.json", remedy=_PUSHED
            ) from None

    @cached_property
    def elites(self) -> list[Elite]:
        """The latest snapshot, as it was pushed: archive by archive."""
        scores = [f"optimisation_{skill}" for skill in self.head.skills]
        columns = {"snapshot": "int", "skill": "text", "cell": "ints?", "individual": "int"}
        columns |= {"name": "text", "quality": "float", "average": "float", "genome_hash": "text"}
        columns |= dict.fromkeys(scores, "float")
        found: list[dict[str, Any]] = []
        for number in reversed(range(self.head.shards.get("elites", 0))):
            found = list(self._rows("elites", number, columns))
            if found:
                break
        latest = max((row["snapshot"] for row in found), default=0)
        elites = [
            Elite(
                row["skill"],
                None if row["cell"] is None else tuple(row["cell"]),
                row["individual"],
                row["name"],
                row["quality"],
                row["average"],
                {skill: row[name] for skill, name in zip(self.head.skills, scores, strict=True)},
                row["genome_hash"],
            )
            for row in found
            if row["snapshot"] == latest
        ]
        pairs = [(elite.skill, elite.id) for elite in elites]
        if len({*pairs}) != len(pairs):
            raise UserError("names an elite twice", where=f"{self}/data/elites", remedy=_PUSHED)
        for elite in elites:
            if elite.skill not in self.head.skills:
                raise UserError(
                    "names a skill that the run does not have",
                    where=f"{self}/data/elites",
                    remedy=_PUSHED,
                )
        return elites

    @cached_property
    def people(self) -> dict[int, Person]:
        """Every individual by id."""
        skills = self.head.skills
        columns = {"id": "int", "role": "text", "name": "text", "genome_hash": "text"}
        columns |= {f"optimisation_{skill}": "float?" for skill in skills}
        result: dict[int, Person] = {}
        for shard in range(self.head.shards.get("individuals", 0)):
            for row in self._rows("individuals", shard, columns):
                if row["id"] in result:
                    raise UserError(
                        f"holds individual {row['id']} twice",
                        where=f"{self}/data/individuals",
                        remedy=_PUSHED,
                    )
                scores = {
                    skill: row[f"optimisation_{skill}"]
                    for skill in skills
                    if row[f"optimisation_{skill}"] is not None
                }
                result[row["id"]] = Person(
                    row["id"], row["role"], row["name"], row["genome_hash"], scores, shard
                )
        return result

    def genome(self, individual: int) -> tuple[bytes, Genome]:
        """An individual's genome; see `genomes`."""
        return self.genomes([individual])[individual]

    def genomes(self, individuals: Iterable[int]) -> dict[int, tuple[bytes, Genome]]:
        """Genomes as bytes and read, checked against their hashes, basis and layout.

        Raises:
            UserError: There is none, or it is not what it should be.
        """
        wanted = set(individuals)
        missing = sorted(wanted - self.people.keys())
        if missing:
            raise UserError(f"has no individual {missing[0]}", where=str(self))
        columns = {"individual": "int", "genome_hash": "text", "genome": "bytes"}
        found: dict[int, tuple[bytes, Genome]] = {}
        # A push adds the shards of individuals and of their genomes together.
        likely = sorted({self.people[number].shard for number in wanted})
        count = self.head.shards.get("genomes", 0)
        for shard in [*likely, *(n for n in range(count) if n not in likely)]:
            left = wanted - found.keys()
            if not left:
                break
            if shard >= count:
                continue
            for row in self._rows("genomes", shard, columns, only=("individual", left)):
                number = row["individual"]
                if number in found:
                    raise UserError(
                        f"holds the genome of individual {number} twice",
                        where=f"{self}/data/genomes",
                        remedy=_PUSHED,
                    )
                found[number] = row["genome"], self._checked(row["genome"], self.people[number])
        left = wanted - found.keys()
        if left:
            raise UserError(
                f"holds no genome of individual {min(left)}",
                where=f"{self}/data/genomes",
                remedy=_PUSHED,
            )
        return found

    def _checked(self, data: bytes, person: Person) -> Genome:
        where = f"{self}: genome of individual {person.id}"
        try:
            genome = Genome.from_bytes(data)
            check_genome(genome, self.layout)
            made = genome.hash
        except _MALFORMED as error:
            raise _unreadable(error, where) from None
        if made != person.genome_hash:
            raise UserError(
                f"has hash {made[:12]}, published as {clean(person.genome_hash)[:12]}",
                where=where,
                remedy="it was changed after it was pushed: do not use it",
            )
        if genome.basis != self.head.basis.hash:
            raise UserError("belongs to another basis", where=where, remedy=_PUSHED)
        return genome

    def _rows(
        self,
        table: str,
        number: int,
        columns: dict[str, str],
        *,
        only: tuple[str, Collection[int]] | None = None,
    ) -> Iterator[dict[str, Any]]:
        name = f"data/{table}/{number:05d}.parquet"
        place = self.source.fetch(name, limit=SHARD_LIMIT)
        return read_rows(place, columns, where=f"{self}/{name}", only=only)

    def _head(self) -> Head:
        data = self.json(HEAD)
        check_format(data, f"{self}/{HEAD}")
        return validated(Head, data, f"{self}/{HEAD}")


def check_format(data: Any, where: str) -> None:
    """Refuse what a newer version has written.

    Raises:
        UserError: Names both formats.
    """
    written = data.get("format") if isinstance(data, dict) else None
    if type(written) is int and written > FORMAT:
        raise UserError(
            f"has format {written}; this cqd-hub reads up to {FORMAT}",
            where=where,
            remedy="pip install --upgrade cqd-hub",
        )
    if written != FORMAT:
        raise UserError("is not what `cqd-hub push` writes", where=where, remedy=_PUSHED)


def validated(model: type[Any], data: Any, where: str) -> Any:
    """*data* as *model*.

    Raises:
        UserError: The first fault.
    """
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(clean(str(part)) for part in first["loc"])
        raise UserError(f"{key}: {first['msg'].lower()}", where=where, remedy=_PUSHED) from None


def read_json(path: Path, where: str) -> Any:
    """Read JSON that a stranger may have written.

    Raises:
        UserError: It is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        json.dumps(data, allow_nan=False)
    except (ValueError, RecursionError) as error:
        reason = clean(str(error))[:120] if isinstance(error, ValueError) else "too deep"
        raise UserError(f"is no JSON: {reason}", where=where, remedy=_PUSHED) from None
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _unreadable(error: Exception, where: str) -> UserError:
    reason = clean(str(error))[:120] or type(error).__name__
    return UserError(f"is no genome that can be read: {reason}", where=where, remedy=_PUSHED)


def clean(text: str, most: int = 200) -> str:
    """Text of a stranger for one line of a terminal: no control or escape characters."""
    shown = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"

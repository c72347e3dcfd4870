"""Taking one individual, or the recipe, of a published archive."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from cqd_hub.errors import RunError, UserError
from cqd_hub.files import new_folder, sha256_of, write_atomic
from cqd_hub.hub.client import Hub
from cqd_hub.hub.reference import Reference, parse
from cqd_hub.pull.published import Person, Published, clean
from cqd_hub.pull.rebuild import Places, Rebuilt, describe, find_elite, rebuild
from cqd_hub.pull.source import check_room
from cqd_hub.pull.trust import check_tasks
from cqd_hub.recipe import Recipe

Form = Literal["genome", "adapter", "checkpoint", "mergekit"]
BESIDE = "cqd_hub_pull.json"  # says in what was pulled where it came from
_TASK = re.compile(r"run/tasks/((?!\.)[A-Za-z0-9_.-]+/)*(?!\.)[A-Za-z0-9_.-]+")
_TASK_LIMIT = 64 << 20
_ELSEWHERE = re.compile(
    r"^(/|~|\.\.)|://"
)  # an environment's option that reaches beyond the recipe


@dataclass(frozen=True)
class Pulled:
    """What was taken.

    Args:
        person: Who.
        path: The folder that holds it.
        verified: How it is known to be what was published.
        details: Sizes and errors of the form, as JSON.
    """

    person: Person
    path: Path
    verified: str
    details: dict[str, Any] = field(default_factory=dict)


def pull(
    published: Published,
    person: Person,
    to: Path,
    hub: Hub,
    *,
    form: Form = "checkpoint",
    places: Places | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Pulled:
    """Rebuild one individual from its genome, base and experts.

    Args:
        to: A folder that does not exist yet.
        form: ``genome`` needs no model and no torch.
        places: Where models are that are not to be fetched.
        note: Called with a line for everything worth knowing.

    Raises:
        UserError: Nothing like it in the archive, a model is missing or another one, the rebuilt
            weights are not the published ones, or *to* is taken.
        RunError: No space, or damaged files.
        HubAway: The Hub does not answer.
    """
    _refuse_taken(to)
    data, genome = published.genome(person.id)
    if form == "genome":
        check_room(to, len(data))
        verified = "genome hash"
        with _writing(to) as folder:
            (folder / "genome.safetensors").write_bytes(data)
            (folder / BESIDE).write_text(describe(published, person, verified), encoding="utf-8")
        return Pulled(person, to, verified, {"bytes": len(data)})
    with ExitStack() as stack:
        rebuilt = rebuild(
            published, person, genome, hub, places or Places(), stack=stack, note=note
        )
        details = _write(published, rebuilt, to, form, places or Places())
    write_atomic(to / BESIDE, describe(published, person, rebuilt.verified))
    return Pulled(person, to, rebuilt.verified, details)


def pull_published(
    published: Published,
    person: Person,
    to: Path | None,
    hub: Hub,
    *,
    note: Callable[[str], None] = lambda line: None,
) -> Pulled:
    """Take the model that was published of an individual as it is.

    Args:
        to: A folder that does not exist yet; None leaves it in the Hub's cache.

    Raises:
        UserError: None was published, or its files are not those that it names.
    """
    from cqd_hub.hub.fetch import fetch

    if to is not None:
        _refuse_taken(to)
    elite = find_elite(published, person, hub, note=note)
    if elite is None:
        raise UserError(
            f"individual {person.id} was not published as a model",
            where=str(published),
            remedy="leave out --published to rebuild it",
        )
    source, record = elite
    (fetched,) = fetch(hub, [Reference(source.repo, source.sha)])
    files = record.get("files")
    wanted = files if isinstance(files, dict) else {}
    present = sorted(path.name for path in fetched.path.iterdir() if path.is_file())
    weights = [name for name in present if name.endswith(".safetensors")]
    for name in present:
        if name in wanted and sha256_of(fetched.path / name) != wanted[name]:
            raise UserError(
                f"{name} is not the file that its cqd_hub.json names",
                where=str(source),
                remedy="it was changed after it was pushed: do not use it",
            )
    if not weights or not set(weights) <= set(wanted):
        raise UserError("names no hash of its weights", where=str(source), remedy="do not use it")
    size = sum((fetched.path / name).stat().st_size for name in present)
    if to is None:
        return Pulled(person, fetched.path, "file hashes", {"bytes": size, "repo": source.repo})
    check_room(to, size)
    with _writing(to) as folder:
        for name in present:
            shutil.copyfile(fetched.path / name, folder / name)
    return Pulled(person, to, "file hashes", {"bytes": size, "repo": source.repo})


def pull_recipe(
    published: Published,
    to: Path,
    *,
    trusted: Collection[str] = (),
    note: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write an archive's recipe and the task files that came with it, to evolve anew.

    Args:
        to: A folder that does not exist yet.
        trusted: SHA-256 hashes of task files with code that the person has read.

    Returns:
        The recipe file.

    Raises:
        CodeFound: A task file holds code and is not trusted.
        UserError: No recipe that this version knows, or *to* is taken.
    """
    _refuse_taken(to)
    names = [path for path in published.source.paths if _TASK.fullmatch(path)]
    files = {
        name.removeprefix("run/tasks/"): published.source.fetch(
            name, limit=_TASK_LIMIT
        ).read_bytes()
        for name in names
    }
    check_tasks(files, trusted, where=str(published))
    data = published.json("run/recipe.json")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"is no recipe that this version knows: {'.'.join(map(str, first['loc']))[:80]}",
            where=f"{published}/run/recipe.json",
            remedy="pip install --upgrade cqd-hub",
        ) from None
    content = _with_places(recipe, published, files, note)
    with _writing(to) as folder:
        for name, text in files.items():
            (folder / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tasks" / name).write_bytes(text)
        heading = f"# Of {published}\n"
        (folder / "recipe.yaml").write_text(
            heading + yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    return to / "recipe.yaml"


def _with_places(
    recipe: Recipe,
    published: Published,
    files: Collection[str],
    note: Callable[[str], None],
) -> dict[str, Any]:
    """The recipe with models by Hub reference, and tasks where they are written."""
    content = json.loads(recipe.model_dump_json(exclude_unset=False))
    models = published.head.models

    def place(reference: str | None, name: str, old: str) -> str:
        if reference is None:
            note(f"{name} was a local folder: write where it is into the recipe")
            return Path(old).name
        found = parse(reference)
        return f"{found.repo}@{found.revision}" if found.revision else found.repo

    content["base"] = place(models.base.reference, "base", recipe.base)
    for name, old in recipe.experts.items():
        known = models.experts.get(name)
        content["experts"][name] = place(known.reference if known else None, name, old)
    for name, skill in recipe.skills.items():
        if skill.task.endswith((".yaml", ".yml")):
            own = [file for file in files if Path(file).name == Path(skill.task).name]
            content["skills"][name]["task"] = f"tasks/{own[0]}" if own else Path(skill.task).name
            if not own:
                note(f"the task file of {name} is not in the archive: put it beside the recipe")
        for option, value in skill.options.items():
            if isinstance(value, str) and _ELSEWHERE.search(value):
                note(
                    f"skills.{name}.options.{option} is {clean(value)}, on your machine or "
                    "your network: see that you mean it before you evolve"
                )
    content["tasks"] = ["tasks"] if files else []
    return content


def _write(
    published: Published, rebuilt: Rebuilt, to: Path, form: Form, places: Places
) -> dict[str, Any]:
    from cqd_hub.genome import Materialiser
    from cqd_hub.genome.export import export_adapter, export_checkpoint, export_mergekit

    genome, basis, merges = rebuilt.genome, rebuilt.basis, rebuilt.merges
    models = published.head.models
    base = None if places.base or models.base.reference is None else parse(models.base.reference)
    if form == "checkpoint":
        return {"bytes": export_checkpoint(genome, Materialiser(basis, merges=merges), to)}
    if form == "adapter":
        name = base.repo if base else str(basis.base.checkpoint.path)
        made = export_adapter(genome, basis, to, base_name=name, merges=merges)
        return {"bytes": made.bytes, "rank": made.rank, "relative_error": made.relative_error}
    by_hash = {model.sha256: model.reference for model in models.experts.values()}
    experts = [by_hash[sha256] for sha256 in published.layout.experts]
    named = [_at(parse(reference)) for reference in experts if reference]
    whole = base is not None and not places.experts and len(named) == len(experts)
    export_mergekit(
        genome,
        basis,
        to,
        out_dtype=_dtype(basis.base.checkpoint.config),
        base=_at(base) if whole and base else None,
        experts=named if whole else None,
        merges=merges,
    )
    return {}


def _at(reference: Reference) -> str:
    return f"{reference.repo}@{reference.revision}"


def _dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _refuse_taken(to: Path) -> None:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError("already exists", where=str(to), remedy="choose another folder with --to")


@contextmanager
def _writing(to: Path) -> Iterator[Path]:
    """`new_folder`, with a full disk or a wrong place as one line."""
    try:
        with new_folder(to) as folder:
            yield folder
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror}",
            where=str(to),
            remedy="free some space or choose another folder with --to",
        ) from None


def elites_table(published: Published, where: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The latest elites as records: archive, cell, id, scores on the optimisation samples, size.

    Args:
        where: Conditions, see `cqd_hub.pull.select`.
    """
    from cqd_hub.pull.select import parse_condition, select

    head = published.head
    conditions = [parse_condition(text, head.skills) for text in where]
    labels: dict[int | None, list[str]] = {}
    for label, number in [
        ("best", head.chosen),
        *((f"best:{skill}", head.leader(skill)) for skill in head.skills),
    ]:
        labels.setdefault(number, []).append(label)
    return [
        {
            "archive": elite.skill,
            "cell": None if elite.cell is None else list(elite.cell),
            "id": elite.id,
            "name": elite.name,
            "called": labels.get(elite.id, []),
            "average": elite.average,
            "scores": elite.scores,
            "split": "optimisation",
            "genome_hash": elite.genome_hash,
            "bytes": 4 * published.layout.size,
        }
        for elite in select(published.elites, conditions)
    ]

"""Reading problems: an AgentBench checkout, its files, or CycleQD's samples as JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments._data import find_data
from cqd_hub.evaluation.environments.agentbench_os import cycleqd
from cqd_hub.evaluation.environments.agentbench_os.dialects import Dialect
from cqd_hub.evaluation.environments.agentbench_os.faults import fault_of, missing_script
from cqd_hub.evaluation.environments.agentbench_os.problem import Problem
from cqd_hub.evaluation.environments.agentbench_os.stock import NAMES
from cqd_hub.evaluation.episodes import Sample

# Best first; of the folder that holds what is found everything below that is known is read.
_PLACES = (
    "data/os_interaction",
    "os_interaction",
    "data/dev.json",
    "dev.json",
    "train_0317/training.json",
    "training.json",
    "*.json",
    "*.jsonl",
)
_KNOWN = ("dev.json", "training.json")
_NUMBERED = re.compile(r"[0-9]+")


class Source(NamedTuple):
    """One data file, the split and the ids of its samples, and the folder of its scripts."""

    path: Path
    split: str
    prefix: str
    scripts: Path


def read_samples(
    data: str, folder: Path, dialect: Dialect, *, where: str
) -> dict[str, list[Sample]]:
    """Read all problems found under *data*: split (dev, std, train, …) → samples in file order.

    Args:
        data: A checkout of AgentBench, its ``data/os_interaction``, a folder with data files and
            ``scripts/``, one file, or a data set of the Hub with any of these.
        folder: What a relative path starts from.
        dialect: In which they are played: some faults are faults of one.
        where: The option, named in errors.

    Raises:
        UserError: Nothing is there, or a file is malformed.
    """
    samples: dict[str, list[Sample]] = {}
    found = find_data(data, folder, names=_PLACES, where=where)
    if found.is_file() and (found.name not in _KNOWN or found == folder / Path(data).expanduser()):
        sources = [_source(found)]  # a file that was named, or is all there is
    else:
        sources = _sources(found.parent if found.is_file() else found)
    for source in sources:
        samples.setdefault(source.split, []).extend(_read(source, dialect))
    return samples


def _sources(base: Path) -> list[Source]:
    if base.name == "train_0317" or (base.name == "data" and (base.parent / "scripts").is_dir()):
        base = base.parent
    paths = [base / "data" / "dev.json", base / "dev.json"]
    groups = [path for path in (base / "data").glob("[0-9]*") if _NUMBERED.fullmatch(path.name)]
    for group in sorted(groups, key=lambda path: int(path.name)):
        paths += sorted([*group.glob("*.json"), *group.glob("*.jsonl")])
    paths += [base / "train_0317" / "training.json", base / "training.json"]
    return [_source(path) for path in paths if path.is_file()]


def _source(path: Path) -> Source:
    parent, stem = path.parent, path.stem
    if _NUMBERED.fullmatch(parent.name) and parent.parent.name == "data":
        scripts = parent.parent.parent / "scripts" / parent.name
        return Source(path, "std", f"std-{int(parent.name):03d}-{stem}", scripts)
    if parent.name == "train_0317":
        return Source(path, "train", "train_0317", parent.parent / "scripts" / "7")
    scripts = parent / "scripts"
    if parent.name == "data" and not scripts.is_dir():
        scripts = parent.parent / "scripts"
    if stem == "dev" and (scripts / "dev").is_dir():
        scripts = scripts / "dev"
    if stem == "training":
        return Source(path, "train", "train_0317", scripts)
    return Source(path, stem, stem, scripts)


def _read(source: Source, dialect: Dialect) -> list[Sample]:
    samples = []
    for index, record in enumerate(_records(source.path)):
        where = f"{source.path}: sample {index}"
        if not isinstance(record, Mapping):
            raise UserError("is no object", where=where, remedy="see docs/agentbench-os.md")
        missing: list[str] = []
        try:
            if "problem" in record:
                index, fields = cycleqd.fields(record)
            else:
                fields = _fields(record, source.scripts, missing)
            problem = Problem.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            raise UserError(
                f"{key}: {said}" if key else said, where=where, remedy="correct the data file"
            ) from None
        except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"is malformed: {error}"
            raise UserError(what, where=where, remedy="correct the data file") from None
        name = f"{source.prefix}-{index:05d}"
        fault = missing_script(missing) if missing else fault_of(problem, dialect)
        samples.append(Sample(name, problem.description, problem.model_dump(mode="json"), fault))
    return samples


def _records(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix != ".json":
            raise UserError(
                "is neither .json nor .jsonl",
                where=str(path),
                remedy="pickles are not read: write CycleQD's samples as JSON, see "
                "docs/agentbench-os.md",
            )
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON: {error.msg}", where=f"{path}:{error.lineno}", remedy="fetch the file again"
        ) from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    return records if isinstance(records, list) else [records]


def _fields(record: Mapping[str, Any], scripts: Path, missing: list[str]) -> dict[str, Any]:
    """A record of AgentBench's as the fields of a `Problem`."""

    def script(given: Any) -> Any:
        return _script(given, scripts, missing)

    def several(given: Any) -> list[Any]:
        return [script(one) for one in (given if isinstance(given, list) else [given])]

    create = record.get("create")
    # Two records hold their check here by mistake; upstream finds no `init` in a list.
    create = create if isinstance(create, Mapping) else {}
    evaluation = record["evaluation"]
    fields: dict[str, Any] = {"description": record["description"]}
    if "init" in create:
        fields["init"] = several(create["init"])
    if "local" in create:
        fields["image"] = create["local"]
    if (start := script(record.get("start"))) is not None:
        fields["start"] = start["code"]
    if "match" in evaluation:
        match = evaluation["match"]
        fields["match"] = {"answer": match} if isinstance(match, str) else match
    elif "check" in evaluation:
        fields["check"] = several(evaluation["check"])
        fields["example"] = script(evaluation.get("example"))
    return fields


def _script(given: Any, scripts: Path, missing: list[str]) -> dict[str, Any] | None:
    if given is None:
        return None
    if isinstance(given, str):
        return {"code": given}
    language = given.get("language", "bash")
    if "file" not in given:
        return {"language": language, "code": given["code"]}
    name = given["file"]
    path = Path(os.path.normpath(scripts / name))
    inside = path.is_relative_to(os.path.normpath(scripts.parent))
    if inside and path.is_file():
        return {"language": language, "code": path.read_text(encoding="utf-8")}
    if (stem := Path(name).stem) in NAMES:
        return {"language": "python", "code": "exit(1)", "stock": stem}
    missing.append(name)
    return {"language": language, "code": "exit 1"}

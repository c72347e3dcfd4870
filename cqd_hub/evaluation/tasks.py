"""Finding and loading one lm-eval task."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.files import sha256_of
from cqd_hub.recipe import read_yaml


class LoadedTask(NamedTuple):
    """lm-eval's task, and what decides how it scores an answer, as text that stays the same."""

    task: Any
    scoring: str


class TaskIndex:
    """lm-eval's indices of tasks, each made once: its own takes about 10 s."""

    def __init__(self, include: Sequence[Path]) -> None:
        self._include = list(include)

    def of_file(self, path: Path) -> Any:
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=[path.parent], include_defaults=False)

    def holding(self, name: str) -> Any:
        return self._ours if name in self._ours.task_index else self._everything

    @cached_property
    def _ours(self) -> Any:
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self._include, include_defaults=False)

    @cached_property
    def _everything(self) -> Any:
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=self._include)


def load_task(name: str, index: TaskIndex, folder: Path, where: str) -> LoadedTask:
    """Load a task by name, or from a YAML file relative to *folder*.

    Raises:
        UserError: There is no such task, it is a group, it cannot be loaded, or it is unsafe: what
            lm-eval marks so, and does not say how it is executed, is refused before its Python is
            imported.
    """
    if name.endswith((".yaml", ".yml")):
        path = (folder / name).resolve()
        name = _task_name(path, where)
        manager = index.of_file(path)
        entry = manager.task_index.get(name)
        if entry is None or Path(entry.yaml_path).resolve() != path:
            raise UserError(
                f"another file beside it holds the task {name!r} too",
                where=f"{where}: {path}",
                remedy="give each its own `task:` name",
            )
    else:
        manager = index.holding(name)
        entry = manager.task_index.get(name)
        if entry is None:
            close = difflib.get_close_matches(name, manager.all_subtasks, n=1)
            listing = "list them with `lm-eval ls tasks`"
            raise UserError(
                f"no task named {name!r}",
                where=where,
                remedy=f"did you mean {close[0]!r}?" if close else listing,
            )
    if entry.kind.name in ("GROUP", "TAG"):  # not loaded: that may be a hundred data sets
        member = next(_members(name, manager.task_index, set()), "")
        raise UserError(
            f"{name!r} is a group of tasks",
            where=where,
            remedy=f"name one of them, such as {member}" if member else "name a task",
        )
    config = entry.cfg or {}
    metadata = config.get("metadata")
    told = isinstance(metadata, dict) and "execution" in metadata
    if config.get("unsafe_code", False) is not False and not told:
        raise unsafe(where)
    # Data files in a task YAML are relative to it; datasets resolves them from the working folder.
    place = Path(entry.yaml_path).parent if entry.yaml_path else Path()
    try:
        with contextlib.chdir(place):
            (task,) = manager.load([name])["tasks"].values()
    except Exception as error:  # lm-eval and datasets raise whatever their tasks raise
        reason = error.__cause__ or error  # datasets says what happened in its cause only
        text = " ".join(str(reason).split())
        raise UserError(
            f"task {name!r} cannot be loaded: {type(reason).__name__}: {text[:300]}",
            where=where,
            remedy="its data must be downloaded once: check the network and HF_HUB_OFFLINE"
            if isinstance(error, ConnectionError)
            else "",
        ) from error
    return LoadedTask(task, _scoring(task, Path(entry.yaml_path)))


def _members(name: str, index: Mapping[str, Any], seen: set[str]) -> Iterator[str]:
    """The tasks of a group or tag, of the groups in it too, that have names of their own."""
    entry = index.get(name)
    if entry is None or name in seen:
        return
    seen.add(name)
    if entry.kind.name == "TAG":
        listed: Any = sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        listed = (entry.cfg or {}).get("task")
    else:
        yield name
        return
    for item in listed if isinstance(listed, list) else []:
        child = item if isinstance(item, str) else item.get("group") or item.get("task")
        yield from _members(str(child), index, seen)


def _scoring(task: Any, path: Path) -> str:
    config = task.config
    kind = (config.metadata or {}).get("execution")
    facts = [filter_list(task), config.metric_list, kind, _source(path)]
    return json.dumps(facts, sort_keys=True, default=lambda value: type(value).__qualname__)


def _source(path: Path) -> str:
    """SHA-256 over a task YAML, what it includes, and the Python that they name or lie beside."""
    files: set[Path] = set()
    waiting = [path.resolve()]
    while waiting:
        place = waiting.pop()
        if place in files:
            continue
        text = place.read_bytes()
        waiting += [(place.parent / name).resolve() for name in _includes(text)]
        named = re.findall(rb"!function\s+['\"]?([\w.]+)\.\w", text)
        modules = [place.parent / f"{name.decode().replace('.', '/')}.py" for name in named]
        files |= {place, *place.parent.glob("*.py"), *(m for m in modules if m.is_file())}
    listing = sorted((file.name, sha256_of(file)) for file in files if file.is_file())
    return hashlib.sha256(repr(listing).encode()).hexdigest()


def _includes(text: bytes) -> list[str]:
    import yaml  # lm-eval's own parser: it reads the same files that ours is stricter about

    names: list[str] = []
    for key, value in getattr(yaml.compose(text, Loader=yaml.SafeLoader), "value", []):
        if key.value == "include":
            names = [one.value for one in value.value] if value.id == "sequence" else [value.value]
    return names


def unsafe(where: str) -> UserError:
    """The refusal of a task whose own code would run answers."""
    return UserError(
        "lm-eval marks this task unsafe: it would run model-written code unconfined",
        where=where,
        remedy="use a task with metadata.execution, and metric: executed",
    )


def _task_name(path: Path, where: str) -> str:
    data = read_yaml(path)
    if not isinstance(data.get("task"), str):
        raise UserError("has no `task:` name", where=f"{where}: {path}", remedy="add it")
    return str(data["task"])


def filter_list(task: Any) -> list[tuple[str, list[Any]]]:
    listed = task.config.filter_list
    if not listed:
        return [("none", [("take_first", None)])]
    return [
        (
            item["name"],
            [
                (step["function"], {k: v for k, v in step.items() if k != "function"})
                for step in item["filter"]
            ],
        )
        for item in listed
    ]


def build_filters(task: Any) -> dict[str, Any]:
    from lm_eval.filters import build_filter_ensemble

    return {name: build_filter_ensemble(name, steps) for name, steps in filter_list(task)}

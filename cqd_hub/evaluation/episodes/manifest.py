"""The YAML that names an environment, its options, and how the model is asked."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import Field
from ruamel.yaml.comments import CommentedMap

from cqd_hub.errors import CqdHubError, UserError
from cqd_hub.evaluation.environments import ENVIRONMENTS
from cqd_hub.evaluation.environments._data import is_data_set, is_file_name
from cqd_hub.evaluation.episodes._interface import Environment
from cqd_hub.evaluation.episodes.render import Format
from cqd_hub.files import sha256_of
from cqd_hub.recipe import Strict, read_yaml
from cqd_hub.recipe.load import check, place

_KEY = re.compile(r"^environment[ \t]*:", re.MULTILINE)
_NAME = re.compile(r"^task[ \t]*:[ \t]*['\"]?([^'\"#\s]+)", re.MULTILINE)
_OPTION = re.compile(r"(?P<room>\w+)\.(?P<key>\w+)")  # as environments name one in errors
_OWN = re.compile(r"(?P<file>[^:]+\.py):(?P<name>\w+)")


class Manifest(Strict):
    """How episodes of an environment are played."""

    task: str | None = Field(default=None, description="its name; the file's without it")
    environment: str = Field(
        description="agentbench_os, …, or file.py:Class, relative to the manifest"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of the environment")
    format: Format = Field(
        default="chat",
        description="chat: the tokenizer's chat template; plain: messages one after the other, "
        "each on lines of its own",
    )
    max_new_tokens: Annotated[int, Field(ge=1)] = Field(default=512, description="of one reply")
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="what ends a reply, and is cut from it"
    )
    prefill: str = Field(default="", description="what each reply is begun with")
    repeats: Annotated[int, Field(ge=1)] = Field(
        default=1, description="episodes per sample; worth more than one with a temperature only"
    )


@dataclass(frozen=True)
class Loaded:
    """A manifest with its environment, not yet open.

    Args:
        manifest: What the file says.
        environment: Made with the options of manifest and recipe.
        options: Those, as they were given.
        source: SHA-256 of the environment's own file, where it is the user's; else empty.
    """

    manifest: Manifest
    environment: Environment
    options: Mapping[str, Any]
    source: str


def find_manifest(
    name: str, include: Sequence[Path], folder: Path, where: str
) -> tuple[Path, CommentedMap] | None:
    """The manifest that a recipe's ``task`` names, or None where it names something else.

    Args:
        name: A name, or the path of a YAML file relative to *folder*.
        include: Folders that are searched for the name.
        where: Named in errors.

    Raises:
        UserError: The file is missing or no YAML, or two manifests have that name.
    """
    if name.endswith((".yaml", ".yml")):
        path = (folder / name).resolve()
        data = read_yaml(path)
        return (path, data) if "environment" in data else None
    found = {
        path.resolve()
        for part in include
        for suffix in ("*.yaml", "*.yml")
        for path in part.rglob(suffix)
        if _is_manifest(path, name)
    }
    if len(found) > 1:
        raise UserError(
            f"two manifests are called {name!r}: {' and '.join(map(str, sorted(found)[:2]))}",
            where=where,
            remedy="give one another `task:` name, or name its file",
        )
    for path in found:
        return path, read_yaml(path)
    return None


def _is_manifest(path: Path, name: str) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    if not _KEY.search(text):
        return False
    named = _NAME.search(text)
    return (named[1] if named else path.stem) == name


def load_manifest(
    path: Path,
    data: CommentedMap,
    given: Mapping[str, Any],
    folder: Path,
    where: str,
    note: Callable[[str], None] = lambda line: None,
) -> Loaded:
    """Check a manifest and make its environment.

    Args:
        path: Its file.
        data: What it holds, as `find_manifest` gives it.
        given: The recipe's options, over the manifest's.
        folder: Where the recipe's relative paths start.
        where: The skill's place in the recipe, named in errors.
        note: Called with a line where data are looked for on the Hub.

    Raises:
        UserError: Unknown keys, environment or options; or what the environment refuses.
    """
    manifest = check(data, Manifest, lambda location: place(path, data, location))
    kind, source = _environment(manifest.environment, path, place(path, data, ("environment",)))
    written = data.get("options") or {}
    options = CommentedMap({**manifest.options, **given})

    def position(location: tuple[int | str, ...]) -> str:
        if location and (location[0] in given or location[0] not in written):
            return f"{where}.options"
        return place(path, data, ("options", *location))

    checked = check(
        CommentedMap({**options, **_placed(kind, given, folder)}), kind.Options, position, "options"
    )
    asked = getattr(checked, "data", None) if manifest.environment in ENVIRONMENTS else None
    if isinstance(asked, str) and "://" not in asked and is_data_set(asked, path.parent):
        note(f"{where}.options.data: there is no folder {asked}, so the Hub is asked for it")
    try:
        environment = kind(checked, path.parent)
    except UserError as error:
        option = _OPTION.fullmatch(error.where)
        if option is None or option["room"] not in ("options", manifest.environment):
            raise
        key = option["key"]
        inside = key in written and key not in given
        of = f"{where}: {place(path, data, ('options', key))}: " if inside else f"{where}."
        raise UserError(error.what, where=f"{of}options.{key}", remedy=error.remedy) from None
    except CqdHubError:
        raise
    except Exception as error:  # the user's own code raises whatever it raises
        raise UserError(
            f"the environment cannot be made: {type(error).__name__}: {error}",
            where=f"{where}.task",
            remedy=f"mend {manifest.environment}",
        ) from error
    return Loaded(manifest, environment, dict(options), source)


def _placed(kind: type[Environment], given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe's options, those that name a file or folder beside the recipe made absolute."""
    result = dict(given)
    for name, value in given.items():
        field = kind.Options.model_fields.get(name)
        if not isinstance(value, str) or field is None or get_origin(field.annotation) is Literal:
            continue
        path = Path(value).expanduser()
        # No word, nor a data set of the Hub.
        missing = name == "data" and ("/" not in value or is_file_name(value))
        if value.startswith((".", "~")) or missing or (value and (folder / path).exists()):
            result[name] = str((folder / path).resolve())
    return result


def _environment(name: str, path: Path, where: str) -> tuple[type[Environment], str]:
    if name in ENVIRONMENTS:
        module, _, attribute = ENVIRONMENTS[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute), ""
        except ModuleNotFoundError as error:
            raise UserError(
                f"the environment {name} needs {error.name}",
                where=where,
                remedy=f"pip install {error.name}",
            ) from None
    own = _OWN.fullmatch(name)
    if own is None:
        close = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        known = f"{', '.join(ENVIRONMENTS)}, or file.py:Class"
        raise UserError(
            f"environment: none is called {name!r}",
            where=where,
            remedy=f"did you mean {close[0]!r}?" if close else f"use one of {known}",
        )
    return _own(path.parent / own["file"], own["name"], where)


def _own(file: Path, name: str, where: str) -> tuple[type[Environment], str]:
    """A class of a file of the user's, which is imported alone: its folder is not on the path."""
    if not file.is_file():
        raise UserError(
            f"environment: no such file: {file}",
            where=where,
            remedy="name it relative to the manifest",
        )
    source = sha256_of(file)
    title = f"_cqd_hub_environment_{source[:16]}"
    module = sys.modules.get(title)
    if module is None:
        spec = importlib.util.spec_from_file_location(title, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[title] = module  # pydantic looks annotations up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[title]
            raise UserError(
                f"{file.name} cannot be imported: {type(error).__name__}: {error}",
                where=where,
                remedy="mend it",
            ) from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Environment)):
        classes = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, Environment)
            and value is not Environment
        ]
        raise UserError(
            f"environment: {file.name} has no Environment called {name!r}",
            where=where,
            remedy=f"it has {', '.join(classes) or 'none'}",
        )
    return found, source

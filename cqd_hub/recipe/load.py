"""YAML file to pydantic model, with errors that name file, line, column, key and remedy."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from cqd_hub.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[int | str, ...]


class Strict(BaseModel):
    """Base of every recipe model: unknown keys are errors, values are frozen and finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_yaml(path: Path) -> CommentedMap:
    """Read a YAML mapping (YAML 1.2: ``1e-3`` is a number, ``on`` a string).

    Raises:
        UserError: The file is missing, is not YAML, repeats a key, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), remedy="check the path") from None
    except IsADirectoryError:
        raise UserError(
            "is a folder", where=str(path), remedy="name the YAML file inside it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    try:
        data = YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        where = f"{path}:{_mark(error)}"
        problem = str(error.problem).split(" with value")[0].replace("found ", "")
        raise UserError(problem, where=where, remedy="keep one of the two") from None
    except RecursionError:
        raise UserError("is nested too deeply", where=str(path)) from None
    except MarkedYAMLError as error:
        raise UserError(f"not YAML: {error.problem}", where=f"{path}:{_mark(error)}") from None
    except YAMLError as error:
        problem = str(error).split("\n")[0]
        raise UserError(f"not YAML: {problem}", where=str(path)) from None
    if not isinstance(data, CommentedMap):
        raise UserError("holds no keys", where=str(path), remedy="start from `cqd-hub init`")
    return data


def load_yaml(path: Path, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """Read *path*, apply ``key.subkey=value`` *overrides*, and validate it as *model*.

    Raises:
        UserError: One line with the first fault: file, line, column, key, and the remedy.
    """
    data = read_yaml(path)
    given = [_apply(override, data) for override in overrides]

    def where(location: Location) -> str:
        override = next((parts for parts in given if _related(parts, location)), None)
        return f"--set {'.'.join(map(str, override))}" if override else place(path, data, location)

    return check(data, model, where)


def check(
    data: Mapping[str, Any], model: type[Model], where: Callable[[Location], str], name: str = ""
) -> Model:
    """Validate keys and values of a YAML file as *model*.

    Args:
        where: Where the keys at a location are written, for errors.
        name: What *data* are called, if they are a part of a file.

    Raises:
        UserError: One line with the first fault.
    """
    try:
        return model.model_validate(_plain(data))
    except ValidationError as error:
        raise _explain(error, data, model, where, name) from None


def place(path: Path, data: Mapping[str, Any], location: Location) -> str:
    """``file:line:column`` of a location in what `read_yaml` gave, or of what is above it."""
    line, column = _position(data, location)
    return f"{path}:{line}:{column}"


def _mark(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"


def _apply(override: str, data: CommentedMap) -> Location:
    """Write one override into *data* and return the location it went to."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(
            f"{override!r} is not KEY=VALUE", where="--set", remedy="write --set search.children=40"
        )
    path = key.split(".")
    node: Any = data
    for depth, part in enumerate(path):
        if not isinstance(node, CommentedMap):
            raise UserError(
                f"{'.'.join(path[:depth])} holds no keys",
                where=f"--set {key}",
                remedy="set it as a whole",
            )
        if depth < len(path) - 1:
            if node.get(part) is None:
                node[part] = CommentedMap()
            node = node[part]
    try:
        node[path[-1]] = YAML(typ="rt", pure=True).load(StringIO(value))
    except YAMLError:
        raise UserError(f"{value!r} is not a YAML value", where=f"--set {key}") from None
    return tuple(path)


def _plain(node: Any) -> Any:
    """Return built-in containers and scalars (ruamel's own subclasses would leak into dumps)."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, Sequence) and not isinstance(node, str | bytes):
        return [_plain(value) for value in node]
    for builtin in (bool, int, float, str):
        if isinstance(node, builtin):
            return builtin(node)
    return node


def _explain(
    error: ValidationError,
    data: Mapping[str, Any],
    model: type[BaseModel],
    where: Callable[[Location], str],
    name: str,
) -> UserError:
    # A misspelt key also makes the right one "missing": the misspelling is the better message.
    found = sorted(
        error.errors(),
        key=lambda item: (item["type"] != "extra_forbidden", _position(data, item["loc"])),
    )
    first = _known_path(data, found[0])
    # Of the ways in which a union does not fit, the one that got furthest.
    found.sort(key=lambda item: -_depth_below(first, _known_path(data, item)))
    location = _known_path(data, found[0])
    same = [item for item in found if _known_path(data, item) == location]
    what, remedy = _wording(found[0], same, model)
    if not location:  # a fault between keys names the key it is about, at the front
        named, _, rest = what.partition(": ")
        if _holds_all(data, named.split(".")):
            location, what = tuple(named.split(".")), rest
    key = ".".join(str(part) for part in ((name,) if name else ()) + location)
    return UserError(f"{key}: {what}" if key else what, where=where(location), remedy=remedy)


def _depth_below(first: Location, location: Location) -> int:
    return len(location) if location[: len(first)] == first and first else 0


def _related(override: Location, location: Location) -> bool:
    shorter = min(len(override), len(location))
    return shorter > 0 and override[:shorter] == location[:shorter]


def _wording(
    item: ErrorDetails, same: Sequence[ErrorDetails], model: type[BaseModel]
) -> tuple[str, str]:
    kind = item["type"]
    if kind == "extra_forbidden":
        known = sorted(_keys_at(model, item["loc"][:-1]))
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        keys = f"known keys: {', '.join(known)}"
        return "unknown key", f"did you mean {close[0]!r}?" if close else keys
    if kind == "missing":
        return "is missing", "add it"
    if kind == "value_error":
        what, _, remedy = item["msg"].removeprefix("Value error, ").partition("; ")
        return what, remedy
    got = item["input"]
    shown = ""
    if got is None or isinstance(got, bool):
        shown = f", not {json.dumps(got)}"  # as YAML spells them
    elif isinstance(got, int | float | str):
        shown = f", not {got!r}"
    if item["loc"][-1:] == ("[key]",):
        return "is no name: use up to 64 letters, digits, '.', '_' and '-'", ""
    if kind == "union_tag_not_found":
        return f"needs the key {item['ctx']['discriminator']}", "add it"
    if kind == "union_tag_invalid":
        return f"kind must be one of {item['ctx']['expected_tags']}, not {item['ctx']['tag']!r}", ""
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"needs keys and values under it{shown}", ""
    remedy = ""
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        close = difflib.get_close_matches(str(got), known, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else ""
    messages = dict.fromkeys(one["msg"].split(", unable")[0] for one in same)
    message = " or ".join(messages).replace(" or Input should", " or")
    return message[0].lower() + message[1:] + shown, remedy


def _keys_at(model: type[BaseModel], location: Location) -> set[str]:
    """Return the keys that the (sub)model at *location* accepts, from its JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in location:
        following: list[dict[str, Any]] = []
        for node in _resolved(nodes, definitions):
            tags = node.get("discriminator", {}).get("mapping", {})
            values = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
            if part in tags:
                following = [{"$ref": tags[part]}]
                break
            if isinstance(part, int) and "items" in node:
                following.append(node["items"])
            elif part in node.get("properties", {}):
                following.append(node["properties"][part])
            else:
                following += [value for value in values if isinstance(value, dict)]
        nodes = following or nodes  # what pydantic adds for other unions is in no schema
    return {key for node in _resolved(nodes, definitions) for key in node.get("properties", {})}


def _resolved(nodes: list[dict[str, Any]], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """*nodes* with references followed, and before its alternatives each union itself."""
    result: list[dict[str, Any]] = []
    for node in nodes:
        result.append(node)
        if "$ref" in node:
            result += _resolved([definitions[node["$ref"].rsplit("/", 1)[-1]]], definitions)
        alternatives = node.get("anyOf", []) + node.get("oneOf", []) + node.get("allOf", [])
        result += _resolved(alternatives, definitions)
    return result


def _known_path(data: Any, item: ErrorDetails) -> Location:
    """The keys in an error's location, without what pydantic adds for unions and types."""
    path: list[int | str] = []
    node = data
    for part in item["loc"]:
        if _holds(node, part):
            node = node[part]
            path.append(part)
    if item["type"] == "missing":
        path.append(item["loc"][-1])
    return tuple(path)


def _holds_all(data: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not _holds(data, part):
            return False
        data = data[part]
    return True


def _holds(node: Any, part: int | str) -> bool:
    if isinstance(node, CommentedMap):
        return part in node
    return isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node)


def _position(data: Mapping[str, Any], location: Location) -> tuple[int, int]:
    """Return the 1-based line and column of the deepest part of *location* in the file."""
    line, column = 1, 1
    node: Any = data
    for part in location:
        if not _holds(node, part):
            continue
        with suppress(KeyError, TypeError, AttributeError):  # put there by --set: it has no place
            row, col = node.lc.key(part) if isinstance(node, CommentedMap) else node.lc.item(part)
            line, column = row + 1, col + 1
        node = node[part]
    return line, column

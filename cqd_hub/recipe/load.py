"""YAML file to pydantic model, with errors that name file, line, column, key and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
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
    """Base of every recipe model: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    except MarkedYAMLError as error:
        raise UserError(f"not YAML: {error.problem}", where=f"{path}:{_mark(error)}") from None
    except YAMLError as error:
        raise UserError(f"not YAML: {error}", where=str(path)) from None
    if not isinstance(data, CommentedMap):
        raise UserError("holds no keys", where=str(path), remedy="start from `cqd-hub init`")
    return data


def load_yaml(path: Path, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """Read *path*, apply ``key.subkey=value`` *overrides*, and validate it as *model*.

    Raises:
        UserError: One line with the first fault: file, line, column, key, and the remedy.
    """
    data = read_yaml(path)
    for override in overrides:
        _apply(override, data)
    try:
        return model.model_validate(_plain(data))
    except ValidationError as error:
        raise _explain(error, data, path, model) from None


def _mark(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"


def _apply(override: str, data: CommentedMap) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(
            f"{override!r} is not KEY=VALUE", where="--set", remedy="write --set search.children=40"
        )
    *path, last = key.split(".")
    node: Any = data
    for part in path:
        if isinstance(node, CommentedSeq) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, CommentedMap):
            node = node.setdefault(part, CommentedMap())
        else:
            raise UserError(f"{key!r}: {part!r} is not a section", where="--set")
    if not isinstance(node, CommentedMap):
        raise UserError(f"{key!r} does not lead to a section", where="--set")
    try:
        node[last] = YAML(typ="rt", pure=True).load(StringIO(value))
    except YAMLError:
        raise UserError(f"{value!r} is not a YAML value", where=f"--set {key}") from None


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
    error: ValidationError, data: CommentedMap, path: Path, model: type[BaseModel]
) -> UserError:
    # A misspelt key also makes the right one "missing": the misspelling is the better message.
    first = min(
        error.errors(),
        key=lambda item: (item["type"] != "extra_forbidden", _position(data, item["loc"])),
    )
    location = first["loc"]
    line, column = _position(data, location)
    key = ".".join(str(part) for part in _known_path(data, location))
    what, remedy = _wording(first, model)
    return UserError(
        f"{key}: {what}" if key else what, where=f"{path}:{line}:{column}", remedy=remedy
    )


def _wording(item: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    if item["type"] == "extra_forbidden":
        name = str(item["loc"][-1])
        close = difflib.get_close_matches(name, sorted(_keys_at(model, item["loc"][:-1])), n=1)
        known = ", ".join(sorted(_keys_at(model, item["loc"][:-1])))
        return "unknown key", f"did you mean {close[0]!r}?" if close else f"known keys: {known}"
    if item["type"] == "missing":
        return "is missing", "add it"
    message = item["msg"].removeprefix("Value error, ")
    if "; " in message and item["type"] == "value_error":
        what, remedy = message.split("; ", 1)
        return what, remedy
    got = item["input"]
    shown = f", not {got!r}" if isinstance(got, bool | int | float | str) or got is None else ""
    return message[0].lower() + message[1:] + shown, ""


def _keys_at(model: type[BaseModel], location: Location) -> set[str]:
    """Return the keys that the (sub)model at *location* accepts, from its JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in location:
        following: list[dict[str, Any]] = []
        for node in _resolved(nodes, definitions):
            if isinstance(part, int) and "items" in node:
                following.append(node["items"])
            elif part in node.get("properties", {}):
                following.append(node["properties"][part])
            elif isinstance(node.get("additionalProperties"), dict):
                following.append(node["additionalProperties"])
        nodes = following or nodes  # union tags are part of a location but of no schema
    return {key for node in _resolved(nodes, definitions) for key in node.get("properties", {})}


def _resolved(nodes: list[dict[str, Any]], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for node in nodes:
        if "$ref" in node:
            result += _resolved([definitions[node["$ref"].rsplit("/", 1)[-1]]], definitions)
        alternatives = node.get("anyOf", []) + node.get("oneOf", []) + node.get("allOf", [])
        result += _resolved(alternatives, definitions)
        result.append(node)
    return result


def _known_path(data: Any, location: Location) -> Location:
    """Drop from *location* what pydantic adds for unions and types."""
    path: list[int | str] = []
    node = data
    for depth, part in enumerate(location):
        inside = (isinstance(node, CommentedMap) and part in node) or (
            isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node)
        )
        if inside:
            node = node[part]
            path.append(part)
        elif (
            depth == len(location) - 1 and isinstance(part, str) and isinstance(node, CommentedMap)
        ):
            path.append(part)
    return tuple(path)


def _position(data: CommentedMap, location: Location) -> tuple[int, int]:
    """Return the 1-based line and column of the deepest part of *location* in the file."""
    line, column = 1, 1
    node: Any = data
    for part in location:
        try:
            if isinstance(node, CommentedMap) and part in node:
                row, col = node.lc.key(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                row, col = node.lc.item(part)
            else:
                continue
        except (KeyError, TypeError, AttributeError):  # put there by --set: it has no place
            node = node[part]
            continue
        line, column = row + 1, col + 1
        node = node[part]
    return line, column

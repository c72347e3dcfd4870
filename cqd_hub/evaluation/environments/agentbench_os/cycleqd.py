"""CycleQD's samples, which it keeps as a pickle of AgentBench's own records, written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def fields(record: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The index of a sample, and the fields of its `Problem`.

    A sample holds the attributes of CycleQD's `OSInteractionSample`: ``problem`` (the messages
    before the model's turn), ``index`` and ``config`` (``{file, index, config}`` around the
    attributes of a `JudgeConfig`), where a script is ``[language, code]``.

    Raises:
        KeyError, TypeError: It does not.
    """
    config = record["config"]
    config = config.get("config", config)
    result: dict[str, Any] = {
        "description": config["description"],
        "init": [_script(script) for script in config.get("init_script") or ()],
        "check": [_script(script) for script in config.get("check") or ()],
        "example": _script(config.get("example_script")),
    }
    if start := _script(config.get("start")):
        result["start"] = start["code"]
    if config.get("match"):
        result["match"] = config["match"]
    return int(record["index"]), result


def opening(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, content) of the messages before the model's turn.

    Raises:
        KeyError, TypeError: As `fields`.
    """
    return [(message["role"], message["content"]) for message in record["problem"]]


def _script(given: Sequence[str] | None) -> dict[str, str] | None:
    return None if given is None else {"language": given[0], "code": given[1]}

"""Function calls in what a model wrote, in the spellings that chat templates teach."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from cqd_hub.evaluation.episodes._interface import ToolCall

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"
_LONGEST = 1 << 18  # characters; what is longer is text


def parse_calls(text: str, round_: int) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a reply into what is said and the calls that are made.

    Known are ``<tool_call>{…}</tool_call>`` (Qwen, Hermes), ``<|python_tag|>{…}`` and a bare object
    (Llama 3), each with ``name`` and ``arguments`` or ``parameters``, several in a row or in a
    list. Anything else is text.

    Args:
        text: The reply, special tokens included.
        round_: Of the reply; makes the calls' ids unique within an episode.
    """
    said, found = text, list[ToolCall]()
    if len(text) <= _LONGEST:
        if "<tool_call>" in text:
            said = _TAGGED.sub("", text)
            parts = [match[1] for match in _TAGGED.finditer(text)]
        elif _PYTHON_TAG in text:
            said, _, rest = text.partition(_PYTHON_TAG)
            parts = [rest]
        else:
            said, parts = "", [text]
        for part in parts:
            found += _calls(part)
    if not found:
        return text, ()
    # Nine letters and digits: what the strictest templates take.
    numbered = [
        ToolCall(call.name, call.arguments, f"call{round_ % 1000:03d}{place % 100:02d}")
        for place, call in enumerate(found)
    ]
    return said.strip(), tuple(numbered)


def _calls(text: str) -> list[ToolCall]:
    """The calls that *text* is made of; none if it holds anything else."""
    try:
        values = list(_values(text))
    except (ValueError, RecursionError):
        return []
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    found = [_call(value) for value in values]
    return [call for call in found if call] if all(found) else []


def _values(text: str) -> Iterator[Any]:
    decoder, place = json.JSONDecoder(), 0
    while True:
        while place < len(text) and text[place] in " \t\r\n;,":
            place += 1
        if place == len(text):
            return
        value, place = decoder.raw_decode(text, place)
        yield value


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if isinstance(name, str) and isinstance(arguments, dict):
        return ToolCall(name, arguments)
    return None

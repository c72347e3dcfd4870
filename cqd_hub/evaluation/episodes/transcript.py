"""What was said and seen in an episode, as the journal keeps it: one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from cqd_hub.evaluation.drafts import Said
from cqd_hub.evaluation.episodes._interface import Message, Observation


class Exchange(NamedTuple):
    """One reply, and what was seen after it; None where the episode ended with it."""

    reply: str
    tokens: tuple[int, ...]
    seen: Observation | None


def write(exchanges: Sequence[Exchange]) -> str:
    """``[{"reply": …, "tokens": how many, "seen": …}, …]``; a lone user's message as its text."""
    turns = []
    for exchange in exchanges:
        turn: dict[str, Any] = {"reply": exchange.reply, "tokens": len(exchange.tokens)}
        if exchange.seen is not None:
            turn["seen"] = _plain(exchange.seen)
        turns.append(turn)
    text = json.dumps(turns, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half characters, which no database takes
        return json.dumps(turns, separators=(",", ":"))
    return text


def read(text: str, tokens: Sequence[int] = ()) -> list[Exchange]:
    """What `write` wrote, with the token ids of all replies in order."""
    exchanges, place = [], 0
    for turn in json.loads(text):
        end = place + turn["tokens"]
        seen = _observation(turn["seen"]) if "seen" in turn else None
        exchanges.append(Exchange(turn["reply"], tuple(tokens[place:end]), seen))
        place = end
    return exchanges


def said(exchanges: Sequence[Exchange]) -> list[Said]:
    """As drafts: what was said, by what had been seen."""
    return [Said(one.tokens, seen_key(one.seen)) for one in exchanges]


def seen_key(seen: Observation | None) -> str:
    """The same for equal observations."""
    return "" if seen is None else json.dumps(_plain(seen))


def _plain(seen: Observation) -> Any:
    messages = seen.messages
    if len(messages) == 1 and messages[0] == Message("user", messages[0].content):
        return messages[0].content
    return [{"role": m.role, "content": m.content, "call": m.call} for m in messages]


def _observation(value: Any) -> Observation:
    if isinstance(value, str):
        return Observation((Message("user", value),))
    return Observation(tuple(Message(m["role"], m["content"], call=m["call"]) for m in value))

"""Conversations as token ids: with the tokenizer's chat template, or as plain text."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Reply
from cqd_hub.evaluation.episodes._interface import Message, Tool, ToolCall
from cqd_hub.evaluation.episodes.calls import parse_calls

Format = Literal["chat", "plain"]
# Some templates write today's date, and a prompt must be the same tomorrow: they take this instead.
_DATE = "26 Jul 2024"


class Dialogue(abc.ABC):
    """One conversation. Its prompt only grows at the end wherever the format allows, so that an
    engine may keep what it knows of it.

    Attributes:
        prompt: Token ids up to where the model's next reply begins.
    """

    prompt: tuple[int, ...]

    @abc.abstractmethod
    def reply(self, reply: Reply) -> tuple[Message, str]:
        """The engine's reply as a message, and the text that it is recorded by."""

    @abc.abstractmethod
    def see(self, messages: Sequence[Message]) -> None:
        """Go on with what the model sees after its reply."""


@dataclass(frozen=True)
class Renderer:
    """How a skill's conversations become token ids.

    Args:
        tokenizer: The engine's.
        format: ``chat`` is its chat template; ``plain`` is every message on lines of its own,
            roles unsaid.
        prefill: What each reply is begun with.
        tools: Functions that the model may call.
        where: Named in errors.
    """

    tokenizer: Any
    format: Format
    prefill: str
    tools: tuple[Tool, ...]
    where: str

    def begin(self, opening: Sequence[Message]) -> Dialogue:
        """A conversation that has just been opened.

        Raises:
            UserError: The chat template refuses it.
        """
        if not opening:
            raise UserError("an episode opens with no message", where=self.where)
        kind = _Chat if self.format == "chat" else _Plain
        return kind(self, opening)

    def check(self) -> None:
        """See that the tokenizer can do what is asked.

        Raises:
            UserError: It has no chat template, or one that knows no tools.
        """
        if self.format == "plain":
            if self.tools:
                raise UserError(
                    "the environment's tools need a chat template",
                    where=self.where,
                    remedy="set format: chat, or another dialect",
                )
            return
        if not self.tokenizer.chat_template:
            raise UserError(
                "the base has no chat template",
                where=self.where,
                remedy="set format: plain in the manifest, or use a base that has one",
            )
        if self.tools:
            self._check_tools()

    def _check_tools(self) -> None:
        tool = self.tools[0]
        call = ToolCall(tool.name, {}, "call00000")
        conversation = [
            Message("user", "?"),
            Message("assistant", "", (call,)),
            Message("tool", "a result", call=call.id),
        ]
        messages = _dicts(conversation)
        without = self._template(messages, ())
        if self._template(messages, self.tools) == without or "a result" not in without:
            raise UserError(
                "the base's chat template knows no tools",
                where=self.where,
                remedy="use a dialect without tools, or a base that was trained with them",
            )

    def text(self, messages: Sequence[dict[str, Any]]) -> str:
        """The chat template over a conversation, up to where the model's next reply begins."""
        return self._template(messages, self.tools) + self.prefill

    def _template(self, messages: Sequence[dict[str, Any]], tools: Sequence[Tool]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=[_schema(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=True,
                date_string=_DATE,
            )
        except TemplateError as error:
            raise UserError(
                f"the base's chat template refuses the conversation: {error}",
                where=self.where,
                remedy="use another base, dialect or format",
            ) from None

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Token ids of *text*, with the tokenizer's own at the beginning if *special*."""
        text = text.encode(errors="replace").decode()  # half characters are no tokenizer's
        return tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def spoken(self, reply: Reply) -> tuple[int, ...]:
        """Token ids of a reply's text, the very ones that were generated where they are just it."""
        for tokens in (reply.tokens, reply.tokens[:-1]):
            if self.tokenizer.decode(list(tokens), skip_special_tokens=False) == reply.text:
                return tokens
        return self.encode(reply.text)


class _Plain(Dialogue):
    def __init__(self, renderer: Renderer, opening: Sequence[Message]) -> None:
        self._renderer = renderer
        text = "".join(map(_lines, opening)) + renderer.prefill
        self.prompt = renderer.encode(text, special=True)

    def reply(self, reply: Reply) -> tuple[Message, str]:
        self.prompt += self._renderer.spoken(reply)
        self._open = not reply.text.endswith("\n")
        return Message("assistant", self._renderer.prefill + reply.text), reply.text

    def see(self, messages: Sequence[Message]) -> None:
        text = "\n" * self._open + "".join(map(_lines, messages)) + self._renderer.prefill
        self.prompt += self._renderer.encode(text)


class _Chat(Dialogue):
    def __init__(self, renderer: Renderer, opening: Sequence[Message]) -> None:
        self._renderer, self._messages = renderer, list(opening)
        self._text = renderer.text(_dicts(self._messages))
        self.prompt = renderer.encode(self._text)
        self._round = 0

    def reply(self, reply: Reply) -> tuple[Message, str]:
        renderer = self._renderer
        text = renderer.prefill + reply.text
        message, said = Message("assistant", text), reply.text
        if renderer.tools:
            said = self._with_specials(reply)
            content, calls = parse_calls(renderer.prefill + said, self._round)
            message = Message("assistant", content if calls else text, calls)
        self._messages.append(message)
        self._round += 1
        self._text += said
        self.prompt += renderer.spoken(reply) if said == reply.text else renderer.encode(said)
        return message, said

    def see(self, messages: Sequence[Message]) -> None:
        self._messages += messages
        text = self._renderer.text(_dicts(self._messages))
        if text.startswith(self._text):
            self.prompt += self._renderer.encode(text[len(self._text) :])
        else:  # the template writes replies in its own way
            self.prompt = self._renderer.encode(text)
        self._text = text

    def _with_specials(self, reply: Reply) -> str:
        """The reply's text with the special tokens that mark calls, which the engine leaves out."""
        tokenizer, tokens = self._renderer.tokenizer, list(reply.tokens)
        if reply.finish == "stop" and tokens and tokens[-1] in tokenizer.all_special_ids:
            del tokens[-1]
        text = tokenizer.decode(tokens, skip_special_tokens=False)
        plain = tokenizer.decode(tokens, skip_special_tokens=True)
        return text if plain == reply.text else reply.text


def _lines(message: Message) -> str:
    return message.content if message.content.endswith("\n") else f"{message.content}\n"


def _schema(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": function}


def _dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates know them."""
    names = {call.id: call.name for message in messages for call in message.calls}
    result = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.calls:
            one["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": dict(call.arguments)},
                }
                for call in message.calls
            ]
        if message.role == "tool":
            one |= {"tool_call_id": message.call, "name": names.get(message.call, "")}
        result.append(one)
    return result

"""Conversations as token ids, with a real tokenizer and real chat templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Candidate, Reply
from cqd_hub.evaluation.episodes import Message, Observation, Tool, ToolCall
from cqd_hub.evaluation.episodes.render import Dialogue, Format, Renderer
from cqd_hub.evaluation.episodes.transcript import Exchange, read, write
from cqd_hub.evaluation.evaluator import Evaluation, Evaluator
from cqd_hub.genome import Basis
from tests.evaluation.episodes.common import log, manifest, play

TOOLS = """\
{%- if tools %}<bos>tools: {% for t in tools %}{{ t | tojson }}{% endfor %}<eos>{% endif %}
{%- for m in messages %}<bos>{{ m.role }}: {{ m.content }}
{%- for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<eos>{% endfor %}
{%- if add_generation_prompt %}<bos>assistant: {% endif %}"""
TRIMMED = (
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content | trim }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)
STRICT = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture
def tokenizer(basis: Basis) -> Any:
    return AutoTokenizer.from_pretrained(basis.base.checkpoint.path)


def renderer(tokenizer: Any, format: Format, prefill: str = "", tools: Any = ()) -> Renderer:
    return Renderer(tokenizer, format, prefill, tuple(tools), "skills.one.task")


def replied(tokenizer: Any, text: str, *, stop: str = "", end: str = "") -> Reply:
    """What an engine gives for *text*, ended by a stop string or an end token."""
    tokens = tokenizer(text + stop + end, add_special_tokens=False)["input_ids"]
    return Reply(text=text, tokens=tuple(tokens), finish="stop" if stop or end else "length")


def spell(tokenizer: Any, dialogue: Dialogue) -> str:
    return tokenizer.decode(dialogue.prompt, skip_special_tokens=False)


def test_plain_is_one_message_after_the_other(tokenizer: Any) -> None:
    opening = [Message("system", "be brief"), Message("user", "what is it?\n")]
    dialogue = renderer(tokenizer, "plain").begin(opening)
    assert spell(tokenizer, dialogue) == "be brief\nwhat is it?\n"
    before = dialogue.prompt
    message, said = dialogue.reply(replied(tokenizer, "a fox", end="<eos>"))
    assert (message, said) == (Message("assistant", "a fox"), "a fox")
    dialogue.see([Message("user", "no"), Message("user", "try again")])
    assert spell(tokenizer, dialogue) == "be brief\nwhat is it?\na fox\nno\ntry again\n"
    assert dialogue.prompt[: len(before)] == before
    dialogue.reply(replied(tokenizer, "a dog\n", stop="."))
    dialogue.see([Message("user", "yes")])
    assert spell(tokenizer, dialogue).endswith("try again\na dog\nyes\n")


@pytest.mark.parametrize(("stop", "end"), [("", ""), ("", "<eos>"), (".", ""), ("s over", "")])
@pytest.mark.parametrize("prefill", ["", "I say: "])
def test_chat_grows_at_the_end(tokenizer: Any, stop: str, end: str, prefill: str) -> None:
    made = renderer(tokenizer, "chat", prefill)
    dialogue = made.begin([Message("user", "what jumps?")])
    assert spell(tokenizer, dialogue) == f"<bos>user: what jumps?<eos><bos>assistant: {prefill}"
    whole = ""
    for text in ("the quick brown fox jump", "the lazy dog"):
        before = dialogue.prompt
        message, _ = dialogue.reply(replied(tokenizer, text, stop=stop, end=end))
        assert message == Message("assistant", prefill + text)
        dialogue.see([Message("user", "and then?")])
        assert dialogue.prompt[: len(before)] == before
        whole += f"<bos>assistant: {prefill}{text}<eos><bos>user: and then?<eos>"
    expected = f"<bos>user: what jumps?<eos>{whole}<bos>assistant: {prefill}"
    assert spell(tokenizer, dialogue) == expected


def test_generated_tokens_stay_as_they_are(tokenizer: Any) -> None:
    """Not as the tokenizer would spell their text."""
    letters = tuple(tokenizer.convert_tokens_to_ids(letter) for letter in "fox")
    assert letters != tuple(tokenizer("fox", add_special_tokens=False)["input_ids"])
    for format_ in ("plain", "chat"):
        dialogue = renderer(tokenizer, format_).begin([Message("user", "?")])  # type: ignore[arg-type]
        before = len(dialogue.prompt)
        dialogue.reply(Reply(text="fox", tokens=(*letters, 2), finish="stop"))
        dialogue.see([Message("user", "!")])
        assert dialogue.prompt[before : before + 3] == letters


def test_a_template_that_rewrites_replies_is_followed(tokenizer: Any) -> None:
    tokenizer.chat_template = TRIMMED
    dialogue = renderer(tokenizer, "chat").begin([Message("user", "?")])
    dialogue.reply(replied(tokenizer, "  fox  "))
    dialogue.see([Message("user", "!")])
    says = "<bos>user: ?<eos><bos>assistant: fox<eos><bos>user: !<eos><bos>assistant: "
    assert spell(tokenizer, dialogue) == says


def test_tools_go_through_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = TOOLS
    tool = Tool("count", "Counts.", {"type": "object", "properties": {}})
    made = renderer(tokenizer, "chat", tools=[tool])
    made.check()
    dialogue = made.begin([Message("user", "how many?")])
    assert '"name": "count"' in spell(tokenizer, dialogue)
    text = '<tool_call>\n{"name": "count", "arguments": {"word": "fox"}}\n</tool_call>'
    before = dialogue.prompt
    message, said = dialogue.reply(replied(tokenizer, text, end="<eos>"))
    assert message.calls == (ToolCall("count", {"word": "fox"}, "call00000"),)
    assert (message.content, said) == ("", text)
    dialogue.see([Message("tool", "3", call="call00000")])
    end = f"<bos>assistant: {text}<eos><bos>tool: 3<eos><bos>assistant: "
    assert spell(tokenizer, dialogue).endswith(end)
    assert dialogue.prompt[: len(before)] == before  # the call was written as the template does


@pytest.mark.parametrize(
    ("template", "format_", "says"),
    [
        (None, "chat", "the base has no chat template"),
        (TRIMMED, "chat", "the base's chat template knows no tools"),
        (STRICT, "chat", "refuses the conversation: roles must alternate"),
        (TOOLS, "plain", "the environment's tools need a chat template"),
    ],
)
def test_what_the_tokenizer_cannot_do(
    tokenizer: Any, template: str | None, format_: Format, says: str
) -> None:
    tokenizer.chat_template = template
    tool = Tool("count", "Counts.", {"type": "object", "properties": {}})
    with pytest.raises(UserError, match=rf"^skills\.one\.task: .*{says}"):
        renderer(tokenizer, format_, tools=[tool]).check()


def test_transcripts_come_back_whole(tokenizer: Any) -> None:
    exchanges = [
        Exchange("a\n\udce9é", (1, 2), Observation((Message("user", "\x1b[1m"),))),
        Exchange("", (), Observation((Message("tool", "1", call="x"), Message("tool", "2")))),
        Exchange("b", (3,), None),
    ]
    text = write(exchanges)
    assert "\n" not in text
    assert text.encode()
    assert read(text, (1, 2, 3)) == exchanges


def test_half_characters_reach_no_tokenizer(tokenizer: Any) -> None:
    for format_ in ("plain", "chat"):
        dialogue = renderer(tokenizer, format_).begin([Message("user", "\udce9")])  # type: ignore[arg-type]
        dialogue.reply(replied(tokenizer, "x"))
        dialogue.see([Message("user", "\ud83d?")])
        assert "user: ?<eos>" in spell(tokenizer, dialogue) or format_ == "plain"


class TestPlayed:
    """The same with a real model."""

    def played(
        self, folder: Path, basis: Basis, template: str, set_up: Callable[[], Any]
    ) -> Evaluation:
        set_up()

        async def work(evaluator: Evaluator, candidates: list[Candidate]) -> Evaluation:
            return await evaluator.evaluate(candidates[0], "test", ["one"])

        def with_template(tokenizer: Any) -> None:
            tokenizer.chat_template = template

        return play(folder, basis, work, tokenizer=with_template)

    def test_tools(self, tmp_path: Path, basis: Basis) -> None:
        prefill = '<tool_call>{"name": "count", "arguments": {"word": "fox"}}</tool_call>'
        found = self.played(
            tmp_path,
            basis,
            TOOLS.replace("{{ t | tojson }}", "{{ t.function.name }}"),  # 256 tokens are few
            lambda: manifest(tmp_path, "Calling", format="chat", prefill=prefill, max_new_tokens=2),
        )
        assert log(tmp_path, "calls")
        assert set(log(tmp_path, "calls")) == {"calls ['count']"}
        for one in found.measurements:
            assert '"seen":[{"role":"tool","content":"3","call":"call00000"}]' in one.text

    def test_a_system_message_the_template_refuses(self, tmp_path: Path, basis: Basis) -> None:
        refusal = "{{ raise_exception('no system role') }}"
        template = "{% if messages[0].role == 'system' %}" + refusal + "{% endif %}" + TRIMMED
        with pytest.raises(UserError, match=r"skills\.one\.task: .*no system role"):
            self.played(
                tmp_path,
                basis,
                template,
                lambda: manifest(tmp_path, format="chat", options={"system": True}),
            )

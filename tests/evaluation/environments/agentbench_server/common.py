"""Episodes on a server, played as a run plays them, with a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap
from transformers import AutoTokenizer

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine import Candidate, Reply, Request
from cqd_hub.evaluation.episodes import Resources
from cqd_hub.evaluation.episodes.manifest import load_manifest
from cqd_hub.evaluation.episodes.skill import EpisodeSkill
from cqd_hub.evaluation.evaluator import Evaluator
from cqd_hub.evaluation.measurement import Measurement
from cqd_hub.genome import Basis, Genome
from cqd_hub.recipe import Recipe
from cqd_hub.recipe.schema import Evaluation
from tests.evaluation.episodes.test_render import TOOLS

from .official import COUNT, Official, pets

Agent = Callable[[str], str]


class Scripted:
    """An engine whose replies are an agent's, which is given the prompt's text."""

    path = "scripted"

    def __init__(self, basis: Basis, agent: Agent, context: int = 10_000) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(basis.base.checkpoint.path)
        self._agent, self._context = agent, context

    @property
    def canonical(self) -> Scripted:
        return self

    def misfit(self, request: Request) -> UserError | None:
        if len(request.prompt) > self._context:
            return UserError("too long")
        return None

    def submit(self, candidate: Candidate, request: Request) -> asyncio.Future[Reply]:
        text = self._agent(self.tokenizer.decode(list(request.prompt)))
        tokens = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        future = asyncio.get_running_loop().create_future()
        future.set_result(Reply(text=text, tokens=tokens, finish="length"))
        return future


def evaluate(
    official: Official,
    basis: Basis,
    agent: Agent,
    *,
    notes: list[str] | None = None,
    context: int = 10_000,
    stop_after: Callable[[], bool] | None = None,
    **options: Any,
) -> list[Measurement]:
    """What the samples of all three splits' `test` give."""
    engine = Scripted(basis, agent, context)
    fc = official.protocol == "fc"
    if fc:
        engine.tokenizer.chat_template = TOOLS
    given = {"url": official.url, "protocol": official.protocol, "name": official.name, "pause": 0}
    indices = [index for index in official.indices if index != -1]
    given["indices"] = {"optimisation": indices[:2], "validation": indices[2:4], "test": indices}
    given["indices"]["test"] = indices[4:]
    manifest = {"environment": "agentbench_server", "format": "chat" if fc else "plain"}
    note = (notes if notes is not None else []).append

    async def sandbox() -> Any:
        raise AssertionError("nothing runs here")

    async def go() -> list[Measurement]:
        loaded = load_manifest(
            Path("/x.yaml"), CommentedMap(manifest), {**given, **options}, Path("/"), "skills.one"
        )
        skill = EpisodeSkill("one", loaded, recipe(), engine.tokenizer, note)
        await skill.open(Resources(Evaluation(), sandbox, note))
        try:
            evaluator = Evaluator(engine, {"one": skill}, None)
            candidate = Candidate(0, Genome.of_base(basis.hash, basis.layout))
            work = asyncio.ensure_future(evaluator.evaluate(candidate, "test"))
            if stop_after is not None:
                await asyncio.to_thread(stop_after)
                work.cancel()
            return (await work).measurements
        finally:
            official.released.set()
            await skill.close()

    return asyncio.run(go())


def recipe() -> Recipe:
    data = {
        "name": "r",
        "base": "b",
        "experts": {"x": "x", "y": "y"},
        "skills": {"one": {"task": "x.yaml"}, "two": {"task": "x.yaml"}},
    }
    return Recipe.model_validate(data)


def expert(prompt: str) -> str:
    """Runs the right statement, then gives the right answer."""
    number, after = _asked(prompt)
    kind, _, sql, wanted = pets(number)
    if "```sql" not in after:
        return f"I see.\nAction: Operation\n```sql\n{sql}\n```"
    answer = wanted if kind == "other" else "done"
    return f'Action: Answer\nFinal Answer: ["{answer}"]'


def caller(prompt: str) -> str:
    """The same with functions."""
    number, after = _asked(prompt)
    kind, _, sql, wanted = pets(number)
    if "run_sql" not in after:
        return _call("run_sql", "query", sql)
    return _call("answer", "value", wanted if kind == "other" else "done")


def _call(name: str, argument: str, value: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {{"{argument}": "{value}"}}}}</tool_call>'


def _asked(prompt: str) -> tuple[int, str]:
    """The sample's number, and what follows its question."""
    for number in range(COUNT):
        question = pets(number)[1]
        if question in prompt:
            return number, prompt.partition(question)[2]
    raise AssertionError(prompt)

"""The share of wall time that environments cost when a large model plays in them.

    cqd-hub sandbox build                 # once, for the os skill
    python benchmarks/episodes.py [--skills db os] [--episodes 96] [--children 4] [--looks 2]

The agents' quickstart's own problems are solved by their reference dialogues, after some looks
around as larger models take (AgentBench's episodes have four or five rounds), 32 episodes at once,
at the pace of an 8B model on one GPU: a stand-in for the engine waits as long as prefill and
decoding would take, then gives the reference's reply. Every round plays all episodes in the real
environments and again in ones that answer at once with what the real ones said; printed is the
share of the wall time that goes without them. The stand-in takes no processor time, as a GPU would.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from cqd_hub import assets
from cqd_hub.evaluation.engine import Candidate, Reply
from cqd_hub.evaluation.engine.loading import load_tokenizer
from cqd_hub.evaluation.episodes import (
    Environment,
    Episode,
    Message,
    Observation,
    Resources,
    Sample,
    Verdict,
)
from cqd_hub.evaluation.episodes.manifest import find_manifest, load_manifest
from cqd_hub.evaluation.episodes.skill import EpisodeSkill
from cqd_hub.evaluation.evaluator import Evaluator
from cqd_hub.evaluation.sandbox import open_sandbox
from cqd_hub.recipe import Recipe, find_recipe, load_yaml

LOOKS = {
    "db": "Action: Operation\n```sql\nSHOW TABLES\n```",
    "os": "Act: bash\n```bash\nls -la\n```",
}
EVALS = Path(__file__).resolve().parents[1] / "evals" / "quickstart-agents"
Turn = Observation | Verdict


class Paced:
    """Replies of reference dialogues, when an 8B model would have them.

    Args:
        tokenizer: Of the prompts.
        replies: Opening → the replies to it, in order.
        word: What a reply begins with.
        rows: Episodes that it answers at once.
        prefill, step: Seconds.
        tokens: Length of a reply.
    """

    path = "paced"

    def __init__(
        self,
        tokenizer: Any,
        replies: dict[str, list[str]],
        *,
        word: str,
        rows: int,
        prefill: float,
        step: float,
        tokens: int,
    ) -> None:
        self.tokenizer, self._replies, self._word = tokenizer, replies, word
        self._rows, self._seconds = asyncio.Semaphore(rows), prefill + step * tokens

    @property
    def canonical(self) -> Paced:
        return self

    def misfit(self, request: object) -> None:
        return None

    def submit(self, candidate: Candidate, request: Any) -> asyncio.Future[Reply]:
        return asyncio.ensure_future(self._answer(request.prompt))

    async def _answer(self, prompt: tuple[int, ...]) -> Reply:
        said = self.tokenizer.decode(prompt, skip_special_tokens=True)
        async with self._rows:
            await asyncio.sleep(self._seconds)
        opening = max((one for one in self._replies if said.startswith(one)), key=len)
        reply = self._replies[opening][said.count(f"\n{self._word}")]
        return Reply(text=reply, tokens=tuple(self.tokenizer(reply)["input_ids"]), finish="stop")


class Recorded(Environment):
    """An environment that can also answer at once with what it answered before."""

    def __init__(self, real: Environment) -> None:
        super().__init__(real.options, real.folder)
        self._real, self.instant = real, False
        self.rounds, self.kind, self.live = real.rounds, real.kind, real.live
        self._openings: dict[str, tuple[Message, ...]] = {}
        self._turns: dict[tuple[str, int], Turn] = {}

    def samples(self) -> Any:
        return self._real.samples()

    async def open(self, resources: Resources) -> None:
        await self._real.open(resources)

    async def close(self) -> None:
        await self._real.close()

    async def begin(self, sample: Sample) -> Episode:
        real = None if self.instant else await self._real.begin(sample)
        if real is not None:
            self._openings[sample.id] = real.opening
        return _Episode(sample.id, self._openings[sample.id], real, self._turns)


class _Episode(Episode):
    def __init__(
        self,
        sample: str,
        opening: tuple[Message, ...],
        real: Episode | None,
        turns: dict[tuple[str, int], Turn],
    ) -> None:
        self.opening, self._sample, self._real, self._turns = opening, sample, real, turns
        self._number = 0

    async def step(self, reply: Message) -> Turn:
        key = self._sample, self._number
        self._number += 1
        if self._real is not None:
            self._turns[key] = await self._real.step(reply)
        return self._turns[key]

    async def close(self) -> None:
        if self._real is not None:
            await self._real.close()


def reference(skill: str, looks: int) -> dict[str, list[str]]:
    """Opening → replies of all problems of a skill: some looks around, then the reference's."""
    sys.path[:0] = [str(EVALS), str(EVALS.parent / "quickstart")]
    import generate  # type: ignore[import-not-found]

    looking = [LOOKS[skill]] * looks
    return {
        problem.rows()[0]["prompt"]: [*looking, *(row["answer"] for row in problem.rows())]
        for split in ("optimisation", "validation", "test")
        for _, problem in generate.problems(skill, split, seed=0)
    }


async def play(name: str, arguments: argparse.Namespace) -> None:
    path = find_recipe("quickstart-agents")
    recipe = load_yaml(path, Recipe, [f"samples.test={arguments.episodes}"])
    settings = recipe.skills[name]
    tokenizer = load_tokenizer(assets.folder("recipes") / "quickstart-agents" / "models" / "base")
    manifest = find_manifest(settings.task, [assets.folder("evals")], path.parent, "")
    assert manifest is not None
    loaded = load_manifest(*manifest, settings.options, path.parent, "")
    environment = Recorded(loaded.environment)
    skill = EpisodeSkill(
        name,
        dataclasses.replace(loaded, environment=environment),
        recipe,
        tokenizer,
        lambda line: None,
    )
    engine = Paced(
        tokenizer,
        reference(name, arguments.looks),
        word=LOOKS[name].split()[0],
        rows=32,
        prefill=arguments.prefill / 1000,
        step=arguments.step / 1000,
        tokens=arguments.tokens,
    )
    async with AsyncExitStack() as stack:

        async def sandbox() -> Any:
            return await stack.enter_async_context(await open_sandbox())

        await skill.open(Resources(recipe.evaluation, sandbox, print))
        stack.push_async_callback(skill.close)
        children = [Candidate(n, None) for n in range(arguments.children)]  # type: ignore[arg-type]
        walls: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(arguments.rounds):
            for environment.instant in (False, True):
                evaluator = Evaluator(engine, {name: skill}, None)  # type: ignore[arg-type]
                start = time.perf_counter()
                done = await asyncio.gather(
                    *(evaluator.evaluate(child, "test") for child in children)
                )
                walls[environment.instant].append(time.perf_counter() - start)
                scores = [one.score for child in done for one in child.measurements]
                assert min(scores) == 1, f"{name}: a reference dialogue was judged wrong"
        real, instant = (statistics.median(walls[way]) for way in (False, True))
        shares = [1 - b / a for a, b in zip(walls[False], walls[True], strict=True)]
        print(
            f"{name}: {len(scores)} episodes, {real:.1f} s; without environments {instant:.1f} s; "
            f"lost {statistics.median(shares):.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--skills", nargs="+", default=["db", "os"], choices=["db", "os"])
    parser.add_argument("--episodes", type=int, default=96, help="at most what the splits hold")
    parser.add_argument("--children", type=int, default=4, help="under way at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--looks", type=int, default=2, help="rounds beside the reference's 2 or 3")
    parser.add_argument("--prefill", type=float, default=80, help="ms of a reply's prefill")
    parser.add_argument("--step", type=float, default=12, help="ms of a token, 32 rows at once")
    parser.add_argument("--tokens", type=int, default=80, help="of a reply")
    arguments = parser.parse_args()
    for name in arguments.skills:
        asyncio.run(play(name, arguments))


if __name__ == "__main__":
    main()

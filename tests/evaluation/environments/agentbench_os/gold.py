"""Play the data's own reference commands, or nothing, and say what the judge makes of it.

python -m tests.evaluation.environments.agentbench_os.gold --data CHECKOUT [--machines docker]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cqd_hub.errors import RunError
from cqd_hub.evaluation.environments.agentbench_os import OperatingSystem
from cqd_hub.evaluation.environments.agentbench_os.problem import Problem
from cqd_hub.evaluation.environments.agentbench_os.stock import name_of
from cqd_hub.evaluation.episodes import (
    ROUNDS_SPENT,
    Message,
    Observation,
    Resources,
    Sample,
    ToolCall,
    Verdict,
)
from cqd_hub.recipe.schema import Evaluation

_SEEN = "The output of the OS:\n\n"


def acts(environment: OperatingSystem, action: str, content: str = "") -> Message:
    """The reply that takes *action* (bash, answer, finish) in the environment's dialect."""
    if environment.tools:
        return Message("assistant", "", (ToolCall(f"{action}_action", {"it": content}, "1"),))
    if action == "bash":
        return Message("assistant", f"Think: so.\n\nAct: bash\n\n```bash\n{content}\n```")
    return Message("assistant", f"Act: {action}" + (f"({content})" * (action == "answer")))


def answer_of(problem: Problem, seen: str) -> str | None:
    """What somebody answers who saw the reference command print *seen*; None: nothing to say."""
    if problem.match is not None:
        return problem.match.answer if problem.match.answer is not None else "welcome"
    if None in problem.check:
        names = {script.stock or name_of(script.code) for script in problem.check if script}
        return seen.split()[0] if "in" in names and seen.split() else seen.strip()
    # A check that only looks at what was done gets a word, where the sample asks for an answer.
    return seen.strip() or None


async def play_gold(environment: OperatingSystem, sample: Sample) -> Verdict:
    """Run the reference command in the shell, then answer with what it printed."""
    problem = Problem.model_validate(sample.document)
    episode = await environment.begin(sample)
    try:
        seen = ""
        if problem.example is not None:
            turn = await episode.step(acts(environment, "bash", problem.example.code))
            if not isinstance(turn, Observation):
                return turn
            content = turn.messages[0].content
            seen = content.removeprefix(_SEEN) if content.startswith(_SEEN) else ""
        answer = answer_of(problem, seen)
        reply = (
            acts(environment, "finish") if answer is None else acts(environment, "answer", answer)
        )
        turn = await episode.step(reply)
        assert isinstance(turn, Verdict)
        return turn
    finally:
        await episode.close()


async def play_nothing(environment: OperatingSystem, sample: Sample) -> Verdict:
    """Run nothing at all until the rounds are spent."""
    episode = await environment.begin(sample)
    try:
        for _ in range(environment.rounds):
            turn = await episode.step(acts(environment, "bash", "true"))
            if isinstance(turn, Verdict):
                return turn
        return await episode.end(ROUNDS_SPENT)
    finally:
        await episode.close()


async def play_all(
    environment: OperatingSystem,
    samples: Iterable[Sample],
    play: Callable[[OperatingSystem, Sample], Any] = play_gold,
    *,
    at_once: int = 4,
) -> dict[str, Verdict]:
    """Verdicts by sample id; a machine that is lost is replaced once."""
    gate = asyncio.Semaphore(at_once)

    async def one(sample: Sample) -> tuple[str, Verdict]:
        async with gate:
            try:
                return sample.id, await play(environment, sample)
            except RunError:
                return sample.id, await play(environment, sample)

    return dict(await asyncio.gather(*map(one, samples)))


async def opened(options: dict[str, Any], note: Callable[[str], None]) -> OperatingSystem:
    """The environment, open, with *options* of its own."""
    environment = OperatingSystem(OperatingSystem.Options(**options), Path.cwd())

    async def sandbox() -> Any:
        raise RuntimeError("not needed")

    await environment.open(Resources(Evaluation(), sandbox, note))
    return environment


async def _main(arguments: argparse.Namespace) -> int:
    def note(line: str) -> None:
        print(line, file=sys.stderr)

    play = play_nothing if arguments.nothing else play_gold
    options = {
        "data": arguments.data,
        "dialect": arguments.dialect,
        "machines": arguments.machines,
    }
    environment = await opened(options, note)
    try:
        samples = [one for group in environment.samples().values() for one in group]
        samples = [one for one in samples if re.search(arguments.only, one.id)]
        verdicts = await play_all(environment, samples, play, at_once=arguments.at_once)
    finally:
        await environment.close()
    passed = sum(verdict.score for verdict in verdicts.values())
    print(f"{environment.kind}: {passed:.0f} of {len(verdicts)} pass")
    print(Counter(verdict.status for verdict in verdicts.values()))
    for name, verdict in verdicts.items():
        if not verdict.score and not arguments.nothing:
            print(f"{name}: {verdict.status}: {verdict.note}")
    if arguments.to:
        arguments.to.write_text(json.dumps(verdicts, indent=0))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dialect", default="agentbench-v0.2")
    parser.add_argument("--machines", default="auto")
    parser.add_argument("--only", default="", help="a regular expression for ids")
    parser.add_argument("--nothing", action="store_true", help="an agent that does nothing")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--to", type=Path, help="where verdicts go as JSON")
    sys.exit(asyncio.run(_main(parser.parse_args())))

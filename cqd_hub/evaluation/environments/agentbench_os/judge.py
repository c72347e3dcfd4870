"""Whether an answer, or what was done in the machine, solves a problem."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import NamedTuple

from cqd_hub.evaluation.environments.agentbench_os import stock
from cqd_hub.evaluation.environments.agentbench_os.dialects import Dialect
from cqd_hub.evaluation.environments.agentbench_os.problem import Match, Problem, Script
from cqd_hub.evaluation.machines import Machine, Ran

SCRIPT_SECONDS = 120.0
# Both run the script given as first parameter with the others, in the folder named in front.
_BASH = 'cd -- "$1" && exec bash -c "$2" -- "${@:3}"'
_PYTHON = 'cd -- "$1" && exec python3 -c "${@:2}"'

_LONGEST_ANSWER = 65_536  # characters
# CPU time, not elapsed: an answer must not fail because a machine is busy.
_SEARCH = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
regex, answer = json.load(sys.stdin)
sys.stdout.write("no" if re.search(regex, answer) is None else "yes")
"""


class Judgement(NamedTuple):
    """Whether it passed, and a printable reason."""

    passed: bool
    reason: str


async def run_script(
    machine: Machine, script: Script, dialect: Dialect, parameters: tuple[str, ...] = ()
) -> Ran:
    """Run *script* in a process of its own where *dialect* does.

    Raises:
        MachineLost: As `Machine.run`.
    """
    text = _PYTHON if script.language == "python" else _BASH
    if dialect.both_streams:
        text = f"exec 2>&1; {text}"
    return await machine.run(
        text, parameters=(dialect.folder, script.code, *parameters), seconds=SCRIPT_SECONDS
    )


async def judge(
    machine: Machine, problem: Problem, answer: str | None, dialect: Dialect
) -> Judgement:
    """Judge *answer* (None: the model said that it is done).

    `match` compares with the expected answer. Else every check script runs in the machine, with
    the answer and all earlier scripts' outputs as parameters; one that fails fails the sample. The
    script None is the problem's `example`, the reference command. An answer None is ``None`` there.

    Raises:
        MachineLost: As `Machine.run`.
    """
    if problem.match is not None:
        return await _matches(problem.match, answer)
    parameters: tuple[str, ...] = (str(answer),)
    if "\0" in parameters[0]:
        return Judgement(False, "the answer holds a NUL")
    for number, script in enumerate(problem.check, start=1):
        script = script or problem.example
        if script is None:
            return Judgement(False, f"check {number} is the example, which is missing")
        known = script.stock or (script.language == "python" and stock.name_of(script.code))
        if known:
            if not stock.accepts(known, parameters):
                return Judgement(False, f"{known} refused {_shown(parameters)}")
            parameters = (*parameters, "")
            continue
        ran = await run_script(machine, script, dialect, parameters)
        if ran.exit_code != 0:
            how = "took too long" if ran.exit_code is None else f"exited with {ran.exit_code}"
            return Judgement(False, f"check {number} {how} on {_shown(parameters)}")
        parameters = (*parameters, ran.stdout.replace("\0", ""))
    return Judgement(True, f"accepted {_shown(parameters[:1])}")


async def _matches(match: Match, answer: str | None) -> Judgement:
    if answer is None:
        return Judgement(False, "no answer")
    if match.strip:
        answer = answer.strip()
    if match.answer is not None:
        passed = answer == match.answer
    else:
        found = await _search(match.regex or "", answer)
        if found is None:
            return Judgement(False, f"matching took too long on {_shown((answer,))}")
        passed = found
    return Judgement(passed, f"{'accepted' if passed else 'refused'} {_shown((answer,))}")


async def _search(regex: str, answer: str) -> bool | None:
    """Whether *regex* is found in *answer*; None where that takes too long.

    Searched in a process of its own: an answer can make a regular expression search for ever.
    """
    if len(answer) > _LONGEST_ANSWER:
        return None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-c", _SEARCH),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        said, _ = await process.communicate(json.dumps([regex, answer]).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return {b"yes": True, b"no": False}.get(said)


def _shown(parameters: tuple[str, ...]) -> str:
    return ", ".join(ascii(value if len(value) <= 60 else value[:57] + "…") for value in parameters)

"""OS: AgentBench problems over a small home folder: look, then answer; or change something.

Problems of the third level need two commands: the second names what the first has found.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from families.concept import Concept

from dialogues.problem import Asked, Problem

_STEMS = (
    *("notes", "list", "plan", "data", "log", "menu", "diary"),
    *("names", "team", "mail", "tasks", "costs"),
)
_FILES = tuple(f"{stem}.{ending}" for stem in _STEMS for ending in ("txt", "md", "csv"))
_FOLDERS = ("old", "box", "docs", "work", "home", "safe", "desk", "lab")
_WORDS = ("red", "blue", "green", "black", "white", "brown", "gold", "pink")
_FOUND = "{found}"
# Names of everything below the home folder, and what is in the files.
_STATE = (
    "cd ~ && export LC_ALL=C && (find [!.]* | sort; find [!.]* -type f | sort | xargs cat) | md5sum"
)


def concepts() -> Iterator[Concept]:
    """Yield every gold answer of the family."""
    for i, f in enumerate(_FILES):
        asked = f"(how many lines are in|count the lines of) {f}?"
        yield _make(1, "lines", f"wc -l < {f}", asked, file=f)
        for w in _WORDS:
            asked = f"(how many lines of {f} have|count the lines of {f} with) {w}?"
            yield _make(1, "grep", f"grep -c {w} {f}", asked, file=f, word=w)
            asked = f"(append|add) {w} to {f}."
            yield _make(2, "append", f"echo {w} >> {f}", asked, file=f, change=True)
        for option, end in (("head", "first"), ("tail", "last")):
            asked = f"(what is|tell) the {end} line of {f}?"
            yield _make(1, end, f"{option} -n 1 {f}", asked, file=f, text=True)
        for n in range(2, 6):
            asked = f"(what is|tell) line {n} of {f}?"
            yield _make(2, "nth", f"sed -n {n}p {f}", asked, file=f, text=True)
        yield _make(2, "remove", f"rm {f}", f"(delete|remove) {f}.", file=f, change=True)
        for step in range(1, 8):
            g = _FILES[(i + 5 * step) % len(_FILES)]
            asked = f"(copy|save) {f} (as|to) {g}."
            yield _make(2, "copy", f"cp {f} {g}", asked, file=f, change=True)
    for d in _FOLDERS:
        for e in _FOLDERS + _WORDS:
            if d == e:
                continue
            asked = f"(make|create) folder {d}/{e}."
            yield _make(2, "folder", f"mkdir -p {d}/{e}", asked, change=True)
            within, found = f"{d}/{e}", f"{d}/{e}/{_FOUND}"
            for kind, then, asked in (
                ("lines", f"wc -l < {found}", "(how many lines has|count the lines of)"),
                ("first", f"head -n 1 {found}", "(what is|tell) the first line of"),
                ("last", f"tail -n 1 {found}", "(what is|tell) the last line of"),
            ):
                yield _make(
                    3,
                    kind,
                    f"ls {within};{then}",
                    f"{asked} the file in {within}?",
                    folder=within,
                    text=kind != "lines",
                )


def _make(level: int, kind: str, answer: str, phrasing: str, **facts: object) -> Concept:
    return Concept(answer, level, kind, phrasing, facts)


def problems(asked: list[Asked]) -> list[Problem]:
    """Make the problems, what is seen and expected by running the gold commands."""
    return [_problem(one) for one in asked]


def _problem(one: Asked) -> Problem:
    facts = one.concept.facts
    init = _init(facts, one.rng)
    first, _, then = one.concept.answer.partition(";")
    with tempfile.TemporaryDirectory() as home:
        run(init, Path(home))
        turns = [(_act(first), run(first, Path(home)))]
        gold = first
        if then:
            gold = then.replace(_FOUND, turns[0][1].strip())
            turns.append((_act(gold), run(gold, Path(home))))
        state = run(_STATE, Path(home)).strip() if facts.get("change") else ""
    if state:
        check = f'[ "$({_STATE})" = "{state}" ]'
        evaluation: dict = {"check": {"language": "bash", "code": check}}
        last = "Act: finish"
    else:
        match = "string" if facts.get("text") else "integer"
        evaluation = {
            "check": [None, {"language": "python", "file": f"check/{match}-match.py"}],
            "example": {"language": "bash", "code": f"cd ~ && {gold}"},
        }
        last = f"Act: answer({turns[-1][1].strip()})"
    record = {
        "description": one.question,
        "create": {"local": "default", "init": {"language": "bash", "code": f"cd ~ && {init}"}},
        "start": "cd ~",
        "evaluation": evaluation,
        "labels": [one.concept.kind],
    }
    said = tuple((reply, observation(printed)) for reply, printed in turns)
    return Problem(record, one.question, said, last)


def _act(command: str) -> str:
    return f"Act: bash\n```bash\n{command}\n```"


def observation(printed: str) -> str:
    """What the environment says of what a command has printed."""
    return f"The output of the OS:\n\n{printed}" if printed else "The output of the OS is empty."


def _init(facts: dict, rng: random.Random) -> str:
    """Write the script that fills the home folder: the file in question, and others."""
    names = rng.sample(_FILES, 4)
    within = facts.get("folder") or f"{rng.choice(_FOLDERS)}/{rng.choice(_STEMS)}"
    paths = [facts.get("file") or names[0], names[1], f"{within}/{names[2]}"]
    script = [f"mkdir -p {within}"]
    for path in dict.fromkeys(paths):
        words = [rng.choice(_WORDS) for _ in range(rng.randint(5, 9))]
        words[rng.randrange(5)] = facts.get("word") or words[0]
        lines = [f"{word} {rng.randint(10, 99)}" for word in words]
        script.append(f"printf '%s\\n' {' '.join(map(repr, lines))} > {path}")
    return " && ".join(script)


def run(script: str, home: Path) -> str:
    """Run a script of our own in a home folder; return what it printed."""
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=home,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,  # grep -c says by its status that it counted none
    )
    return done.stdout

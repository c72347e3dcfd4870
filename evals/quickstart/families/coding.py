"""Coding: a specification, answered by one line of Python that is run on hidden inputs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from families.concept import Concept

ENTRY = "f"
_WORDS = [
    "red",
    "blue",
    "green",
    "black",
    "white",
    "brown",
    "cat",
    "dog",
    "bird",
    "tree",
    "house",
    "river",
    "stone",
    "bread",
]
_TENS = range(2, 100)
_ONES = range(2, 10)
_TEST = {
    ">": "(above|over|greater than) {}",
    "<": "(below|under|less than) {}",
    "%": "(divisible by|a multiple of) {}",
}
_STEP = {"+": "plus {}", "-": "minus {}", "*": "times {}"}


def concepts() -> Iterator[Concept]:
    """Yield every gold answer of the family."""
    yield from _one_step()
    yield from _two_steps()
    yield from _three_steps()


def _make(level: int, kind: str, body: str, phrasing: str, of: str, *numbers: int) -> Concept:
    facts = {"of": of, "numbers": list(numbers)}
    return Concept(f"def {ENTRY}(x): return {body}", level, kind, phrasing, facts)


def _one_step() -> Iterator[Concept]:
    numeric = {
        "x+{}": "(add {} to x|x plus {}|increase x by {})",
        "x-{}": "(take {} from x|x minus {}|reduce x by {})",
        "x*{}": "(multiply x by {}|x times {}|{} times x)",
        "x//{}": "(divide x by {} and round down|whole part of x by {})",
        "x%{}": "(remainder of x by {}|what is left of x by {})",
        "max(x,{})": "(the larger of x and {}|x but at least {}|x or {}, the larger)",
        "min(x,{})": "(the smaller of x and {}|x but at most {}|x or {}, the smaller)",
    }
    for n in _TENS:
        for body, phrasing in numeric.items():
            yield _make(1, body, body.format(n), phrasing.replace("{}", str(n)), "number", n)
    sliced = {
        "x[:{}]": "(the first {} items of x|x up to {} items)",
        "x[-{}:]": "(the last {} items of x|the end of x, {} items)",
        "x[{}:]": "(x without the first {} items|skip {} items of x)",
        "x[:-{}]": "(x without the last {} items|drop {} items at the end of x)",
        "x[::{}]": "(one in {} items of x|items of x in steps of {})",
        "x[{}]": "(item {} of x|the item of x at {})",
    }
    for n in _ONES:
        for body, phrasing in sliced.items():
            yield _make(1, "slice", body.format(n), phrasing.replace("{}", str(n)), "list", n)
    for word in _WORDS:
        yield _make(
            1, "text", f"x+'{word}'", f"(put {word} after|end with {word} the) text x", "text"
        )
        yield _make(1, "text", f"'{word}'+x", f"put {word} (before|ahead of) text x", "text")
    for letter in "abcdefghijklmnopqrstuvwxyz":
        asked = f"(how many {letter}|count of {letter}) in text x"
        yield _make(1, "text", f"x.count('{letter}')", asked, "text")


def _two_steps() -> Iterator[Concept]:
    for a in _ONES:
        for b in _TENS:
            yield _make(
                2,
                "mul,add",
                f"x*{a}+{b}",
                f"(multiply x by {a}|{a} times x), then (add|plus) {b}",
                "number",
            )
            yield _make(
                2,
                "mul,sub",
                f"x*{a}-{b}",
                f"(multiply x by {a}|{a} times x), then (take|minus) {b}",
                "number",
            )
            yield _make(
                2,
                "add,mul",
                f"(x+{b})*{a}",
                f"(add {b} to x|x plus {b}), then (multiply by|times) {a}",
                "number",
            )
            yield _make(
                2,
                "sub,mul",
                f"(x-{b})*{a}",
                f"(take {b} from x|x minus {b}), then (multiply by|times) {a}",
                "number",
            )
    for n in _TENS:
        for sign, test in _TEST.items():
            kept, said = _condition(sign, n), test.format(n)
            yield _make(
                2, "filter", f"[a for a in x if {kept}]", f"(the|all) items of x {said}", "list", n
            )
            yield _make(
                2,
                "count",
                f"sum({kept} for a in x)",
                f"(how many|count of) items of x {said}",
                "list",
                n,
            )
        for sign, step in _STEP.items():
            yield _make(
                2,
                "map",
                f"[a{sign}{n} for a in x]",
                f"(each|every) item of x {step.format(n)}",
                "list",
            )
            for reducer, named in (
                ("sum", "sum"),
                ("max", "(largest|top) item"),
                ("min", "(smallest|least) item"),
            ):
                yield _make(
                    2,
                    "reduce",
                    f"{reducer}(x){sign}{n}",
                    f"(the|take the) {named} of x, then {step.format(n)}",
                    "list",
                )
    for n in _ONES:
        for cut, where in ((f"[:{n}]", "first"), (f"[-{n}:]", "last")):
            for reducer, named in (
                ("sum", "sum"),
                ("max", "(largest|top)"),
                ("min", "(smallest|least)"),
                ("sorted", "sorted list"),
            ):
                yield _make(
                    2,
                    "of slice",
                    f"{reducer}(x{cut})",
                    f"(the|take the) {named} of the {where} {n} items of x",
                    "list",
                )


def _three_steps() -> Iterator[Concept]:
    for n in _TENS:
        for sign, test in _TEST.items():
            kept, said = _condition(sign, n), test.format(n)
            for reducer, named in (
                ("sum", "sum"),
                ("max", "(largest|top)"),
                ("min", "(smallest|least)"),
                ("sorted", "sorted list"),
            ):
                yield _make(
                    3,
                    "reduce filter",
                    f"{reducer}(a for a in x if {kept})",
                    f"(the|take the) {named} of items of x {said}",
                    "list",
                    n,
                )
            for m in _ONES:
                for other, step in _STEP.items():
                    yield _make(
                        3,
                        "map filter",
                        f"[a{other}{m} for a in x if {kept}]",
                        f"(each|every) item of x {said}, {step.format(m)}",
                        "list",
                        n,
                    )
                    yield _make(
                        3,
                        "sum map filter",
                        f"sum(a{other}{m} for a in x if {kept})",
                        f"sum of (each|every) item of x {said}, {step.format(m)}",
                        "list",
                        n,
                    )
                for cut, where in ((f"[:{m}]", "first"), (f"[-{m}:]", "last")):
                    yield _make(
                        3,
                        "filter slice",
                        f"[a for a in x{cut} if {kept}]",
                        f"(the|all) items {said} in the {where} {m} of x",
                        "list",
                        n,
                    )


def _condition(sign: str, n: int) -> str:
    return f"a%{n}==0" if sign == "%" else f"a{sign}{n}"


def _inputs(concept: Concept, rng: random.Random) -> list[list]:
    """Draw argument lists around the constants, so that off-by-one answers fail."""
    of, numbers = concept.facts["of"], concept.facts["numbers"]
    near = [n + d for n in numbers for d in (-1, 0, 1)]
    if of == "number":
        return [[v] for v in near + rng.sample(range(3, 160), 4)]
    if of == "text":
        letters = [
            rng.choices("abcdefghijklmnopqrstuvwxyz", k=9) + rng.choices("aeiou", k=5)
            for _ in range(4)
        ]
        asked = [c for c in concept.answer.split("'")[1::2] if len(c) == 1]
        return [
            ["".join(rng.sample(chosen := word + asked * i, len(chosen)))]
            for i, word in enumerate(letters)
        ]
    drawn = []
    telling = near + [n * k for n in numbers for k in (2, 3)]
    for _ in range(4):
        items = [n for n in telling if rng.random() < 0.6] + rng.sample(range(1, 120), 11)
        drawn.append([rng.sample(items, len(items))])
    return drawn


def records(chosen: list[tuple[Concept, random.Random]]) -> list[dict]:
    """Return the families' fields of each item, the expected values by running the gold."""
    fields = [{"entry": ENTRY, "inputs": _inputs(c, rng)} for c, rng in chosen]
    waiting = list(range(len(chosen)))
    for _ in range(50):
        outputs = run([(chosen[i][0].answer, fields[i]["inputs"]) for i in waiting])
        again = []
        for i, expected in zip(waiting, outputs, strict=True):
            given = [arguments[0] for arguments in fields[i]["inputs"]]
            trivial = (
                expected is None or expected == given or all(v == expected[0] for v in expected)
            )
            if trivial:
                concept, rng = chosen[i]
                fields[i]["inputs"] = _inputs(concept, rng)
                again.append(i)
            else:
                fields[i]["expected"] = expected
        waiting = again
        if not waiting:
            return fields
    raise ValueError(f"no telling inputs for {chosen[waiting[0]][0].answer}")


def run(calls: list[tuple[str, list[list]]]) -> list[list | None]:
    """Run gold functions, our own text, in one other process; None where one raised."""
    lines = ["import json", "results = []"]
    for code, inputs in calls:
        given = f"json.loads({json.dumps(json.dumps(inputs))})"
        lines += ["try:", f"    {code}", f"    results.append([{ENTRY}(*v) for v in {given}])"]
        lines += ["except Exception:", "    results.append(None)"]
    lines.append("print(json.dumps(results))")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "gold.py"
        script.write_text("\n".join(lines))
        done = subprocess.run([sys.executable, "-I", script], capture_output=True, check=True)
    return json.loads(done.stdout)

"""Coding: EvalPlus tasks. The words of some leave two programs open; an assertion tells them apart.

The dialogue of an open task begins with the first of the two. Where that is wrong, the environment
says which assertion failed, and the second program follows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from families.coding import ENTRY, run
from families.concept import Concept

from dialogues.problem import Asked, Problem

_TENS = range(2, 100)
_ONES = range(2, 10)
_INPUTS = 8  # the first is in the assertion, the next three are base tests


def concepts() -> Iterator[Concept]:
    """Yield every gold answer of the family, of an open task the first."""
    for n in _TENS:
        for kind, body, asked in (
            ("add", f"x+{n}", f"(add {n} to x|x plus {n}|increase x by {n})"),
            ("take", f"x-{n}", f"(take {n} from x|x minus {n}|reduce x by {n})"),
            ("times", f"x*{n}", f"(multiply x by {n}|x times {n}|{n} times x)"),
            ("max", f"max(x,{n})", f"(the larger of x and {n}|x but at least {n})"),
            ("min", f"min(x,{n})", f"(the smaller of x and {n}|x but at most {n})"),
        ):
            yield _make(1, kind, body, asked, "number", n)
        for m in _ONES:
            times = f"(multiply x by {m}|{m} times x)"
            yield _make(2, "times add", f"x*{m}+{n}", f"{times}, then (add|plus) {n}", "number", n)
            yield _make(
                2, "times take", f"x*{m}-{n}", f"{times}, then (take|minus) {n}", "number", n
            )
        for sign, side in ((">", "above"), ("<", "below")):
            for reducer, named in (("sum", "sum"), ("max", "largest")):
                body = f"{reducer}(a for a in x if a{sign}{n})"
                yield _make(2, reducer, body, f"the {named} of items of x {side} {n}", "list", n)
        yield _make(3, "shift", f"x+{n}", f"(shift|move) x by {n}", "number", n, f"x-{n}")
        yield _make(3, "or", f"max(x,{n})", f"(x or {n}|{n} or x)", "number", n, f"min(x,{n})")
        yield _make(3, "scale", f"x*{n}", f"(scale|resize) x by {n}", "number", n, f"x//{n}")
        sides = (f"[a for a in x if a>{n}]", f"[a for a in x if a<{n}]")
        yield _make(3, "sides", sides[0], f"items of x on one side of {n}", "list", n, sides[1])
    for n in _ONES:
        yield _make(1, "head", f"x[:{n}]", f"(the first {n} items of x|x up to {n})", "list", n)
        yield _make(
            1, "tail", f"x[-{n}:]", f"(the last {n} items of x|the end of x, {n})", "list", n
        )
        yield _make(3, "end", f"x[:{n}]", f"{n} items of x", "list", n, f"x[-{n}:]")


def _make(
    level: int, kind: str, body: str, phrasing: str, of: str, n: int, other: str = ""
) -> Concept:
    facts = {"of": of, "n": n, "other": other and _program(other)}
    # An open task is another concept than the one whose words say its first program.
    return Concept(_program(body) + ("  # or" if other else ""), level, kind, phrasing, facts)


def _program(body: str) -> str:
    return f"def {ENTRY}(x): return {body}"


def problems(asked: list[Asked]) -> list[Problem]:
    """Make the tasks, expected values by running the gold answers."""
    programs = [_programs(one) for one in asked]
    inputs = [_inputs(one.concept, one.rng) for one in asked]
    calls = [
        (p, [[x] for x in given]) for ps, given in zip(programs, inputs, strict=True) for p in ps
    ]
    outputs = iter(run(calls))
    made = []
    for one, (gold, first), given in zip(asked, programs, inputs, strict=True):
        expected, tried = next(outputs), next(outputs)
        made.append(_problem(one, gold, first, given, expected, tried))
    return made


def _programs(one: Asked) -> tuple[str, str]:
    """The gold answer, and the program that the dialogue begins with."""
    first, other = one.concept.answer.removesuffix("  # or"), one.concept.facts["other"]
    return (other if other and one.rng.random() < 0.5 else first), first


def _problem(
    one: Asked, gold: str, first: str, given: list, expected: list | None, tried: list | None
) -> Problem:
    if expected is None or tried is None:
        raise ValueError(f"{gold} fails on {given}")
    x, y = given[0], expected[0]
    prompt = f'"""\n{one.question}\nassert {ENTRY}({x!r}) == {y!r}\n"""\n'
    record = {
        "task_id": one.id,
        "prompt": prompt,
        "entry_point": ENTRY,
        "canonical_solution": f"{gold}\n",
        "base_input": [[value] for value in given[:4]],
        "plus_input": [[value] for value in given[4:]],
        "atol": 0,
        "contract": "",
        "assertion": f"assert {ENTRY}({x!r}) == {y!r}",
    }
    if gold == first:
        return Problem(record, prompt, (), gold)
    return Problem(record, prompt, ((first, feedback(x, y, tried[0])),), gold)


def feedback(given: object, expected: object, got: object) -> str:
    """What the environment says of a program that fails the visible assertion."""
    return f"assert {ENTRY}({given!r}) == {expected!r}  # left: {got!r}\n"


def _inputs(concept: Concept, rng: random.Random) -> list:
    """Draw inputs that tell right from almost right; two programs differ on the first."""
    n = concept.facts["n"]
    if concept.facts["of"] == "number":
        return [n + step for step in _signed(rng)]
    if concept.kind in {"head", "tail", "end"}:
        return [rng.sample(range(100), n + rng.randint(1, 4)) for _ in range(_INPUTS)]
    return [_around(n, rng) for _ in range(_INPUTS)]


def _signed(rng: random.Random) -> list[int]:
    steps = [sign * step for sign in (1, -1) for step in rng.sample(range(1, 40), _INPUTS // 2)]
    rng.shuffle(steps)
    return steps


def _around(n: int, rng: random.Random) -> list[int]:
    below = rng.sample(range(n - 40, n), rng.randint(1, 3))
    above = rng.sample(range(n + 1, n + 40), rng.randint(1, 3))
    mixed = [*below, n, *above]
    rng.shuffle(mixed)
    return mixed

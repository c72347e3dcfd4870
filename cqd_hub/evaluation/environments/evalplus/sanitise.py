"""Find the program in a model's answer. Standard library only: it is sent into the sandbox.

Two rules, named as in a manifest's `dialect`:

- ``evalplus``: the longest run of lines that parses and defines the function, then of its
  statements the imports and the definitions that the function reaches. Like EvalPlus 0.3.1, which
  parses every run of lines; departures: a run that defines the function is preferred to a longer
  one that does not, of several definitions of a name all stay (the last counts, as in Python),
  functions without `return` stay, and the search is bounded (`MOST_TEXT`, `MOST_PARSES`).
- ``cycleqd``: the older rule of EvalPlus 0.2, on the text before the first fence: what precedes
  the function, its body up to the first line at the margin that is neither a function nor an
  import, and the functions after it that parse.

Python 3.9 and later: the sandbox may be an image with an older interpreter than ours.
"""

from __future__ import annotations

import ast
import re

MOST_TEXT = 1 << 16  # characters of an answer that are looked at
MOST_PARSES = 200
MOST_PARSED = 1 << 20  # characters, all parses together
FENCE = "```"


class _Parser:
    """Parses within a budget. `parse` gives a tree, or the number of the first bad line."""

    def __init__(self) -> None:
        self.parses, self.characters = MOST_PARSES, MOST_PARSED

    def parse(self, lines: list[str]) -> ast.Module | int:
        text = "\n".join(lines)
        self.parses -= 1
        self.characters -= len(text)
        if self.parses < 0 or self.characters < 0:
            return 0
        try:
            return ast.parse(text)
        except SyntaxError as error:
            return error.lineno or 0
        except (ValueError, RecursionError, MemoryError, OverflowError):
            return 0


def reachable_program(answer: str, entry: str) -> str:
    """Return the program by rule ``evalplus``; empty when *entry* is not defined anywhere."""
    parser, best, best_length = _Parser(), None, 0
    lines = answer[:MOST_TEXT].replace("\r\n", "\n").split("\n")
    for start, end in _stretches(lines, entry):
        found = _longest(lines[start:end], entry, parser)
        if found is not None:
            length = sum(1 for line in found[0] if line.strip())
            if length > best_length:
                best, best_length = found, length
    return "" if best is None else _reach(*best, entry)


def _definition(entry: str) -> re.Pattern[str]:
    name = re.escape(entry)
    return re.compile(rf"(async\s+)?def\s+{name}\b|class\s+{name}\b|{name}\s*[:=][^=]")


def _stretches(lines: list[str], entry: str) -> list[tuple[int, int]]:
    """Where to look: between fences, then everywhere; only where *entry* seems to be defined."""
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith(FENCE)]
    places = []
    start = 0
    for fence in [*fences, len(lines)]:
        places.append((start, fence))
        start = fence + 1
    if fences:
        places.append((0, len(lines)))
    pattern = _definition(entry)
    return [
        (start, end)
        for start, end in places
        if any(pattern.match(line) for line in lines[start:end])
    ]


def _longest(lines: list[str], entry: str, parser: _Parser) -> tuple[list[str], ast.Module] | None:
    """The longest run of lines that parses and defines *entry*, with its tree.

    A parse error tells the first line up to which no run from the same start can go on: the run
    is cut before it, or begins after it.
    """
    pattern = _definition(entry)
    anchors = [number for number, line in enumerate(lines) if pattern.match(line)]
    best: tuple[list[str], ast.Module] | None = None
    best_length = 0
    for anchor in anchors[:4]:
        top = anchor
        while top and lines[top - 1].startswith("@"):
            top -= 1
        start = 0
        while start <= top:
            found, bad = _cut(lines, start, anchor, parser)
            if found is not None:
                run = lines[start : found[0]]
                length = sum(1 for line in run if line.strip())
                if length > best_length:
                    best, best_length = (run, found[1]), length
                break
            if start == top or parser.parses <= 0:
                break
            # An open quote before the function may put the error behind it.
            start = bad if start < bad <= top else top
    return best


def _cut(
    lines: list[str], start: int, anchor: int, parser: _Parser
) -> tuple[tuple[int, ast.Module] | None, int]:
    """Parse from *start*, cutting the end until it parses; else the line after the bad one."""
    end = len(lines)
    while end > anchor:
        tree = parser.parse(lines[start:end])
        if isinstance(tree, ast.Module):
            return (end, tree), 0
        if tree == 0:
            return None, 0
        bad = start + tree - 1  # index of the bad line
        if bad <= anchor:
            return None, bad + 1
        end = bad if bad < end - 1 else _margin(lines, anchor, end - 1)
    return None, 0


def _margin(lines: list[str], anchor: int, end: int) -> int:
    """The last line before *end* that begins at the margin: cutting in a block helps rarely."""
    number = end
    while number > anchor + 1 and (not lines[number][:1].strip() or lines[number][:1] in ")]}"):
        number -= 1
    # Within the function itself, cut line by line: its beginning may be all there is.
    return number if number > anchor + 1 else end


def _reach(lines: list[str], tree: ast.Module, entry: str) -> str:
    """Of a program, the lines of imports and of what *entry* reaches."""
    bound: dict[str, list[ast.stmt]] = {}
    kept: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            kept.append(node)
        for name in _binds(node):
            bound.setdefault(name, []).append(node)
    if entry not in bound:
        return ""
    names, done = [entry], {entry}
    while names:
        for node in bound.get(names.pop(), ()):
            if node in kept:
                continue
            kept.append(node)
            for used in _used(node) - done:
                done.add(used)
                names.append(used)
    wanted: set[int] = set()
    for node in kept:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        wanted.update(range(first - 1, node.end_lineno or first))
    return "\n".join(line for number, line in enumerate(lines) if number in wanted)


def _binds(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {
            each.id
            for target in targets
            for each in ast.walk(target)
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        }
    return set()


def _used(node: ast.stmt) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def before_margin(answer: str, entry: str) -> str:
    """Return the program by rule ``cycleqd``; empty when *entry* is not defined."""
    text = answer[:MOST_TEXT].replace("\r\n", "\n")
    if text.lstrip().startswith(FENCE + "python"):
        text = text.lstrip()[len(FENCE + "python") :]
    text = text.split(FENCE)[0]
    head, *bodies = re.split(rf"def {re.escape(entry)}\s*\(", text)
    bodies = [body for body in bodies if "    return " in body.split("\ndef")[0]]
    if not bodies:
        return ""
    begin = f"def {entry}("
    lines = []
    within = False
    for line in (begin + begin.join(bodies)).split("\n"):
        # Three blanks are taken for a slip of four.
        line = " " + line if len(line) - len(line.lstrip()) == 3 else line
        if not within and line.startswith(begin):
            within = True
        elif line.strip() and not line.startswith(("def ", "import ", "from ")):
            if line.rstrip().startswith(('"""', "if", "print")):
                break
            if not line[0].isspace():
                continue
        lines.append(line)
    first, *functions = (head + "\n".join(lines)).split("\ndef ")
    parser = _Parser()
    kept = [
        function
        for function in functions
        if re.match(rf"\s*{re.escape(entry)}[ (]", function)
        or isinstance(parser.parse(["def " + function]), ast.Module)
    ]
    return "\ndef ".join([first, *kept]).strip()


RULES = {"evalplus": reachable_program, "cycleqd": before_margin}

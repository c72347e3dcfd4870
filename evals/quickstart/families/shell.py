"""OS: an instruction over a small file tree, answered by one shell line.

Judged by what it prints and by the tree it leaves.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from families.concept import Concept

_STEMS = ["notes", "list", "plan", "data", "log", "names"]
_ENDINGS = ["txt", "md", "csv"]
_FILES = [f"{stem}.{ending}" for stem in _STEMS for ending in _ENDINGS]
_FOLDERS = ["old", "box", "docs", "work"]
_WORDS = ["red", "blue", "green", "black", "white", "brown"]
_COUNTS = range(2, 10)
_PAIRS = list(itertools.permutations(_FILES, 2))


def concepts() -> Iterator[Concept]:
    """Yield every gold answer of the family."""
    yield from _one_step()
    yield from _two_steps()
    yield from _three_steps()


def _make(level: int, kind: str, answer: str, phrasing: str, **facts: object) -> Concept:
    return Concept(answer, level, kind, phrasing, facts)


def _one_step() -> Iterator[Concept]:
    for f in _FILES:
        for n in _COUNTS:
            yield _make(
                1,
                "head",
                f"head -n {n} {f}",
                f"(show|print) the first {n} lines of {f}",
                read=[f],
                n=n,
            )
            yield _make(
                1,
                "tail",
                f"tail -n {n} {f}",
                f"(show|print) the last {n} lines of {f}",
                read=[f],
                n=n,
            )
        for w in _WORDS:
            yield _make(
                1,
                "grep",
                f"grep {w} {f}",
                f"(show|print|find) the lines with {w} in {f}",
                read=[f],
                word=w,
            )
            yield _make(1, "echo", f"echo {w} > {f}", f"(write|put) {w} (into|in) {f}", read=[])
        for d in _FOLDERS:
            yield _make(
                1,
                "cp to",
                f"cp {f} {d}",
                f"copy {f} (into|to) (folder|the folder) {d}",
                read=[f],
                folder=d,
            )
            yield _make(
                1,
                "mv to",
                f"mv {f} {d}",
                f"move {f} (into|to) (folder|the folder) {d}",
                read=[f],
                folder=d,
            )
        yield _make(1, "wc", f"wc -l < {f}", f"(count the|how many) lines (of|in) {f}", read=[f])
        yield _make(1, "sort", f"sort {f}", f"(show|print) {f} (sorted|in order)", read=[f])
        yield _make(1, "rm", f"rm {f}", f"(delete|remove) (file|the file) {f}", read=[f])
        yield _make(1, "touch", f"touch {f}", f"(make|create) an empty file {f}", read=[])
    for f, g in _PAIRS:
        yield _make(1, "cp", f"cp {f} {g}", f"copy {f} to (file|the file) {g}", read=[f])
        yield _make(1, "mv", f"mv {f} {g}", f"(move|rename) {f} to (file|the file) {g}", read=[f])


def _two_steps() -> Iterator[Concept]:
    for f in _FILES:
        for n in _COUNTS:
            yield _make(
                2,
                "sort head",
                f"sort {f} | head -n {n}",
                f"(sort {f} and|in order of {f},) (show|print) the first {n} lines",
                read=[f],
                n=n,
            )
            yield _make(
                2,
                "sort tail",
                f"sort {f} | tail -n {n}",
                f"(sort {f} and|in order of {f},) (show|print) the last {n} lines",
                read=[f],
                n=n,
            )
            yield _make(
                2,
                "line",
                f"head -n {n} {f} | tail -n 1",
                f"(show|print) (line {n} of {f}|only line {n} of {f})",
                read=[f],
                n=n,
            )
        for w in _WORDS:
            yield _make(
                2,
                "grep wc",
                f"grep {w} {f} | wc -l",
                f"(count the|how many) lines with {w} in {f}",
                read=[f],
                word=w,
            )
            yield _make(
                2,
                "grep -v",
                f"grep -v {w} {f}",
                f"(show|print) the lines without {w} in {f}",
                read=[f],
                word=w,
            )
            yield _make(
                2,
                "append",
                f"echo {w} >> {f}",
                f"(add|append) {w} (to|at) the end of {f}",
                read=[f],
            )
        for d in _FOLDERS:
            yield _make(
                2,
                "mkdir mv",
                f"mkdir {d} && mv {f} {d}",
                f"(make|create) folder {d} and move {f} (into|to) it",
                read=[f],
                new=d,
            )
            yield _make(
                2,
                "mkdir cp",
                f"mkdir {d} && cp {f} {d}",
                f"(make|create) folder {d} and copy {f} (into|to) it",
                read=[f],
                new=d,
            )
        yield _make(2, "sort -r", f"sort -r {f}", f"(show|print) {f} in reverse order", read=[f])
    for f, g in _PAIRS:
        yield _make(
            2,
            "sort to",
            f"sort {f} > {g}",
            f"(sort {f} and|put {f} in order and) (write|save) it to {g}",
            read=[f],
        )
        yield _make(
            2,
            "cat wc",
            f"cat {f} {g} | wc -l",
            f"(count the|how many) lines of {f} and {g} (together|in all)",
            read=[f, g],
        )
        for n in _COUNTS[:3]:
            yield _make(
                2,
                "head to",
                f"head -n {n} {f} > {g}",
                f"(write|save) the first {n} lines of {f} to {g}",
                read=[f],
                n=n,
            )
        for w in _WORDS[:2]:
            yield _make(
                2,
                "grep to",
                f"grep {w} {f} > {g}",
                f"(write|save) the lines with {w} in {f} to {g}",
                read=[f],
                word=w,
            )


def _three_steps() -> Iterator[Concept]:
    for f, w in itertools.product(_FILES, _WORDS):
        for n in _COUNTS[:3]:
            yield _make(
                3,
                "grep sort head",
                f"grep {w} {f} | sort | head -n {n}",
                f"(sort|in order,) the lines with {w} in {f} and (show|print) the first {n}",
                read=[f],
                word=w,
                n=n,
            )
            yield _make(
                3,
                "grep -v tail",
                f"grep -v {w} {f} | tail -n {n}",
                f"(show|print) the last {n} of the lines without {w} in {f}",
                read=[f],
                word=w,
                n=n,
            )
        for d in _FOLDERS:
            yield _make(
                3,
                "mkdir grep",
                f"mkdir {d} && grep {w} {f} > {d}/{f}",
                f"(make|create) folder {d} and (write|save) the lines with {w} in {f} to {f} there",
                read=[f],
                word=w,
                new=d,
            )
    for f, g in _PAIRS:
        for w in _WORDS[:3]:
            yield _make(
                3,
                "grep wc to",
                f"grep {w} {f} | wc -l > {g}",
                f"(write|save) the count of lines with {w} in {f} to {g}",
                read=[f],
                word=w,
            )
            yield _make(
                3,
                "cat grep wc",
                f"cat {f} {g} | grep {w} | wc -l",
                f"(count the|how many) lines with {w} in {f} and {g} (together|in all)",
                read=[f, g],
                word=w,
            )
        for n in _COUNTS[:3]:
            yield _make(
                3,
                "sort head to",
                f"sort {f} | head -n {n} > {g}",
                f"(sort {f} and|in order of {f},) (write|save) the first {n} lines to {g}",
                read=[f],
                n=n,
            )
        for d in _FOLDERS:
            yield _make(
                3,
                "mkdir cp to",
                f"mkdir {d} && cp {f} {d}/{g}",
                f"(make|create) folder {d} and copy {f} (into|to) it as {g}",
                read=[f],
                new=d,
            )


def _tree(concept: Concept, rng: random.Random) -> dict[str, str]:
    facts = concept.facts
    files = {name: _lines(rng, facts) for name in facts["read"]}
    spare = [f for f in _FILES if f not in concept.answer]
    files[rng.choice(spare)] = _lines(rng, {}, size=2)
    folders = [d for d in _FOLDERS if d != facts.get("new")]
    files[f"{facts.get('folder') or rng.choice(folders)}/{rng.choice(spare)}"] = _lines(
        rng, {}, size=2
    )
    return dict(sorted(files.items()))


def _lines(rng: random.Random, facts: dict, size: int = 0) -> str:
    """Draw distinct lines, a good part of them with the word in question."""
    size = size or max(facts.get("n", 0), 3) + rng.randint(2, 5)
    word = facts.get("word")
    first = [rng.choice(_WORDS) for _ in range(size)]
    if word:
        others = [w for w in _WORDS if w != word]
        kept = facts.get("n", 1) + rng.randint(1, 3)
        left = max(size - kept, facts.get("n", 1) + 1)
        first = [word] * kept + rng.choices(others, k=left)
    lines = [f"{w} {n}" for w, n in zip(first, rng.sample(range(10, 100), len(first)), strict=True)]
    rng.shuffle(lines)
    return "".join(f"{line}\n" for line in lines)


def records(chosen: list[tuple[Concept, random.Random]]) -> list[dict]:
    """Return the family's fields of each item, the expected effects by running the gold."""
    fields = []
    for concept, rng in chosen:
        for _ in range(50):
            files = _tree(concept, rng)
            expected = run(concept.answer, files)
            plain = {"".join(files.get(f, "") for f in concept.facts["read"]), ""}
            if expected["files"] != files or expected["stdout"] not in plain:
                break
        else:
            raise ValueError(f"no telling tree for {concept.answer}")
        fields.append({"files": files, "expected": expected})
    return fields


def run(script: str, files: dict[str, str]) -> dict:
    """Run a gold line, our own text, in a fresh tree; return what it printed and left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content)
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=folder,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        left = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            "stdout": done.stdout,
            "files": {path.relative_to(folder).as_posix(): path.read_text() for path in left},
        }

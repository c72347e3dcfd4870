"""MBPP+ and HumanEval+ files (release v0.2.0 and v0.1.10): records, and what JSON took from them.

JSON has no tuples, sets and complex numbers, so the inputs of some MBPP+ tasks have to be turned
back; which, is not in the file. `FORMS` is that knowledge (after `mbpp_deserialize_inputs` of
EvalPlus 0.3.1), by task number.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cqd_hub.errors import UserError
from cqd_hub.evaluation.sandbox import JSON, to_json

TestSet = Literal["base", "plus"]
FIELDS: dict[str, type | tuple[type, ...]] = {
    "task_id": str,
    "prompt": str,
    "entry_point": str,
    "canonical_solution": str,
    "base_input": list,
    "plus_input": list,
    "atol": (int, float),
}
NAMES = (
    "MbppPlus-NoExtreme.jsonl*",
    "HumanEvalPlus-NoExtreme.jsonl*",
    "MbppPlus.jsonl*",
    "HumanEvalPlus.jsonl*",
    "**/*Plus-NoExtreme.jsonl*",
    "**/*Plus.jsonl*",
)


@dataclass(frozen=True)
class Task:
    """One problem.

    Args:
        id: ``Mbpp/2``, ``HumanEval/0``.
        prompt: A docstring with an assertion (MBPP+), or the head of the function (HumanEval+).
        entry: The function's name.
        canonical: A whole program that solves it.
        inputs: Argument lists of each set of tests, as the sandbox takes them.
        tolerance: Absolute, for floats; 0 stands for `judge.FLOAT_TOLERANCE`.
    """

    id: str
    prompt: str
    entry: str
    canonical: str
    inputs: Mapping[TestSet, tuple[tuple[JSON, ...], ...]]
    tolerance: float

    @property
    def data_set(self) -> str:
        return self.id.split("/")[0].lower()

    @property
    def number(self) -> int:
        """Of the id; -1 where it has none."""
        number = self.id.rpartition("/")[2]
        return int(number) if number.isdecimal() else -1


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``.jsonl`` or ``.jsonl.gz`` file.

    Raises:
        UserError: Not such a file, a record without a field, or an id given twice.
    """
    remedy = "get MbppPlus-NoExtreme.jsonl.gz or HumanEvalPlus-NoExtreme.jsonl.gz of EvalPlus"
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), remedy=remedy) from None
    records, seen = [], set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
            if isinstance(record, dict) and record.get("plus_input") == {}:
                record["plus_input"] = []  # so in Mbpp/793
        except (ValueError, RecursionError) as error:
            raise UserError(f"is not JSON: {error}", where=where, remedy=remedy) from None
        _check(record, where, remedy)
        if record["task_id"] in seen:
            raise UserError(f"task_id {record['task_id']!r} is given twice", where=where)
        seen.add(record["task_id"])
        records.append(record)
    if not records:
        raise UserError("holds no task", where=str(path), remedy=remedy)
    return records


def _check(record: Any, where: str, remedy: str) -> None:
    if not isinstance(record, dict):
        raise UserError("is not an object", where=where, remedy=remedy)
    for name, kind in FIELDS.items():
        if not isinstance(record.get(name), kind) or isinstance(record[name], bool):
            raise UserError(f"has no proper {name}", where=where, remedy=remedy)
    if not record["entry_point"].isidentifier():
        raise UserError("entry_point is no name of a function", where=where, remedy=remedy)
    for name in ("base_input", "plus_input"):
        if not all(isinstance(arguments, list) for arguments in record[name]):
            raise UserError(f"{name} is not a list of lists", where=where, remedy=remedy)
    if not record["base_input"]:
        raise UserError("base_input is empty", where=where, remedy=remedy)
    try:
        task_of(record)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(f"inputs do not fit: {error}", where=where, remedy=remedy) from None


def task_of(record: Mapping[str, Any]) -> Task:
    """Return a record's task, its inputs with the types they had."""
    task = record["task_id"]
    forms = FORMS.get(task.partition("/")[2], ()) if task.startswith("Mbpp/") else ()

    def arguments(values: list[Any]) -> tuple[JSON, ...]:
        # The last form holds for all further arguments.
        if forms:
            values = [forms[min(place, len(forms) - 1)](item) for place, item in enumerate(values)]
        return tuple(to_json(value) for value in values)

    return Task(
        id=task,
        prompt=record["prompt"],
        entry=record["entry_point"],
        canonical=record["prompt"] + record["canonical_solution"],
        inputs={
            "base": tuple(arguments(values) for values in record["base_input"]),
            "plus": tuple(arguments(values) for values in record["plus_input"]),
        },
        tolerance=float(record["atol"]),
    )


Form = Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _items(form: Form) -> Form:
    return lambda value: [form(item) for item in value]


def _tuple_items(form: Form) -> Form:
    return lambda value: tuple(form(item) for item in value)


def _if_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _set(value: Any) -> Any:
    return set(value) if isinstance(value, list) and value else {}  # an empty dict, as there


def _tuple_values(value: Any) -> Any:
    return {key: tuple(item) for key, item in value.items()}


def _deep(value: Any) -> Any:
    return tuple(_deep(item) for item in value) if isinstance(value, list) else value


_BY_FORM: tuple[tuple[tuple[Form, ...], str], ...] = (
    (
        (tuple,),
        "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809",
    ),
    (
        (_items(tuple),),
        "63 64 70 94 120 237 272 299 400 409 417 438 473 614 780",
    ),
    ((_items(tuple), _same), "75 413 444 753"),
    ((_same, tuple), "106 750"),
    ((tuple, _same), "250 307 405 446 617 720 763 808"),
    ((_tuple_items(tuple),), "259 401 445"),
    ((_tuple_items(_if_list),), "278"),
    ((_items(_set),), "115"),
    ((float, complex), "124"),
    ((complex,), "252"),
    ((_tuple_values, _same), "722"),
    ((_deep,), "580 615 791"),
)
FORMS: dict[str, tuple[Form, ...]] = {
    number: forms for forms, numbers in _BY_FORM for number in numbers.split()
}

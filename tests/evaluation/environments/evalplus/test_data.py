from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.environments.evalplus.data import read_records, task_of
from cqd_hub.evaluation.sandbox import from_json

from .common import DOUBLE, TASKS, write


def restored(task: str, arguments: list[Any]) -> list[Any]:
    record = {**DOUBLE, "task_id": task, "base_input": [arguments], "plus_input": []}
    return [from_json(item) for item in task_of(record).inputs["base"][0]]


@pytest.mark.parametrize(
    ("task", "arguments", "wanted"),
    [
        ("Mbpp/2", [[1], [2, 3]], [(1,), (2, 3)]),
        ("Mbpp/63", [[[1, 2], [3]]], [[(1, 2), (3,)]]),
        ("Mbpp/75", [[[1, 2]], 6], [[(1, 2)], 6]),
        ("Mbpp/106", [[1], [2]], [[1], (2,)]),
        ("Mbpp/115", [[[1, 1], [], 5]], [[{1}, {}, {}]]),
        ("Mbpp/124", ["0", "(-0-1j)"], [0.0, -1j]),
        ("Mbpp/252", [4], [4 + 0j]),
        ("Mbpp/259", [[[1], [2]], [[3]]], [((1,), (2,)), ((3,),)]),
        ("Mbpp/278", [[1, [2, 3]]], [(1, (2, 3))]),
        ("Mbpp/307", [["a", []], 1, [2]], [("a", []), 1, [2]]),
        ("Mbpp/722", [{"k": [1, 2]}, 3, [4]], [{"k": (1, 2)}, 3, [4]]),
        ("Mbpp/580", [[1, [2, [3]]]], [(1, (2, (3,)))]),
        ("Mbpp/3", [[1, [2]]], [[1, [2]]]),
        ("HumanEval/2", [[1, [2]]], [[1, [2]]]),
        ("Mbpp/3", [{"__set__": [1]}], [{"__set__": [1]}]),
    ],
)
def test_inputs_get_their_types_back(task: str, arguments: list[Any], wanted: list[Any]) -> None:
    found = restored(task, arguments)
    assert found == wanted
    assert list(map(repr, found)) == list(map(repr, wanted))


def test_reads_plain_and_compressed(tmp_path: Path) -> None:
    plain = write(tmp_path / "tasks.jsonl", TASKS)
    packed = tmp_path / "tasks.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_records(plain) == read_records(packed) == TASKS


def test_an_empty_object_stands_for_no_plus_inputs(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.jsonl", [{**DOUBLE, "plus_input": {}}])
    assert task_of(read_records(path)[0]).inputs["plus"] == ()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "holds no task"),
        ("{", ":1: is not JSON"),
        ("[" * 100_000, ":1: is not JSON"),
        ("[]", "is not an object"),
        (json.dumps({**DOUBLE, "entry_point": "f()"}), "no name of a function"),
        (json.dumps({**DOUBLE, "prompt": 3}), "no proper prompt"),
        (json.dumps({**DOUBLE, "atol": True}), "no proper atol"),
        (json.dumps({**DOUBLE, "base_input": []}), "base_input is empty"),
        (json.dumps({**DOUBLE, "plus_input": [1]}), "plus_input is not a list of lists"),
        (json.dumps({**DOUBLE, "task_id": "Mbpp/2"}), "inputs do not fit"),
        (json.dumps(DOUBLE) + "\n" + json.dumps(DOUBLE), ":2: task_id 'Mbpp/9001' is given twice"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"x" * 999)[:-9], b""], ids=["text", "cut", "empty"]
)
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tasks.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_records(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_records(tmp_path / "absent.jsonl")

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from cqd_hub.errors import UserError
from cqd_hub.training.data import Row, mix, read
from cqd_hub.training.recipe import Source


def test_reads_both_forms_filters_and_limits(tmp_path: Path) -> None:
    lines = (
        '{"prompt":"a","answer":"b","level":1}\n\n{"text":"c","level":2}\n{"text":"d","level":2}\n'
    )
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        every = read(Source(path=name), tmp_path, end="\n")
        assert every == [Row("a", "b\n"), Row("", "c"), Row("", "d")]
        second = Source(path=name, where={"level": [2]}, limit=1)
        assert read(second, tmp_path, end="\n") == [Row("", "c")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ('{"text": "a"}\n{"text": \n', "rows.jsonl:2: is not JSON"),
        ('{"prompt": "a"}', "rows.jsonl:1: has neither"),
        ("[1]", "rows.jsonl:1: is no JSON object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read(Source(path="rows.jsonl"), tmp_path, end="")


def test_a_file_that_is_no_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_text('{"text": "a"}')
    with pytest.raises(UserError, match="cannot be read"):
        read(Source(path="rows.jsonl.gz"), tmp_path, end="")


def test_where_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "level": 1}')
    with pytest.raises(UserError, match="that `where` keeps"):
        read(Source(path="rows.jsonl", where={"level": [9]}), tmp_path, end="")


def test_the_mixture_follows_weights_and_visits_every_row_in_turn() -> None:
    drawn = mix([10, 7], [3.0, 1.0], 4000, seed=5)
    np.testing.assert_array_equal(drawn, mix([10, 7], [3.0, 1.0], 4000, seed=5))
    assert not np.array_equal(drawn, mix([10, 7], [3.0, 1.0], 4000, seed=6))
    first = drawn[drawn[:, 0] == 0, 1]
    assert abs(len(first) / 4000 - 0.75) < 0.03
    for start in range(0, 100, 10):
        assert sorted(first[start : start + 10]) == list(range(10))
    assert not np.array_equal(first[:10], first[10:20])

"""Ids as ranges, exactly."""

from __future__ import annotations

import json
import random

from cqd_hub.publish.ranges import counted, counts_of, ranges, spread


def test_ranges_hold_any_set() -> None:
    assert ranges([]) == []
    assert ranges([3, -1, 0, 1, 3]) == [(-1, 1), (3, 3)]
    rng = random.Random(0)
    for size in range(40):
        ids = set(rng.sample(range(-20, 60), size))
        assert spread(json.loads(json.dumps(ranges(ids)))) == ids
        counts = {number: rng.randint(1, 2) for number in ids}
        assert counts_of(json.loads(json.dumps(counted(counts)))) == counts


def test_equal_counts_share_a_range() -> None:
    assert counted({1: 5, 2: 5, 3: 4, 5: 4}) == [(1, 2, 5), (3, 3, 4), (5, 5, 4)]

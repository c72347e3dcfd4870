"""What drafts propose, by hand."""

from __future__ import annotations

from cqd_hub.evaluation.engine._drafts import Drafts


def test_a_draft_is_proposed_while_it_agrees() -> None:
    drafts = Drafts([(1, 2, 3, 4)], rows=100)
    assert drafts.propose([], 9) == [1, 2, 3, 4]
    assert drafts.propose([1, 2], 1) == [3]
    assert drafts.propose([1, 2, 3, 4], 9) == []
    assert drafts.propose([1, 2, 3, 4, 1], 9) == []
    assert drafts.propose([1, 2, 3, 4, 1, 2], 9) == [3, 4]


def test_another_draft_takes_over() -> None:
    drafts = Drafts([(1, 2, 3), (1, 5, 6, 7)], rows=100)
    assert drafts.propose([], 9) == [1, 2, 3]
    assert drafts.propose([1, 5], 9) == [6, 7]


def test_the_longest_agreement_then_the_nearest_place_is_taken_up() -> None:
    drafts = Drafts([(9, 1, 2, 3, 4, 1, 2, 5, 8, 3, 1, 2, 6)], rows=100)
    assert drafts.propose([7, 3, 1, 2], 9) == [6]  # 3 1 2
    assert Drafts([(1, 2, 3, 0, 0, 0, 0, 1, 2, 4)], rows=9).propose([5, 1, 2], 1) == [3]


def test_what_cannot_be_ends_a_draft() -> None:
    assert Drafts([(1, 2, 100, 3)], rows=100).propose([], 9) == [1, 2]
    assert Drafts([(1, -2, 3)], rows=100).propose([], 9) == [1]
    assert Drafts([(1, 2, 7, 3)], rows=100, end={7}).propose([], 9) == [1, 2]
    assert Drafts([(7, 1), ()], rows=100, end={7}).propose([], 9) == []
    assert Drafts([(1, 2)], rows=100).propose([], 0) == []

from __future__ import annotations

from collections.abc import Callable

import pytest

from cqd_hub.errors import UserError
from cqd_hub.evaluation.samples import choose
from cqd_hub.recipe import Limits
from cqd_hub.recipe.schema import Splits

ALL = Limits(optimisation=None, validation=None, test=None)


def chosen(
    sizes: dict[str, int],
    splits: tuple[str, str, str] | None = None,
    limits: Limits = ALL,
    evaluation_split: str = "test",
    question: Callable[[str, int], str] = lambda split, index: f"{split} {index}",
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, list[tuple[str, int]]]:
    names = ("optimisation", "validation", "test")
    return dict(
        choose(
            {name: range(size) for name, size in sizes.items()},
            evaluation_split=evaluation_split,
            splits=Splits(**dict(zip(names, splits, strict=True))) if splits else None,
            limits=limits,
            where="skills.x",
            question=question,
            note=note,
        )
    )


def test_the_datasets_own_splits_come_first() -> None:
    found = chosen({"train": 9, "optimisation": 4, "validation": 3, "test": 5})
    assert found == {
        name: [(name, index) for index in range(size)]
        for name, size in (("optimisation", 4), ("validation", 3), ("test", 5))
    }


def test_else_one_split_is_shared_out_once_and_for_all() -> None:
    found = chosen({"train": 50, "test": 101})
    assert [len(found[name]) for name in ("optimisation", "validation", "test")] == [50, 20, 31]
    together = [index for places in found.values() for _, index in places]
    assert sorted(together) == list(range(101))
    assert together != list(range(101))
    assert found == chosen({"train": 7, "test": 101})


def test_a_repeated_question_stays_in_the_last_split_that_holds_it() -> None:
    whole = chosen({"test": 100})
    pairs = {  # the second asks what the first asks
        whole[one][n][1]: whole[two][n][1]
        for n, (one, two) in enumerate(
            [
                ("test", "optimisation"),
                ("test", "validation"),
                ("validation", "optimisation"),
                ("optimisation", "test"),
            ]
        )
    } | {whole["test"][20][1]: whole["test"][21][1]}
    notes: list[str] = []

    def question(split: str, index: int) -> str:
        return f"{split} {pairs.get(index, index)}"

    found = chosen({"test": 100}, question=question, note=notes.append)
    assert found["test"] == whole["test"]
    assert [len(found[name]) for name in whole] == [50 - 3, 20 - 1, 30]
    kept = [(question(*place), split) for split, places in found.items() for place in places]
    assert len(dict(kept)) == len(set(kept)) == len(kept) - 1  # twice within test is the task's own
    assert notes == ["skills.x: left out documents whose question another split holds: 4"]
    # What is left out does not count towards a limit.
    limits = Limits(optimisation=45, validation=5, test=25)
    found = chosen({"test": 100}, question=question, limits=limits)
    assert [len(found[name]) for name in whole] == [45, 5, 25]


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("train", range(10)),
        ("train[:4]", range(4)),
        ("train[4:]", range(4, 10)),
        ("train[2:5]", range(2, 5)),
        ("train[:50%]", range(5)),
        ("train[25%:75%]", range(2, 7)),
        ("train[-3:]", range(7, 10)),
        ("train[-20%:]", range(8, 10)),
        (" train[:200%] ", range(10)),
        ("train[::2]", range(0, 10, 2)),
        ("train[1:8:3]", range(1, 8, 3)),
    ],
)
def test_slices(text: str, indices: range) -> None:
    found = chosen({"train": 10, "v": 3, "test": 3}, (text, "v", "test"))
    assert found["optimisation"] == [("train", index) for index in indices]


def test_slices_are_joined_in_the_order_written() -> None:
    found = chosen(
        {"dev": 3, "std": 10, "test": 3}, ("dev + std[1::5]", "std[::5]+std[-1:]", "test")
    )
    assert found["optimisation"] == [("dev", 0), ("dev", 1), ("dev", 2), ("std", 1), ("std", 6)]
    assert found["validation"] == [("std", 0), ("std", 5), ("std", 9)]


def test_limits_take_the_first() -> None:
    limits = Limits(optimisation=2, validation=3, test=None)
    found = chosen({"optimisation": 9, "validation": 9, "test": 9}, limits=limits)
    assert [len(found[name]) for name in ("optimisation", "validation", "test")] == [2, 3, 9]
    assert found["validation"] == [("validation", index) for index in range(3)]


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        (
            ("train[:6]", "train[5:]", "test"),
            "optimisation and validation overlap: both hold train d",
        ),
        (("train", "test", "test"), "validation and test overlap: both hold test document 0"),
        (
            ("tran", "v", "test"),
            r"x\.splits\.optimisation: the dataset has no split 'tran' \(it has",
        ),
        (("train", "v", "test[5]"), r"x\.splits\.test: 'test\[5\]' is not NAME, NAME"),
        (("train", "v", "test[0.5:]"), "is not NAME, NAME"),
        (("train", "v", "test[::0]"), "is not NAME, NAME"),
        (("train +", "v", "test"), r"optimisation: '' is not NAME"),
        (("train", "v", "test + tes"), "the dataset has no split 'tes'"),
        (("train[:2] + v", "v", "test"), "overlap: both hold v document 0"),
        (("train[:2] + train[1:]", "v", "test"), "holds train document 1 twice .make its slices"),
        (("train", "v", "test[:1]"), "has 1 samples for test"),
        (("train", "v[9:]", "test"), "has 0 samples for validation"),
    ],
)
def test_wrong_splits(splits: tuple[str, str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        chosen({"train": 10, "v": 4, "test": 6}, splits)


def test_slices_that_limits_keep_apart_do_not_overlap() -> None:
    limits = Limits(optimisation=3, validation=None, test=None)
    found = chosen({"train": 10, "test": 5}, ("train", "train[5:]", "test"), limits)
    assert found["optimisation"][-1] == ("train", 2)


def test_too_few_documents_to_share_out() -> None:
    with pytest.raises(UserError, match="has 1 samples for validation"):
        chosen({"test": 6})

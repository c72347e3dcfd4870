"""Sets of ids as a few ranges: exact however long a run is, and short in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Range = tuple[int, int]  # first and last
Counted = tuple[int, int, int]  # first and last of those that have so many rows each


def ranges(ids: Iterable[int]) -> list[Range]:
    """The ids as ranges, in order."""
    result: list[Range] = []
    for number in sorted(set(ids)):
        if result and result[-1][1] == number - 1:
            result[-1] = (result[-1][0], number)
        else:
            result.append((number, number))
    return result


def spread(found: Iterable[Iterable[int]]) -> set[int]:
    """What `ranges` was made from."""
    return {number for first, last in found for number in range(first, last + 1)}


def counted(counts: Mapping[int, int]) -> list[Counted]:
    """Id → count as ranges of equal counts, in order."""
    result: list[Counted] = []
    for number, count in sorted(counts.items()):
        if result and result[-1][1] == number - 1 and result[-1][2] == count:
            result[-1] = (result[-1][0], number, count)
        else:
            result.append((number, number, count))
    return result


def counts_of(found: Iterable[Iterable[int]]) -> dict[int, int]:
    """What `counted` was made from."""
    return {number: count for first, last, count in found for number in range(first, last + 1)}

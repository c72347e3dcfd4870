"""MySQL's aggregates that SQLite lacks."""

from __future__ import annotations

import math
from typing import Any

from .sql_text import weight
from .sql_values import LONGEST, number, text


class GroupConcat:
    """GROUP_CONCAT(value, separator, distinct, most, key, descending, ...)."""

    def __init__(self) -> None:
        self.found: list[tuple[list[tuple[Any, int]], str]] = []
        self.separator, self.distinct, self.most, self.size = ",", 0, 1024, 0

    def step(self, value: Any, separator: Any, distinct: int, most: int, *keys: Any) -> None:
        self.separator, self.distinct, self.most = text(separator), distinct, most
        if value is not None and self.size <= LONGEST:
            shown = text(value)
            self.size += len(shown)
            order = list(zip(keys[::2], keys[1::2], strict=True))
            self.found.append((order, shown))

    def finalize(self) -> Any:
        found = self.found
        for place in reversed(range(len(found[0][0]) if found else 0)):
            found.sort(
                key=lambda item: _sorting(item[0][place][0]),
                reverse=bool(found[0][0][place][1]),
            )
        shown = [item[1] for item in found]
        if self.distinct:
            shown = list({weight(item): item for item in reversed(shown)}.values())[::-1]
        if not shown:
            return None
        return self.separator.join(shown).encode()[: self.most].decode("utf-8", "ignore")


def _sorting(value: Any) -> tuple[int, Any]:
    if value is None:
        return (0, 0)
    return (1, value) if isinstance(value, (int, float)) else (2, weight(text(value)))


def spread(squares: bool, sample: bool) -> type:
    """STDDEV and VARIANCE, of the population or a sample."""

    class Spread:
        def __init__(self) -> None:
            self.count, self.mean, self.total = 0, 0.0, 0.0

        def step(self, value: Any) -> None:
            if value is not None:
                self.count += 1
                apart = float(number(value)) - self.mean
                self.mean += apart / self.count
                self.total += apart * (float(number(value)) - self.mean)

        def finalize(self) -> Any:
            if self.count <= sample:
                return None
            found = self.total / (self.count - sample)
            return found if squares else math.sqrt(found)

    return Spread


AGGREGATES: dict[str, type] = {
    "group_concat": GroupConcat,
    "stddev": spread(False, False),
    "stddev_samp": spread(False, True),
    "variance": spread(True, False),
    "var_samp": spread(True, True),
}

"""The record of one merge: all that it takes to perform it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

from cqd_hub.genome.layout import Granularity


class Drawn(NamedTuple):
    """A parameter that was drawn for this merge, a value for each group of slots.

    Args:
        name: The parameter.
        per: The groups, see `Layout.groups`.
        values: ``[parents][groups]``, or ``[1][groups]`` of a parameter that the parents share.
    """

    name: str
    per: Granularity
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Merge:
    """Two or more individuals merged by one of mergekit's methods.

    Args:
        text: Canonical JSON, so that equal merges are equal, here and elsewhere; see `make`.
    """

    text: str

    @classmethod
    def make(
        cls,
        method: str,
        *,
        parents: Sequence[str],
        seed: int,
        parameters: Mapping[str, Any],
        drawn: Drawn | None = None,
    ) -> Merge:
        """Record a merge.

        Args:
            method: mergekit's name of it.
            parents: Hashes of their genomes, in the order that the method takes them.
            seed: Of the method's own draws.
            parameters: Name → number, or list of one number per parent.
            drawn: A parameter that differs between slots.
        """
        content = {
            "method": method,
            "parents": list(parents),
            "seed": seed,
            "parameters": dict(parameters),
            "drawn": None if drawn is None else drawn._asdict(),
        }
        return cls(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False))

    @cached_property
    def _content(self) -> dict[str, Any]:
        return json.loads(self.text)

    @cached_property
    def id(self) -> str:
        """SHA-256 of the record."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def method(self) -> str:
        """mergekit's name of the method."""
        return self._content["method"]

    @property
    def parents(self) -> tuple[str, ...]:
        """Hashes of the parents' genomes."""
        return tuple(self._content["parents"])

    @property
    def seed(self) -> int:
        """Of the method's own draws."""
        return self._content["seed"]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Parameters that are the same in all slots."""
        return self._content["parameters"]

    @cached_property
    def drawn(self) -> Drawn | None:
        """The parameter that was drawn for this merge, if one was."""
        drawn = self._content["drawn"]
        if drawn is None:
            return None
        values = tuple(tuple(row) for row in drawn["values"])
        return Drawn(drawn["name"], cast(Granularity, drawn["per"]), values)

    def parameters_in(self, group: int) -> dict[str, Any]:
        """All parameters in the slots of one group of `drawn`; lists have a value per parent."""
        result = dict(self.parameters)
        if self.drawn is not None:
            values = [row[group] for row in self.drawn.values]
            result[self.drawn.name] = values[0] if len(values) == 1 else values
        return result

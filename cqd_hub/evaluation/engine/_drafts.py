"""Guesses of what an answer will be, taken from drafts; no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence


class Drafts:
    """The drafts of one request, followed along its answer.

    While a draft agrees with the whole answer so far, its rest is proposed. After a disagreement,
    what follows the answer's last two tokens in a draft is: where several places fit, the one that
    agrees longest backwards, then the nearest to where the answer stands, then the earlier draft's.

    Args:
        drafts: Token ids; whatever is no id of the model ends a draft.
        rows: How many ids the model has.
        end: Ids that end an answer; no draft is followed beyond one.
    """

    def __init__(
        self, drafts: Sequence[Sequence[int]], *, rows: int, end: Collection[int] = ()
    ) -> None:
        cut: dict[tuple[int, ...], None] = {}
        for draft in drafts:
            length = next(
                (n for n, token in enumerate(draft) if not 0 <= token < rows or token in end),
                len(draft),
            )
            if length:
                cut.setdefault(tuple(draft[:length]))
        self._drafts = [list(draft) for draft in cut]
        self._agreeing = list(range(len(self._drafts)))
        self._compared = 0
        self._places: dict[tuple[int, int], list[tuple[int, int]]] | None = None

    def propose(self, answer: Sequence[int], limit: int) -> list[int]:
        """At most *limit* tokens that may follow *answer*, which only ever grows."""
        if limit < 1 or not self._drafts:
            return []
        for place in range(self._compared, len(answer)):
            self._agreeing = [
                number
                for number in self._agreeing
                if place < len(self._drafts[number])
                and self._drafts[number][place] == answer[place]
            ]
        self._compared = len(answer)
        if self._agreeing:
            rest = self._drafts[self._agreeing[0]][len(answer) :]
            if rest:
                return rest[:limit]
        if len(answer) < 2:
            return []
        found = self._index().get((answer[-2], answer[-1]))
        if not found:
            return []
        number, place = max(
            found,
            key=lambda at: (self._agreement(at, answer), -abs(at[1] - len(answer)), -at[0]),
        )
        return self._drafts[number][place : place + limit]

    def _index(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Two tokens → (draft, place behind them)."""
        if self._places is None:
            self._places = {}
            for number, draft in enumerate(self._drafts):
                for place in range(2, len(draft)):
                    self._places.setdefault((draft[place - 2], draft[place - 1]), []).append(
                        (number, place)
                    )
        return self._places

    def _agreement(self, at: tuple[int, int], answer: Sequence[int]) -> int:
        draft, place = self._drafts[at[0]], at[1]
        length = 2
        while length < min(place, len(answer)) and draft[place - length - 1] == answer[-length - 1]:
            length += 1
        return length

"""One forward pass of a slot loop: rows laid out for the model, logits of the tokens that count."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from cqd_hub.evaluation.engine._cache import RowCache
from cqd_hub.evaluation.engine._rows import Row, pack
from cqd_hub.evaluation.engine._threads import Threads

Assign = Callable[[Sequence[Hashable], Sequence[Hashable] | None], None]


class Reader:
    """Gives a model its rows.

    Args:
        model: A causal LM of transformers.
        assign: Called before a pass with the owners of its rows, and of the tokens that its head
            sees (None where it sees all of them).

    Attributes:
        cache: The rows' keys and values.
    """

    def __init__(self, model: Any, assign: Assign) -> None:
        self._model, self._assign = model, assign
        self._device: torch.device = model.device
        self._threads = Threads(model)
        self.cache = RowCache()

    def begin(self, rows: Sequence[int], entries: Sequence[Row[Any]]) -> torch.Tensor:
        """Read prompts with their drafts, several behind each other where they are short.

        Args:
            rows: Where in the cache each row is.
            entries: The rows.

        Returns:
            Logits ``[tokens, vocabulary]``: of each row's last token, then of its draft's.
        """
        lengths = [row.length + len(row.proposal) for row in entries]
        packs = pack(lengths, [(id(row),) if row.alone else row.owner for row in entries])
        width = max(sum(lengths[place] for place in one) for one in packs)
        shape = len(packs), width
        ids, columns = np.zeros(shape, np.int64), np.full(shape, -1)
        owned, picked = np.zeros(shape, np.int64), dict[int, np.ndarray]()
        for number, one in enumerate(packs):
            start = 0
            for place in one:
                row, stop = entries[place], start + lengths[place]
                ids[number, start:stop] = [*row.request.prompt, *row.answer, *row.proposal]
                columns[number, start:stop] = np.arange(stop - start)
                owned[number, start:stop] = rows[place] + 1
                first = number * width + stop - len(row.proposal) - 1
                picked[place] = np.arange(first, number * width + stop)
                start = stop
        self.cache.reserve(max(rows) + 1, max(lengths))
        where = torch.from_numpy(owned).to(self._device)
        at = torch.from_numpy(columns).to(self._device)
        self.cache.aim_packed((where - 1).clamp(min=0), at)
        order = torch.arange(width, device=self._device)
        mask = (where[:, None, :, None] == where[:, None, None]) & (order <= order[:, None])
        self._assign(
            [entries[one[0]].owner for one in packs],
            [row.owner for row in entries for _ in range(len(row.proposal) + 1)],
        )
        return self._forward(
            ids, at, mask, np.concatenate([picked[place] for place in range(len(rows))])
        )

    def carry_on(self, rows: Sequence[int], entries: Sequence[Row[Any]]) -> torch.Tensor:
        """Read each row's newest token and its draft; see `begin`."""
        width = 1 + max(len(row.proposal) for row in entries)
        ids, columns = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -1)
        for place, row in enumerate(entries):
            stop = 1 + len(row.proposal)
            ids[place, :stop] = [row.answer[-1], *row.proposal]
            columns[place, :stop] = np.arange(row.length - 1, row.length - 1 + stop)
        length = int(columns.max()) + 1
        self.cache.reserve(max(rows) + 1, length)
        at = torch.from_numpy(columns).to(self._device)
        length = self.cache.aim(rows, at, length)
        mask = torch.arange(length, device=self._device) <= at.clamp(min=0)[:, None, :, None]
        self._assign(
            [row.owner for row in entries],
            [row.owner for row in entries for _ in range(len(row.proposal) + 1)],
        )
        return self._forward(ids, at, mask, np.flatnonzero(columns.ravel() >= 0))

    def _forward(
        self, ids: np.ndarray, columns: torch.Tensor, mask: torch.Tensor, picked: np.ndarray
    ) -> torch.Tensor:
        if self._model.config._attn_implementation == "eager":  # adds its mask
            smallest = torch.finfo(self._model.dtype).min
            mask = torch.where(mask, 0.0, smallest).to(self._model.dtype)
        wanted = torch.from_numpy(picked).to(self._device)
        # The head sees the tokens whose logits are used, and no others.
        hook = self._model.get_output_embeddings().register_forward_pre_hook(
            lambda module, inputs: (inputs[0].flatten(0, 1)[wanted][None],)
        )
        try:
            with self._threads.of(ids.size):
                logits: torch.Tensor = self._model(
                    input_ids=torch.from_numpy(ids).to(self._device),
                    attention_mask=mask,
                    position_ids=columns.clamp(min=0),
                    past_key_values=self.cache,
                    use_cache=True,
                ).logits
        finally:
            hook.remove()
        return logits[0]

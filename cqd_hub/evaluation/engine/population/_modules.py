"""Forward passes whose weights differ by row: y = x·W0ᵀ + ((x·Aᵀ) ⊙ g[row])·Bᵀ.

Each is called in place of its module's own ``forward``, which it falls back to while no individual
is applied. Inputs are flattened to two dimensions: a frozen weight with a strided input would
otherwise be copied for every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from cqd_hub.evaluation.engine.population._people import Part, People


@dataclass
class Shared:
    """The down-projections of modules that read one input, in one product.

    Args:
        down: ``[R of all, in]``.
        members: How many modules read it.
    """

    down: torch.Tensor
    members: int
    _input: torch.Tensor | None = field(default=None, init=False)
    _product: torch.Tensor | None = field(default=None, init=False)
    _taken: int = field(default=0, init=False)

    def of(self, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """*flat* · downᵀ, computed for the first module that brings *x*."""
        if self._input is not x or self._product is None:
            self._input, self._product, self._taken = x, flat @ self.down.T, 0
        product, self._taken = self._product, self._taken + 1
        if self._taken >= self.members:  # nothing is kept alive from pass to pass
            self._input = self._product = None
        return product


@dataclass
class Factors:
    """One slot's shared factors, as its module multiplies them.

    Args:
        part: Where the individuals' coefficients lie.
        people: The tables.
        left: ``[out, R]``: y gains ((x · rightᵀ) ⊙ g) · leftᵀ.
        right: ``[R, in]``.
        tails: Expert → its whole task vector, ``[out, in]``.
        frame: Orthonormal ``[out, R_b]`` and ``[R_a, in]`` around cores, computed when asked for.
        turned: Whether the module's weight is stored ``[in, out]``: its core is turned too.
    """

    part: Part
    people: People
    left: torch.Tensor | None
    right: torch.Tensor | None
    tails: dict[int, torch.Tensor]
    frame: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    turned: bool = False
    head: bool = False
    shared: Shared | None = None
    offset: int = 0

    def add(self, y: torch.Tensor, x: torch.Tensor, flat: torch.Tensor) -> None:
        """Add to y ``[tokens, out]`` what the individuals' weights differ by.

        Args:
            x: The module's input ``[rows, width, in]``.
            flat: The same as ``[tokens, in]``.
        """
        people, part, head = self.people, self.part, self.head
        if self.left is not None and self.right is not None:
            if self.shared is None:
                inner = flat @ self.right.T
            else:
                inner = self.shared.of(x, flat)[:, self.offset : self.offset + len(self.right)]
            inner = inner.view(*x.shape[:-1], -1) * people.own(part, head=head)
            y.addmm_(inner.flatten(0, -2), self.left.T)
        for expert, tau in self.tails.items():
            scaled = x * people.tail(part, expert, head=head)
            y.addmm_(scaled.flatten(0, -2), tau.T)
        core = people.core(part, head=head)
        if core is not None:
            left, right = self.frame()
            inner = (flat @ right.T).view(*x.shape[:-1], -1)
            if inner.shape[0] != len(core):  # the head's tokens, each with its own
                inner = inner.transpose(0, 1)
            inner = inner @ (core if self.turned else core.transpose(1, 2))
            y.addmm_(inner.flatten(0, -2), left.T)


class RowLinear:
    """A linear layer (or a Conv1D, which stores its weight turned) with weights by row."""

    def __init__(
        self, module: Any, people: People, factors: Factors | None, bias: Part | None, *, head: bool
    ) -> None:
        self._plain = module.forward
        self._module, self._people, self._factors = module, people, factors
        self._bias, self._head = bias, head
        self._turned = not isinstance(module, torch.nn.Linear)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._people.active:
            result: torch.Tensor = self._plain(x)
            return result
        module = self._module
        flat = x.reshape(-1, x.shape[-1])
        weight = module.weight.T if self._turned else module.weight
        y = functional.linear(flat, weight, None if self._bias else module.bias)
        if self._factors is not None:
            self._factors.add(y, x, flat)
        y = y.view(*x.shape[:-1], -1)
        if self._bias is not None:
            y += self._people.vector(self._bias, y.shape[-1], head=self._head)
        return y


class RowEmbedding:
    """An embedding with weights by row: E0[token] + (U[token] ⊙ g[row])·V."""

    def __init__(self, module: Any, people: People, factors: Factors, scale: Any) -> None:
        self._plain = module.forward
        self._people, self._factors, self._scale = people, factors, scale

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._plain(tokens)
        if not self._people.active:
            return y
        own, people = self._factors, self._people
        delta = torch.zeros_like(y)
        if own.left is not None and own.right is not None:
            scaled = own.left[tokens] * people.own(own.part, head=False)
            delta += scaled @ own.right
        for expert, tau in own.tails.items():
            delta += tau[tokens] * people.tail(own.part, expert, head=False)
        core = people.core(own.part, head=False)
        if core is not None:
            left, right = own.frame()
            delta += left[tokens] @ core @ right
        return y + delta * self._scale


class RowVectors:
    """A norm with weights by row, be it elementwise or torch's own."""

    def __init__(self, module: Any, people: People, parts: dict[str, Part]) -> None:
        self._plain = module.forward
        self._module, self._people, self._parts = module, people, parts

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not self._people.active:
            result: torch.Tensor = self._plain(x)
            return result
        rows = {
            name: self._people.vector(part, self._module.get_parameter(name).numel(), head=False)
            for name, part in self._parts.items()
        }
        return by_row(self._module, self._plain, rows, x)


def by_row(
    module: Any,
    plain: Callable[[torch.Tensor], torch.Tensor],
    rows: dict[str, torch.Tensor],
    x: torch.Tensor,
) -> torch.Tensor:
    """A norm of *x* ``[rows, …, n]`` with vectors ``[rows, 1, n]`` in place of its own."""
    shaped = {
        name: tensor.view(len(tensor), *[1] * (x.ndim - 2), tensor.shape[-1])
        for name, tensor in rows.items()
    }
    if isinstance(module, torch.nn.LayerNorm):  # a fused kernel takes no weights by row
        y = functional.layer_norm(x, module.normalized_shape, None, None, module.eps)
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            vector = shaped.get(name, getattr(module, name, None))
            if vector is not None:
                y = combine(y, vector)
        return y
    module.__dict__.update(shaped)  # found before the parameters of these names
    try:
        return plain(x)
    finally:
        for name in shaped:
            del module.__dict__[name]

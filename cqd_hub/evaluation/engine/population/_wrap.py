"""Which module of a model does what with which slot, and whether rows can differ in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from cqd_hub.evaluation.engine._cache import longest_row
from cqd_hub.evaluation.engine.population._modules import (
    Factors,
    RowEmbedding,
    RowLinear,
    RowVectors,
    Shared,
    by_row,
)
from cqd_hub.evaluation.engine.population._people import People
from cqd_hub.genome import Basis
from cqd_hub.genome.models.architecture import Architecture

# Leaves of one parent that read one input.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def unsupported(model: Any, basis: Basis) -> str | None:
    """Why individuals of *basis* cannot share a batch of *model*; None if they can."""
    if not longest_row(model.config):
        return "its cache holds more than keys and values"
    architecture = Architecture(model)
    slots = basis.layout.slots
    places = architecture.places(slot.tensor for slot in slots)
    for number in _changed(basis):
        slot = slots[number]
        if slot.index is not None or slot.kind == "convolution":
            return f"{slot.name} is a stack or a convolution"
        place = places[slot.tensor]
        parameter = architecture.parameters[place.parameter]
        if place.size != tuple(parameter.shape) or place.stride != parameter.stride():
            return f"{slot.name} is a part of a parameter"
        for name in _owners(model, place.parameter):
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            if slot.is_matrix:
                fits = leaf == "weight" and (
                    type(module) in (torch.nn.Linear, Conv1D) or _scale(module) is not None
                )
            else:
                fits = type(module) in (torch.nn.Linear, Conv1D) or _elementwise(module)
            if not fits:
                return f"{type(module).__name__} has no weights by row"
    return None


def wrap(model: Any, basis: Basis, *, dtype: torch.dtype) -> People:
    """Let every module of *model* that individuals change take its weights by row.

    Nothing changes until the result is made ``active``.
    """
    device = model.device
    changed = _changed(basis)
    people = People(basis, changed, device=device, dtype=dtype)
    architecture = Architecture(model)
    slots = basis.layout.slots
    places = architecture.places(slot.tensor for slot in slots)
    owned: dict[str, dict[str, int]] = {}
    for number in changed:
        for name in _owners(model, places[slots[number].tensor].parameter):
            owner, _, leaf = name.rpartition(".")
            owned.setdefault(owner, {})[leaf] = number
    make = _Maker(basis, people, device, dtype)
    linear: dict[str, Factors] = {}
    for name, leaves in owned.items():
        module = model.get_submodule(name)
        head = module is model.get_output_embeddings()
        if type(module) in (torch.nn.Linear, Conv1D):
            factors = None
            if "weight" in leaves:
                turned = type(module) is Conv1D
                factors = make.factors(leaves["weight"], turned=turned)
                factors.head = head
                linear[name] = factors
            bias = people.parts[leaves["bias"]] if "bias" in leaves else None
            module.forward = RowLinear(module, people, factors, bias, head=head)
        elif "weight" in leaves and slots[leaves["weight"]].is_matrix:
            factors = make.factors(leaves["weight"], turned=False)
            module.forward = RowEmbedding(module, people, factors, _scale(module))
        else:
            parts = {leaf: people.parts[number] for leaf, number in leaves.items()}
            module.forward = RowVectors(module, people, parts)
    _share(linear)
    return people


class _Maker:
    def __init__(
        self, basis: Basis, people: People, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._basis, self._people, self._device, self._dtype = basis, people, device, dtype
        # Tied modules read one slot: its factors are held once.
        self._stack, self._tails = cache(self._read), cache(self._dense)
        self._framed = cache(self._frame)

    def factors(self, slot: int, *, turned: bool) -> Factors:
        stack, tails = self._stack(slot), self._tails(slot)
        left, right = stack if stack is not None else (None, None)
        if turned and left is not None and right is not None:
            left, right = right.T.contiguous(), left.T.contiguous()

        def frame() -> tuple[torch.Tensor, torch.Tensor]:
            left, right = self._framed(slot)
            return (right.T, left.T) if turned else (left, right)

        return Factors(
            part=self._people.parts[slot],
            people=self._people,
            left=left,
            right=right,
            tails={e: tau.T.contiguous() if turned else tau for e, tau in tails.items()},
            frame=frame,
            turned=turned,
        )

    def _read(self, slot: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        name = self._basis.layout.slots[slot].name
        found = [store[name] for store in self._basis.factors if name in store]
        if not found:
            return None
        up, down = torch.cat([f.up for f in found], 1), torch.cat([f.down for f in found])
        return self._moved(up), self._moved(down)

    def _dense(self, slot: int) -> dict[int, torch.Tensor]:
        basis = self._basis
        experts = [expert for where, expert in self._people.scales.dense if where == slot]
        if not experts or not basis.layout.slots[slot].is_matrix:
            return {}
        base = basis.base.weight(basis.layout.slots[slot]).float()
        return {e: self._moved(basis.expert_weight(slot, e).float() - base) for e in experts}

    def _frame(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        frame = self._basis.frame(self._basis.layout.slots[slot].name)
        return self._moved(frame.left), self._moved(frame.right.T)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().to(self._device, self._dtype)


def _share(linear: dict[str, Factors]) -> None:
    """Multiply an input once for all the modules that read it."""
    for name in linear:
        parent, _, leaf = name.rpartition(".")
        for leaves in _SIBLINGS:
            names = [f"{parent}.{other}" for other in leaves]
            members = [linear[n] for n in names if n in linear and linear[n].right is not None]
            if leaf != leaves[0] or len(members) < 2 or any(n not in linear for n in names):
                continue
            downs = [member.right for member in members if member.right is not None]
            shared = Shared(torch.cat(downs), len(members))
            start = 0
            for member, down in zip(members, downs, strict=True):
                member.shared, member.offset = shared, start
                member.right = shared.down[start : start + len(down)]
                start += len(down)


def _changed(basis: Basis) -> list[int]:
    """The slots that some individual may change."""
    layout = basis.layout
    return [
        number
        for number, _ in enumerate(layout.slots)
        if any(layout.ranks[number]) or any(layout.tails[number])
    ]


def _owners(model: Any, parameter: str) -> list[str]:
    """All names of a parameter: tied weights have several."""
    tensor = dict(model.named_parameters()).get(parameter)
    if tensor is None:
        return [parameter]
    found = model.named_parameters(remove_duplicate=False)
    return [name for name, other in found if other is tensor]


def _scale(module: Any) -> Any:
    """What an embedding multiplies its rows by; None where that is not all it does."""
    if not isinstance(module, torch.nn.Embedding) or module.max_norm is not None:
        return None
    scale = getattr(module, "embed_scale", 1.0)
    rows = module.weight[:3]
    tokens = torch.arange(len(rows), device=rows.device)
    with torch.no_grad():
        given, wanted = module(tokens), rows * scale
    return scale if torch.allclose(given, wanted.to(given.dtype), rtol=1e-2, atol=1e-6) else None


def _elementwise(module: Any) -> bool:
    """Whether a norm's vectors may differ by row: tried out, once per module, on two rows."""
    names = [name for name, tensor in module.named_parameters(recurse=False)]
    size = module.get_parameter(names[0]).numel()
    draws = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        like = module.get_parameter(names[0])
        return torch.randn(*shape, generator=draws).to(like)

    x = random(2, 3, size)
    rows = {name: random(2, 1, size) for name in names}
    plain: Callable[..., Any] = module.forward
    try:
        with torch.no_grad():
            given = by_row(module, plain, rows, x)
            for number in range(2):
                own = {name: tensor[number, 0] for name, tensor in rows.items()}
                wanted = torch.func.functional_call(module, own, x[number : number + 1])
                if not torch.allclose(given[number : number + 1], wanted, rtol=2e-2, atol=1e-2):
                    return False
    except Exception:  # whatever a module does that is no norm
        return False
    return True

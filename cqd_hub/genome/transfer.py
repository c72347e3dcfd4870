"""Genomes moved to another basis, and layouts as JSON: numpy only, but for genomes with cores.

Coefficients are keyed by (expert's content hash, slot), so that a genome keeps its meaning when
experts are added, left out where it does not use them, or put in another order. What moves exactly
moves; anything else is refused:

- coefficients of an expert in a slot, if both bases scale as many of its directions one by one and
  treat what lies beyond them alike;
- coefficients that are all equal, if in both bases directions and tail make up the whole task
  vector: they scale it as a whole, whatever its directions are;
- coefficients that are all 0, anywhere;
- cores, if the source's factors are among the target's: they are turned into its wider frame;
- noise, if base and slots are the same: it is drawn by slot number.

Merges name their parents by genomes of their own basis and cannot move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.layout import Layout, Segment, Slot

if TYPE_CHECKING:
    from cqd_hub.genome.basis import Basis

_KINDS = ("matrix", "transposed", "embedding", "convolution", "vector")
_RANK = "use the genome.rank and genome.tail of the run it comes from"


def layout_as_json(layout: Layout) -> dict[str, Any]:
    """What `layout_of_json` reads."""
    return {
        "slots": [
            [slot.name, list(slot.shape), slot.kind, slot.tensor, slot.index]
            for slot in layout.slots
        ],
        "experts": list(layout.experts),
        "ranks": [list(row) for row in layout.ranks],
        "tails": [list(row) for row in layout.tails],
    }


def layout_of_json(data: Any) -> Layout:
    """Read a layout that a stranger may have written.

    Raises:
        ValueError: It is none: says which part is not.
    """
    if not isinstance(data, Mapping):
        raise ValueError("no object")
    slots = tuple(_slot(entry) for entry in _listed(data, "slots"))
    experts = tuple(_listed(data, "experts"))
    if not slots or len({slot.name for slot in slots}) != len(slots):
        raise ValueError("slots are missing or repeated")
    if (
        not all(isinstance(e, str) for e in experts)
        or not experts
        or len({*experts}) < len(experts)
    ):
        raise ValueError("experts are missing, repeated, or no hashes")
    ranks, tails = _listed(data, "ranks"), _listed(data, "tails")
    for name, table, kind in (("ranks", ranks, int), ("tails", tails, bool)):
        if len(table) != len(slots):
            raise ValueError(f"{name} has {len(table)} rows for {len(slots)} slots")
        for row in table:
            if not isinstance(row, list) or len(row) != len(experts):
                raise ValueError(f"{name} has a row that is not one value per expert")
            if any(type(value) is not kind for value in row):
                raise ValueError(f"{name} holds something else than {kind.__name__}")
    for slot, row in zip(slots, ranks, strict=True):
        largest = min(slot.shape) if slot.is_matrix else 0
        if not all(0 <= rank <= largest for rank in row):
            raise ValueError(f"a rank of {slot.name} is not within 0 to {largest}")
    return Layout(slots, experts, tuple(map(tuple, ranks)), tuple(map(tuple, tails)))


def _listed(data: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(data.get(key), list):
        raise ValueError(f"{key} is no list")
    return data[key]


def _slot(entry: Any) -> Slot:
    match entry:
        case [str(name), [*shape], str(kind), str(tensor), index]:
            pass
        case _:
            raise ValueError("a slot is not [name, shape, kind, tensor, index]")
    dimensions = 1 if kind == "vector" else 2
    if kind not in _KINDS or len(shape) != dimensions:
        raise ValueError(f"a slot has kind {kind!r} and {len(shape)} dimensions")
    if not all(type(n) is int and 0 < n < 2**31 for n in shape):
        raise ValueError("a slot has a dimension that is no size")
    if index is not None and (type(index) is not int or index < 0):
        raise ValueError("a slot has an index that is no number")
    return Slot(name, tuple(shape), kind, tensor, index)  # type: ignore[arg-type]


def check_genome(genome: Genome, layout: Layout) -> None:
    """Check that a genome that a stranger may have written fits its layout.

    Raises:
        ValueError: Coefficients, cores, noise or merges of another shape or type, or not finite.
    """
    slots = {slot.name: index for index, slot in enumerate(layout.slots)}
    _check_array("coefficients", genome.coefficients, (layout.size,))
    for name, core in genome.cores.items():
        if name not in slots or not layout.slots[slots[name]].is_matrix:
            raise ValueError("a core of no matrix of this model")
        total, (rows, columns) = sum(layout.ranks[slots[name]]), layout.slots[slots[name]].shape
        _check_array("a core", core, (min(total, rows), min(total, columns)))
    for row in genome.noise.values():
        _check_array("noise", row, (len(slots),))
    for row in genome.merges.values():
        _check_array("a merge's weights", row, (len(slots),))


def _check_array(what: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or array.shape != shape:
        raise ValueError(f"{what}: {array.dtype} {list(array.shape)}, not float32 {list(shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: NaN or infinity")


def transfer(genome: Genome, source: Layout, basis: Basis, *, where: str) -> Genome:
    """The same individual as coefficients of another basis.

    Args:
        genome: Of the basis that *source* belongs to.
        source: That basis's layout.
        basis: The one to move to; its base must be the same.
        where: Names the individual in errors.

    Raises:
        UserError: It cannot be moved exactly (see the module), or uses an expert that is not there.
    """
    target = basis.layout
    if genome.merges:
        method = next(iter(genome.merges)).method
        raise UserError(
            f"holds merges by {method}, whose parents the new run would not have",
            where=where,
            remedy="begin with elites of linear crossovers",
        )
    if genome.basis == basis.hash:
        return genome
    places = {slot.name: index for index, slot in enumerate(target.slots)}
    numbers = {expert: index for index, expert in enumerate(target.experts)}
    coefficients = np.zeros(target.size, dtype=np.float32)
    for row in source.segments:
        for segment in row:
            values = genome.coefficients[segment.start : segment.stop]
            if not values.any():
                continue
            slot = source.slots[segment.slot]
            expert = source.experts[segment.expert]
            if slot.name not in places:
                raise UserError(
                    f"scales {slot.name}, which this base does not have",
                    where=where,
                    remedy="use the base of the run it comes from",
                )
            if expert not in numbers:
                raise UserError(
                    f"uses an expert (sha256 {expert[:12]}) that is not among the recipe's",
                    where=where,
                    remedy="add it to `experts`",
                )
            goal = target.segments[places[slot.name]][numbers[expert]]
            moved = _moved(values, segment, slot, goal, target.slots[goal.slot])
            if moved is None:
                raise UserError(
                    f"scales {segment.rank} directions of {slot.name}, this run {goal.rank}",
                    where=where,
                    remedy=_RANK,
                )
            coefficients[goal.start : goal.stop] = moved
    return Genome(
        basis.hash,
        coefficients,
        _cores(genome, source, basis, where),
        _noise(genome, source, target, where),
    )


def _moved(
    values: np.ndarray, segment: Segment, slot: Slot, goal: Segment, goal_slot: Slot
) -> np.ndarray | float | None:
    """An expert's coefficients in one slot, or None where they would mean something else."""
    same = slot.shape == goal_slot.shape and slot.kind == goal_slot.kind
    if same and (segment.rank, segment.tail) == (goal.rank, goal.tail):
        return values
    whole = _whole(segment, slot) and _whole(goal, goal_slot)
    return float(values[0]) if whole and (values == values[0]).all() else None


def _whole(segment: Segment, slot: Slot) -> bool:
    """Whether directions and tail make up all of the task vector."""
    return segment.tail or segment.rank == min(slot.shape)


def _noise(genome: Genome, source: Layout, target: Layout, where: str) -> dict[int, np.ndarray]:
    if any(row.any() for row in genome.noise.values()) and source.slots != target.slots:
        raise UserError(
            "holds Gaussian noise, which is drawn by slot, and the slots differ",
            where=where,
            remedy="use the base of the run it comes from, and experts with its vocabulary",
        )
    return dict(genome.noise)


def _cores(genome: Genome, source: Layout, basis: Basis, where: str) -> dict[str, np.ndarray]:
    """The cores in the target's frames, which hold the source's."""
    if not genome.cores:
        return {}
    from cqd_hub.genome.basis import basis_of_factors

    numbers = {expert: index for index, expert in enumerate(basis.layout.experts)}
    missing = [expert for expert in source.experts if expert not in numbers]
    part: Basis | None = None
    if not missing:
        chosen = [numbers[expert] for expert in source.experts]
        experts = [basis.experts[number] for number in chosen]
        stores = [basis.factors[number] for number in chosen]
        found = (
            basis_of_factors(basis.base, experts, stores, tail=tail) for tail in ("tied", "drop")
        )
        part = next((one for one in found if one.hash == genome.basis), None)
    if part is None:
        raise UserError(
            "was mutated with `of: child`, and moves only to a basis with the very factors of its "
            "own",
            where=where,
            remedy=f"keep all its experts; {_RANK}",
        )
    cores = {}
    for name, core in genome.cores.items():
        old, new = part.frame(name), basis.frame(name)
        left = (new.left.double().T @ old.left.double()).numpy()
        right = (old.right.double().T @ new.right.double()).numpy()
        cores[name] = (left @ core.astype(np.float64) @ right).astype(np.float32)
    return cores

"""One child's crossover as a recipe over its parents, for ``mergekit-yaml``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.export import mergekit_names as naming
from cqd_hub.genome.export.checkpoint import ModelFiles, individual
from cqd_hub.genome.export.deltas import Deltas
from cqd_hub.genome.export.mergekit import Remainder, WholeBase, write_recipe
from cqd_hub.genome.export.mergekit_yaml import MergeSource, Value, arithmetic, recipe
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.genome import Genome, combine
from cqd_hub.genome.materialise import Materialiser
from cqd_hub.genome.merge.methods import find_method
from cqd_hub.genome.merge.record import Merge
from cqd_hub.genome.models.experts import is_adapter

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore

Key = TypeVar("Key")

# Coefficients that a crossover undone leaves over by rounding.
_ROUNDING = 1e-6


def export_crossover(
    child: Genome,
    parents: Sequence[Genome],
    how: np.ndarray | Merge,
    materialiser: Materialiser,
    out: Path,
    *,
    out_dtype: str = "bfloat16",
    merges: MergeStore | None = None,
) -> Path:
    """Write how a child was made: its parents, ``mergekit.yml``, and its mutation.

    Parents are fp32 checkpoints, except that an unchanged full fine-tune is named where it lies.
    A linear crossover and the mutation are one recipe: base + Σ_i share_i (parent_i - base) +
    (mutation - base). Another method merges the parents first; ``child.yml`` then adds the mutation
    to the result.

    Args:
        child: The individual.
        parents: Its parents, in order.
        how: ``[parents, slots]`` shares of a linear crossover, or the record of another method.
        materialiser: Of their basis.
        out: A folder that does not exist yet.
        out_dtype: Of the merged model; the merge itself runs in float32.
        merges: Where the merges are that any of them weighs.

    Returns:
        The (first) YAML's path.

    Raises:
        UserError: *out* exists, a path holds ``+`` or ``@``, or mergekit cannot merge the
            architecture, or not by this method.
        RunError: Not enough space. Nothing is left behind.
    """
    basis = materialiser.basis
    naming.refuse_unmergeable(basis.base)
    names, whole = naming.tensor_names(basis), WholeBase(basis, out)
    places = [_place(basis, parent, out, number) for number, parent in enumerate(parents, 1)]
    folders = [naming.local_reference(place) for place in places]
    if isinstance(how, Merge):
        _refuse_joined(names, how, out)
        made = Genome.of_merge(basis.hash, basis.layout, how)
    else:
        how = naming.common_in_tensors(basis, how.T).T
        made = combine(parents, how, basis.layout)
    left = _difference(child, made, basis)
    deltas = Deltas(left, basis, merges=merges)
    rest = Remainder(deltas, out / "mutation", whole.reference)
    files = ModelFiles(basis, dtype="float32")
    new = [(p, place) for p, place in zip(parents, places, strict=True) if place.parent == out]
    key = {
        "form": "crossover",
        "genome": child.hash,
        "parents": [parent.hash for parent in parents],
        "how": how.id if isinstance(how, Merge) else hashlib.sha256(how.tobytes()).hexdigest(),
        "basis": basis.hash,
        "out_dtype": out_dtype,
    }
    needed = whole.bytes + rest.bytes + len(new) * files.bytes
    with output_folder(out, needed=needed, key=key) as folder:
        whole.write(folder / "base")
        for parent, place in new:
            (folder / place.name).mkdir(exist_ok=True)
            files.write(folder / place.name, individual(parent, materialiser))
        rest.write(folder / "mutation")
        if not isinstance(how, Merge):
            weights = [*zip(folders, how, strict=True), *rest.source]
            text = arithmetic(names, base=whole.reference, weights=weights, out_dtype=out_dtype)
            write_recipe(folder, out, text, rest.note)
            return out / "mergekit.yml"
        first = "float32" if rest.source else out_dtype
        text = _merge_recipe(names, how, basis, whole.reference, folders, out_dtype=first)
        note = rest.note + _METHOD
        if rest.source:
            crossed = (naming.local_reference(out / "crossover"), np.ones(len(names)))
            second = arithmetic(
                names,
                base=whole.reference,
                weights=[crossed, *rest.source],
                out_dtype=out_dtype,
            )
            (folder / "child.yml").write_text(second, encoding="utf-8")
            note += _TWO_STEPS.format(crossover=crossed[0])
        write_recipe(folder, out, text, note)
    return out / "mergekit.yml"


def _place(basis: Basis, parent: Genome, out: Path, number: int) -> Path:
    for index, expert in enumerate(basis.experts):
        whole = Genome.of_expert(basis.hash, basis.layout, index)
        exact = not is_adapter(expert) and naming.usable(basis, index)
        if exact and parent.hash == whole.hash and _complete(basis, index):
            return expert.path
    return out / f"parent-{number}"


def _complete(basis: Basis, expert: int) -> bool:
    """Whether an expert's genome is the expert itself, with nothing dropped."""
    layout = basis.layout
    return all(
        not basis.is_dense(place.slot, expert)
        or place.tail
        or place.rank == min(layout.slots[place.slot].shape)
        or place.rank == 0
        for place in (row[expert] for row in layout.segments)
    )


def _refuse_joined(names: Sequence[str], merge: Merge, out: Path) -> None:
    """A method that is not linear sees another tensor where several slots are one of mergekit's."""
    if len(set(names)) < len(names):
        raise UserError(
            f"{merge.method} was run matrix by matrix; mergekit joins a mixture's experts first",
            where=str(out),
            remedy="use --form mergekit, which holds the result",
        )


def _difference(child: Genome, made: Genome, basis: Basis) -> Genome:
    """What mutation added, without the rounding of the subtraction."""
    left = combine([child, made], np.array([1.0, -1.0]), basis.layout)
    largest = max(1.0, float(np.abs(child.coefficients).max(initial=0.0)))
    keep = np.abs(left.coefficients) > _ROUNDING * largest
    cores = {
        name: core
        for name, core in left.cores.items()
        if np.abs(core).max() > _ROUNDING * np.abs(child.cores[name]).max(initial=0.0)
    }
    return replace(
        left,
        coefficients=np.where(keep, left.coefficients, np.float32(0)),
        cores=cores,
        noise=_kept(left.noise, child.noise),
        merges=_kept(left.merges, child.merges),
    )


def _kept(rows: Mapping[Key, np.ndarray], of: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    """Rows of more than rounding, compared with the child's own."""
    found = {}
    for key, row in rows.items():
        largest = np.abs(of[key]).max(initial=0.0) if key in of else 1.0
        row = np.where(np.abs(row) > _ROUNDING * largest, row, np.float32(0))
        if row.any():
            found[key] = row
    return found


def _merge_recipe(
    names: Sequence[str],
    merge: Merge,
    basis: Basis,
    base: str,
    parents: Sequence[str],
    *,
    out_dtype: str,
) -> str:
    stand = find_method(merge.method).base
    of_all: dict[str, Value] = {}
    of_each: list[dict[str, Value]] = [{} for _ in parents]
    for name, value in merge.parameters.items():
        if isinstance(value, list):
            for own, one in zip(of_each, value, strict=True):
                own[name] = one
        else:
            of_all[name] = value
    if drawn := merge.drawn:
        rows = np.array(drawn.values)[:, basis.layout.groups(drawn.per)]
        if len(rows) == 1:
            of_all[drawn.name] = rows[0]
        for own, row in zip(of_each, rows if len(rows) > 1 else (), strict=False):
            own[drawn.name] = row
    return recipe(
        names,
        method=merge.method,
        base={"beside": base, "first": parents[0], "none": None}[stand],
        sources=[MergeSource(*pair) for pair in zip(parents, of_each, strict=True)],
        parameters=of_all,
        out_dtype=out_dtype,
    )


_METHOD = """
mergekit draws what a random method drops from one seed, a run from one for every tensor: such a
merge comes out alike, not equal.
"""

_TWO_STEPS = """
That is the crossover. `child.yml` adds the mutation to it; it expects the merged crossover in
`{crossover}`, so give that for MERGED, then run `child.yml` the same way.
"""

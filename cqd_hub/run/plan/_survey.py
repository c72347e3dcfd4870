"""Base and experts from their headers: local ones, or of the Hub, of which no weights are asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from cqd_hub.evaluation.engine.memory import Shape
from cqd_hub.genome.layout import Layout
from cqd_hub.recipe import Recipe
from cqd_hub.run.models import looked_at

if TYPE_CHECKING:
    from cqd_hub.genome import Basis
    from cqd_hub.genome.models.experts import Base, Expert

_SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
)
_SMALL = 4 << 30  # bytes of models that are hashed to see whether their factors are cached


@dataclass(frozen=True)
class Survey:
    """What a plan knows of a recipe's models.

    Args:
        shape: Sizes.
        folder: Of the base's config.
        tokenizer: Of the tokenizer.
        download: Bytes of weights that are not here.
        factoring: Operations that factoring will take, and bytes that it will write.
        unsure: Where headers do not decide.
    """

    shape: Shape
    folder: Path
    tokenizer: Path
    download: int = 0
    factoring: tuple[float, int] = (0.0, 0)
    unsure: tuple[str, ...] = ()


@contextmanager
def survey(
    recipe: Recipe, folder: Path, note: Callable[[str], None] = lambda line: None
) -> Iterator[Survey]:
    """Look at a recipe's models for the block; relative paths start from *folder*.

    Raises:
        UserError: No such model, or not one that can be merged with the base.
        RunError: The Hub does not answer.
    """
    with looked_at(recipe, folder, note) as look:
        base, experts = look.base, look.experts
        shape = _expected(base, experts, recipe.genome.rank, recipe.genome.tail)
        unsure = []
        if None in experts:
            unsure.append("an adapter that is no plain product is counted as a full fine-tune")
        yield Survey(
            shape,
            base.checkpoint.path,
            base.tokenizer,
            look.missing,
            _factoring(base, experts, recipe.genome.rank, here=not look.missing),
            tuple(unsure),
        )


def survey_basis(basis: Basis) -> Survey:
    """The same of models that are open."""
    base = basis.base
    dense = tuple(
        tuple(basis.is_dense(slot, expert) for expert in range(len(basis.experts)))
        for slot in range(len(basis.layout.slots))
    )
    shape = Shape(basis.layout, _stored(base), dense, _config(base))
    return Survey(shape, base.checkpoint.path, base.tokenizer)


def _expected(
    base: Base,
    experts: Sequence[Expert | None],
    rank: int | Literal["full"],
    tail: Literal["tied", "drop"],
) -> Shape:
    """The shape that a basis will have if every full fine-tune differs from the base everywhere."""
    slots, ranks, tails, dense = base.slots, [], [], []
    for slot in slots:
        forms = ["dense" if expert is None else expert.form(slot) for expert in experts]
        full = min(slot.shape) if slot.is_matrix else 0
        row = [
            0
            if form is None or not slot.is_matrix
            else min(_rank(expert, slot), full)
            if form == "factors"
            else full
            if rank == "full"
            else min(rank, full)
            for form, expert in zip(forms, experts, strict=True)
        ]
        ranks.append(tuple(row))
        dense.append(tuple(form == "dense" for form in forms))
        tails.append(
            tuple(
                form == "dense" and (not slot.is_matrix or (tail == "tied" and 0 < r < full))
                for form, r in zip(forms, row, strict=True)
            )
        )
    names = tuple(map(str, range(len(experts))))
    layout = Layout(slots, names, tuple(ranks), tuple(tails))
    return Shape(layout, _stored(base), tuple(dense), _config(base))


def _rank(expert: Any, slot: Any) -> int:
    return int(expert.rank(slot))  # only adapters come in factors


def _factoring(
    base: Base, experts: Sequence[Expert | None], rank: int | Literal["full"], *, here: bool
) -> tuple[float, int]:
    from cqd_hub.genome.basis import is_factored
    from cqd_hub.genome.factor import cost

    models = [base.checkpoint.path, *(e.path for e in experts if e is not None)]
    size = sum(file.stat().st_size for path in models for file in path.glob("*.safetensors"))
    operations, written = 0.0, 0
    for expert in experts:
        if expert is not None and here and size < _SMALL and is_factored(base, expert, rank):
            continue
        for slot in base.slots:
            if slot.is_matrix and (expert is None or expert.form(slot) == "dense"):
                operations += cost(slot.shape, rank)
                kept = min(slot.shape) if rank == "full" else min(rank, *slot.shape)
                written += 4 * kept * sum(slot.shape)
    return operations, written


def _stored(base: Base) -> tuple[int, ...]:
    bits = {"F64": 64, "F32": 32}
    headers = base.checkpoint.headers
    return tuple(
        math.prod(slot.shape) * bits.get(headers[slot.tensor].dtype, 16) // 8 for slot in base.slots
    )


def _config(base: Base) -> Any:
    """Sizes of the text model, its vocabulary as long as the longest; 0 where they are not told."""
    architecture = base.stored.architecture
    if architecture is None:
        told = base.checkpoint.config
    else:
        config = architecture.model.config.get_text_config()
        told = {key: getattr(config, key, None) for key in _SIZES}

    sizes = SimpleNamespace(**{key: told.get(key) or 0 for key in _SIZES})
    if base.vocabulary is not None:
        sizes.vocab_size = base.vocabulary.rows
    return sizes

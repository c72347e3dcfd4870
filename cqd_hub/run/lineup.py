"""What children are made from: a recipe's models, the basis over them, a run's merges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cqd_hub.errors import UserError
from cqd_hub.evaluation.skills import Skill, load_skills
from cqd_hub.recipe import Recipe
from cqd_hub.run.merges import open_merges
from cqd_hub.run.models import Models, find_models, open_found

if TYPE_CHECKING:
    from cqd_hub.genome import Basis
    from cqd_hub.genome.merge.store import MergeStore
    from cqd_hub.genome.models.experts import Base, Expert


@dataclass(frozen=True)
class Lineup:
    """What a run's children are made from.

    Args:
        recipe: What was asked.
        models: Where base and experts are.
        basis: Factored experts.
        skills: With prepared samples.
        merges: The merged children of a run; None where all its crossovers are linear.
    """

    recipe: Recipe
    models: Models
    basis: Basis
    skills: dict[str, Skill]
    merges: MergeStore | None


def open_lineup(
    recipe: Recipe,
    folder: Path,
    *,
    run: Path,
    pins: Mapping[str, str],
    note: Callable[[str], None] = lambda line: None,
) -> Lineup:
    """Open what a driver needs whose workers do the rest; relative paths start from *folder*.

    Args:
        run: The run directory.
        pins: Commits of models of the Hub that a run keeps to, see `find_models`.
        note: Called with a line for what takes time.

    Raises:
        UserError: Anything wrong with merge method, models or tasks.
        RunError: A model cannot be had from the Hub now.
    """
    check_crossover(recipe)
    from cqd_hub.evaluation.engine.loading import load_tokenizer
    from cqd_hub.genome import Materialiser

    models = find_models(recipe, folder, pins=pins, note=note)
    base, experts = open_found(models, note)
    skills = load_skills(recipe, folder, load_tokenizer(base.tokenizer), note=note)
    with models.speaking(note) as told:
        basis = factor(recipe, base, experts, told)
    merges = open_merges(run, recipe)
    if merges is not None:
        Materialiser(basis, device="cpu", merges=merges)  # attaches itself
    return Lineup(recipe, models, basis, skills, merges)


def open_basis(
    recipe: Recipe,
    folder: Path,
    *,
    expected: str | None = None,
    pins: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Basis:
    """The basis of a recipe's models.

    Args:
        recipe: Names the models; relative paths start from *folder*.
        pins: Commits of models of the Hub that a run keeps to, see `find_models`.
        expected: Hash of the basis that a run's genomes refer to.
        note: Called with a line for what takes time.

    Raises:
        UserError: Anything wrong with the models, or not the *expected* ones.
    """
    models = find_models(recipe, folder, pins=pins, note=note)
    with models.speaking(note) as told:
        basis = factor(recipe, *open_found(models, note), told)
    check_basis(basis, expected, folder)
    return basis


def check_crossover(recipe: Recipe) -> None:
    """Ask mergekit for the method and its parameters, which takes no model."""
    crossover = recipe.variation.crossover
    if crossover.method != "linear":
        from cqd_hub.genome.merge import check_method

        check_method(crossover.method, crossover.parameters)


def check_basis(basis: Basis, expected: str | None, folder: Path) -> None:
    if expected not in (None, basis.hash):
        raise UserError(
            "base or experts are not those the run was made with",
            where=str(folder),
            remedy="restore them",
        )


def factor(
    recipe: Recipe,
    base: Base,
    experts: Sequence[Expert],
    note: Callable[[str], None],
) -> Basis:
    from cqd_hub.genome import build_basis, refuse_tails

    settings, mutation = recipe.genome, recipe.variation.mutation
    basis = build_basis(base, experts, rank=settings.rank, tail=settings.tail, progress=note)
    if mutation.kind == "svd" and mutation.of == "child":
        refuse_tails(basis)
    for name, kept in zip(recipe.experts, shares_kept(basis), strict=True):
        if kept < 0.9:
            note(f"expert {name}: the basis keeps only {kept:.0%} of some matrix's task vector")
    return basis


def shares_kept(basis: Basis) -> list[float]:
    """Per expert, the least share of ‖τ‖² that any matrix keeps in the basis; 1 with tails."""
    return [1.0 if basis.has_tails else min(row.values(), default=1.0) for row in basis.retained]

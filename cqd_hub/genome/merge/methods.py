"""mergekit's methods as crossovers of two parents, known from its own registry.

Importing mergekit takes seconds and most of transformers, so nothing here does before a method is
asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cqd_hub.errors import UserError

if TYPE_CHECKING:
    import torch

# The shared parameter that says how far the child lies towards the second parent. mergekit does
# not tell it from others of the same name: nearswap's t is a distance.
_SHARE = {"slerp": "t"}
# Proportions, which mergekit takes at any value and then clips or ignores.
_PROPORTIONS = ("density", "gamma", "select_topk")
_BASE, _FIRST, _SECOND = "base", "first", "second"
_WHERE = "variation.crossover"


@dataclass(frozen=True)
class Method:
    """A registered method that can merge two parents.

    Args:
        name: In mergekit's registry.
        base: Where the base model stands: ``"beside"`` the parents; nowhere (``"none"``); or the
            method takes two models of which one is called its base: then that is the
            ``"first"`` parent.
        drawn: The parameter drawn for every child: ``weight`` per parent, or a shared share.
    """

    name: str
    base: Literal["beside", "first", "none"]
    drawn: str | None

    @property
    def per_parent(self) -> bool:
        """Whether `drawn` has one value per parent."""
        return self.drawn == "weight"

    def merge(
        self,
        parents: Sequence[torch.Tensor],
        base: torch.Tensor,
        parameters: Mapping[str, Any],
        *,
        name: str,
    ) -> torch.Tensor:
        """Merge one tensor of two parents in fp32, by mergekit.

        Args:
            parents: Two fp32 tensors of one shape and device.
            base: The base's, likewise.
            parameters: Name → number, or list of one number per parent.
            name: The tensor's, for messages.

        Raises:
            UserError: The method cannot do it with these parameters, or its result is not finite.
        """
        import torch
        from mergekit.merge_methods import merge_tensors

        ids, tensors = [_FIRST, _SECOND], list(parents)
        if self.base == "beside":
            ids, tensors = [_BASE, *ids], [base, *tensors]
        bound = {
            key: dict(zip((_FIRST, _SECOND), value, strict=True))
            if isinstance(value, list | tuple)
            else value
            for key, value in parameters.items()
        }
        try:
            merged = merge_tensors(
                tensors,
                self.name,
                parameters=bound,
                ids=ids,
                base_index=None if self.base == "none" else 0,
                name=name,
                dtype=torch.float32,
            )
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"{self.name} cannot merge {name}: {_first_line(error)}",
                where=_WHERE,
                remedy="change its parameters or choose another method",
            ) from None
        if not torch.isfinite(merged).all():
            raise UserError(
                f"{self.name} makes NaN or infinity of {name}",
                where=_WHERE,
                remedy="change its parameters or choose another method",
            )
        return merged


def find_method(name: str) -> Method:
    """A registered method by name.

    Raises:
        UserError: mergekit is not installed, does not know the name, or the method does not merge
            two models.
    """
    registry = _registry()
    if name not in registry:
        known = sorted(registry)
        close = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"no merge method {name!r}",
            where=f"{_WHERE}.method",
            remedy=f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}",
        )
    spec = registry[name].spec
    weighted = any(parameter.name == "weight" for parameter in spec.input_parameters)
    drawn = "weight" if weighted else _SHARE.get(name)
    return Method(name, _place_of_base(registry[name]), drawn)


def check_method(name: str, parameters: Mapping[str, Any]) -> Method:
    """Find a method and check parameters against mergekit's registry, before anything is opened.

    Last of all the method is tried on two small matrices: some limits lie between parameters, and
    only the method knows them.

    Args:
        name: In mergekit's registry.
        parameters: As in the recipe: name → number, or list of one number per parent.

    Raises:
        UserError: Unknown method or parameter, a bad value, or one that is missing.
    """
    method = find_method(name)
    specs = {spec.name: spec for spec in _registry()[name].spec.parameters}
    for key, value in parameters.items():
        if key not in specs:
            close = difflib.get_close_matches(key, specs, n=1)
            known = f"it has {', '.join(sorted(specs))}" if specs else "it has none"
            raise UserError(
                f"{name} has no parameter {key!r}",
                where=f"{_WHERE}.parameters",
                remedy=f"did you mean {close[0]!r}?" if close else known,
            )
        _check_value(name, specs[key], value)
    for key, spec in specs.items():
        if spec.required and key not in parameters and key != method.drawn:
            raise UserError(
                f"{name} needs the parameter {key!r}",
                where=f"{_WHERE}.parameters",
                remedy="add it",
            )
    given = dict(parameters)
    if method.drawn is not None:
        given.setdefault(method.drawn, [0.5, 0.5] if method.per_parent else 0.5)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base, first, second = torch.randn(3, 8, 8)
        method.merge([base + 0.1 * first, base + 0.1 * second], base, given, name="a matrix")
    return method


def _check_value(method: str, spec: Any, value: Any) -> None:
    where = f"{_WHERE}.parameters.{spec.name}"
    each = value if isinstance(value, list | tuple) else [value]
    if each is value and (spec.scope.value == "shared" or len(each) != 2):
        takes = "one number" if spec.scope.value == "shared" else "a number or one for each parent"
        raise UserError(f"{method} takes {takes}, not {list(value)!r}", where=where)
    for one in each:
        try:
            number = spec.validate(one)
        except ValueError as error:  # pydantic's, which the genome does without
            problem = error.errors()[0]["msg"]  # type: ignore[attr-defined]
            raise UserError(
                f"{problem[0].lower()}{problem[1:]}, not {one!r}", where=where
            ) from None
        if spec.name in _PROPORTIONS and not 0 <= number <= 1:
            raise UserError(f"is a proportion, not {one!r}", where=where, remedy="use 0 to 1")


def _place_of_base(method: Any) -> Literal["beside", "first", "none"]:
    policy = method.spec.contract.base.value
    tried: list[tuple[Literal["beside", "first", "none"], list[str], str | None]] = []
    if policy in ("required", "optional"):
        tried.append(("beside", [_BASE, _FIRST, _SECOND], _BASE))
    if policy == "required":
        tried.append(("first", [_FIRST, _SECOND], _FIRST))
    else:
        tried.append(("none", [_FIRST, _SECOND], None))
    problem = ""
    for place, ids, base in tried:
        try:
            method.validate_inputs(ids, base)
        except ValueError as error:
            problem = _first_line(error)
        else:
            return place
    raise UserError(
        f"{method.spec.name} does not merge two parents: {problem[0].lower()}{problem[1:]}",
        where=f"{_WHERE}.method",
        remedy="choose another method",
    )


def _registry() -> dict[str, Any]:
    try:
        from mergekit.merge_methods import registered_methods
    except ImportError:
        raise UserError(
            "merge methods other than linear need mergekit",
            where=f"{_WHERE}.method",
            remedy="pip install 'cqd-hub[mergekit]'",
        ) from None
    return {method.spec.name: method for method in registered_methods()}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

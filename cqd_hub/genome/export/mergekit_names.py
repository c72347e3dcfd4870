"""What mergekit calls a base's tensors and folders, and what of a run it can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.export.checkpoint import stored_parts
from cqd_hub.genome.export.peft import site
from cqd_hub.genome.models.checkpoint import Checkpoint
from cqd_hub.genome.models.experts import Base, is_adapter

# Whose tensors mergekit 0.1.5 does not find.
_UNMERGEABLE = {"gpt_neox": "GPT-NeoX"}
# Those that it knows by name. It looks at the models of all others before it has merged their
# adapters, and fails.
_TAKES_ADAPTERS = {
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
}


def local_reference(path: Path) -> str:
    """A local folder as mergekit reads it: absolute.

    Raises:
        UserError: The path holds ``+`` or ``@``.
    """
    absolute = str(path.absolute())
    if held := [sign for sign in "+@" if sign in absolute]:
        raise UserError(
            f"its path holds {held[0]!r}, which mergekit reads as "
            + ("an adapter" if held[0] == "+" else "a revision"),
            where=absolute,
            remedy="rename or link it to a path without + and @",
        )
    return absolute


def refuse_unmergeable(base: Base) -> None:
    """Raise a `UserError` for an architecture that mergekit is known to fail on."""
    kind = str(base.checkpoint.config.get("model_type"))
    if kind in _UNMERGEABLE:
        raise UserError(
            f"mergekit 0.1.5 cannot merge {_UNMERGEABLE[kind]} models",
            where=str(base.checkpoint.path),
            remedy="export a checkpoint",
        )


def takes_adapters(base: Base) -> bool:
    """Whether a recipe over this base may name adapters (``base+adapter``)."""
    return base.checkpoint.config.get("model_type") in _TAKES_ADAPTERS


def tensor_names(basis: Basis) -> list[str]:
    """Per slot, (the end of) what mergekit calls the tensor it lies in: several may share one.

    mergekit goes by names in memory, where a mixture's experts are one tensor, but leaves out the
    outermost module of some models.
    """
    stored, architecture = basis.base.stored, basis.base.stored.architecture
    names = []
    for slot in basis.layout.slots:
        place = stored.places.get(slot.tensor)
        if place is None or architecture is None:
            names.append(slot.tensor)
            continue
        prefix = f"{architecture.model.base_model_prefix}."
        names.append(
            place.parameter if prefix == "model." else place.parameter.removeprefix(prefix)
        )
    return names


def common_in_tensors(basis: Basis, values: np.ndarray) -> np.ndarray:
    """Make ``[slots, n]`` values equal in the slots of one tensor: mergekit has one for each.

    Where they differ the mean is taken, or 0 if one of them is.
    """
    result = values.copy()
    members: dict[str, list[int]] = {}
    for index, name in enumerate(tensor_names(basis)):
        members.setdefault(name, []).append(index)
    for indices in members.values():
        block = values[indices]
        zero = (block == 0).any(0)
        same = (block == block[0]).all(0)
        result[indices] = np.where(same, block[0], np.where(zero, 0.0, block.mean(0)))
    return result


def usable(basis: Basis, expert: int) -> bool:
    """Whether mergekit reads an expert as it was read here.

    That is a full fine-tune with the base's tensors, or a LoRA adapter of its linear layers.
    """
    made = basis.experts[expert]
    if is_adapter(made):
        return takes_adapters(basis.base) and all(
            (form := made.form(slot)) is None
            or (
                form == "factors"
                and (found := site(basis, slot)) is not None
                and found[0].kind in ("linear", "conv1d")
            )
            for slot in basis.layout.slots
        )
    mine = Checkpoint(made.path).headers
    return all(
        part.name in mine and mine[part.name].shape == part.shape
        for part in stored_parts(basis)
        if part.slots and part.name not in basis.base.inventory.aliases
    )

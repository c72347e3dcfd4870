"""PEFT's names and layouts for what an adapter of the base holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from cqd_hub.genome.basis import Basis
from cqd_hub.genome.layout import Slot
from cqd_hub.genome.models.architecture import Architecture, Place
from cqd_hub.genome.models.experts import LowRank

Purpose = Literal["attach", "merge"]
_PREFIX = "base_model.model."
_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")


class Site(NamedTuple):
    """What PEFT adapts as one.

    Args:
        name: In-memory path of the module; of the parameter where it is adapted by itself.
        kind: What sort of module it is; says how factors are laid out.
        shape: ``[rows, columns]`` of the matrix, or of each matrix of a stack.
        members: Matrices in the stack (a mixture's experts); 1 where there is none.
        kernel: A convolution's, with its input channels first.
        ties: Linear modules that share an embedding's weight.
        vocabulary: It has one row per token.
        turned: Its stacked matrices are stored [in, out].
    """

    name: str
    kind: Literal["linear", "conv1d", "embedding", "convolution", "parameter"]
    shape: tuple[int, int]
    members: int = 1
    kernel: tuple[int, ...] = ()
    ties: tuple[str, ...] = ()
    vocabulary: bool = False
    turned: bool = False


class Piece(NamedTuple):
    """Which part of a site a slot is: a block of matrix number *member*, or that transposed."""

    member: int = 0
    row: int = 0
    column: int = 0
    transposed: bool = False


def site(basis: Basis, slot: Slot) -> tuple[Site, Piece] | None:
    """Where PEFT's LoRA takes a matrix slot, or None if it has no place for it.

    It has none for grouped convolutions, nor for rows that the base itself does not have.
    """
    stored, architecture = basis.base.stored, basis.base.stored.architecture
    header = stored.checkpoint.headers[slot.tensor]
    if slot.index is None and _numbers(header.shape) != _numbers(slot.shape):
        return None
    if architecture is None:
        named = _by_name(basis, slot)
        return (named, Piece()) if named else None
    place = stored.places.get(slot.tensor)
    if place is None:
        return None
    path, _, leaf = place.parameter.rpartition(".")
    kind = _kind(architecture, path)
    parameter = architecture.parameters[place.parameter]
    whole = place.size == tuple(parameter.shape)
    if kind is None or leaf != "weight" or _taken_for_experts(architecture, path):
        return _in_parameter(architecture, place, slot)
    if slot.index is not None or not (whole or kind == "linear"):
        return None
    rows, columns = slot.shape if whole else parameter.shape
    piece = Piece() if whole else _piece(place, rows, columns)
    found = Site(
        path,
        kind,
        (rows, columns),
        kernel=place.size[1:] if kind == "convolution" else (),
        ties=_ties(architecture, place.parameter) if kind == "embedding" else (),
        vocabulary=place.parameter in architecture.vocabulary,
    )
    return (found, piece) if piece else None


def lora_tensors(
    site: Site, products: Sequence[LowRank], purpose: Purpose, *, depth: int = 0
) -> dict[str, torch.Tensor]:
    """One site's factors under PEFT's names (and those of the head tied to an embedding).

    Args:
        site: Where they go.
        products: Of each matrix of the stack, of one rank; else of the one matrix.
        purpose: See `Purpose`.
        depth: How many wrappers of other parameters PEFT puts around this parameter's.
    """
    up, down = products[0]
    key = f"{_PREFIX}{site.name}"
    if site.kind == "parameter":
        key = f"{_PREFIX}{site.name.rpartition('.')[0]}" + ".base_layer" * depth
        if site.turned:
            products = [LowRank(p.down.T, p.up.T) for p in products]
        # lora_A is a stack of [r, in]; in lora_B's [out, r, members] the member goes last.
        down = torch.cat([product.down for product in products])
        up = torch.stack([product.up for product in products], 2).flatten(1)
    elif site.kind == "conv1d":  # stored [in, out]
        up, down = down.T, up.T
    elif site.kind == "convolution":
        ones = (1,) * (len(site.kernel) - 1)
        down, up = down.reshape(-1, *site.kernel), up.reshape(*up.shape, *ones)
    elif site.kind == "embedding":
        tensors = {f"{key}.lora_embedding_A": up.T, f"{key}.lora_embedding_B": down.T}
        for tied in site.ties if purpose == "attach" else ():
            tensors[f"{_PREFIX}{tied}.lora_A.weight"] = down
            tensors[f"{_PREFIX}{tied}.lora_B.weight"] = up
        return tensors
    return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}


def wrapper_depths(basis: Basis, sites: Collection[Site]) -> dict[Site, int]:
    """For parameters adapted by themselves: how many of their module's wrap each from outside.

    PEFT wraps a module anew for each of its parameters, in the module's own order.
    """
    owners: dict[str, list[Site]] = {}
    for where in sites:
        if where.kind == "parameter":
            owners.setdefault(where.name.rpartition(".")[0], []).append(where)
    architecture = basis.base.stored.architecture
    depths: dict[Site, int] = {}
    for path, held in owners.items():
        assert architecture is not None  # only it knows parameters
        module = architecture.model.get_submodule(path)
        order = [f"{path}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
        held.sort(key=lambda where: order.index(where.name))
        depths |= {where: len(held) - 1 - number for number, where in enumerate(held)}
    return depths


def lora_config(
    ranks: Mapping[Site, int],
    *,
    base_name: str,
    purpose: Purpose,
    modules_to_save: Sequence[str] = (),
    biases: bool = False,
) -> dict[str, object]:
    """``adapter_config.json`` of modules with these ranks; alpha = rank, so that the scale is 1."""
    named: dict[str, int] = {}
    for where, rank in ranks.items():
        named |= dict.fromkeys((where.name, *(where.ties if purpose == "attach" else ())), rank)
    common = Counter(named.values()).most_common(1)[0][0]
    pattern = {re.escape(name): rank for name, rank in sorted(named.items()) if rank != common}
    parameters = sorted(where.name for where in ranks if where.kind == "parameter")
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(named.keys() - set(parameters)),
        "modules_to_save": list(modules_to_save) or None,
        "lora_dropout": 0.0,
        "bias": "all" if biases else "none",
        "fan_in_fan_out": any(where.kind == "conv1d" for where in ranks),
        "inference_mode": True,
    }
    if parameters:
        config["target_parameters"] = parameters
    if purpose == "attach" and any(where.ties for where in ranks):
        config["ensure_weight_tying"] = True
    return config


class VectorSite(NamedTuple):
    """Where an adapter keeps a norm or bias: in a module saved whole, or as a bias."""

    module: str
    leaf: str
    saved: bool


def vector_site(basis: Basis, slot: Slot) -> VectorSite | None:
    """Where PEFT takes a vector slot, or None if it has no place for it."""
    architecture, stored = basis.base.stored.architecture, basis.base.stored
    if architecture is None:
        module, _, leaf = slot.tensor.rpartition(".")
        return VectorSite(module, leaf, saved=True) if leaf == "weight" else None
    place = stored.places.get(slot.tensor)
    if place is None or place.size != tuple(architecture.parameters[place.parameter].shape):
        return None
    path, _, leaf = place.parameter.rpartition(".")
    module = architecture.model.get_submodule(path)
    if leaf == "bias" and _kind(architecture, path) is not None:
        return VectorSite(path, leaf, saved=False)
    if any(True for _ in module.children()):
        return None
    whole = all(tensor.ndim < 2 for tensor in module.parameters())
    return VectorSite(path, leaf, saved=True) if whole else None


def vector_tensors(
    basis: Basis, values: Mapping[VectorSite, torch.Tensor], adapted: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the values under PEFT's names, and what else the modules saved whole hold.

    Args:
        basis: Of the base's own values.
        values: The individual's.
        adapted: Modules with factors: PEFT wraps them, and so moves their biases.
    """
    done = {(where.module, where.leaf) for where in values}
    for where, value in values.items():
        wrapped = ".base_layer" if not where.saved and where.module in adapted else ""
        yield f"{_PREFIX}{where.module}{wrapped}.{where.leaf}", value
        architecture = basis.base.stored.architecture
        if not where.saved or architecture is None:
            continue
        for leaf, _ in architecture.model.get_submodule(where.module).named_parameters():
            if (where.module, leaf) in done:
                continue
            done.add((where.module, leaf))
            slot = basis.base.slot_of(f"{where.module}.{leaf}")
            assert slot is not None  # every parameter of a loaded base is stored
            yield f"{_PREFIX}{where.module}.{leaf}", basis.base.weight(slot).float()


def _kind(
    architecture: Architecture, path: str
) -> Literal["linear", "conv1d", "embedding", "convolution"] | None:
    from transformers.pytorch_utils import Conv1D

    module = architecture.model.get_submodule(path)
    if isinstance(module, torch.nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        return "convolution" if module.groups == 1 and not module.transposed else None
    return None


def _taken_for_experts(architecture: Architecture, path: str) -> bool:
    """Whether PEFT would take a dense layer of a mixture for one of its experts, by its name.

    It rewrites adapters that were made when experts were modules (0.21.2); naming the layer's
    parameter instead of the layer keeps out of that.
    """
    mixture = any(tensor.ndim == 3 for tensor in architecture.parameters.values())
    return mixture and path.rpartition(".")[2] in _EXPERTS


def _ties(architecture: Architecture, parameter: str) -> tuple[str, ...]:
    return tuple(
        name.removesuffix(".weight")
        for name, source in architecture.ties.items()
        if source == parameter and _kind(architecture, name.rpartition(".")[0]) == "linear"
    )


def _in_parameter(
    architecture: Architecture, place: Place, slot: Slot
) -> tuple[Site, Piece] | None:
    """A matrix that is (a block of) a bare parameter, or of one matrix of a stacked one."""
    path = place.parameter.rpartition(".")[0]
    module, parameter = (
        architecture.model.get_submodule(path),
        architecture.parameters[place.parameter],
    )
    if isinstance(module, torch.nn.modules.conv._ConvNd) or parameter.ndim not in (2, 3):
        return None
    rows, columns = parameter.shape[-2:]
    found = Site(
        place.parameter,
        "parameter",
        (rows, columns),
        members=parameter.shape[0] if parameter.ndim == 3 else 1,
        turned=parameter.ndim == 3 and bool(getattr(module, "is_transposed", False)),
    )
    if slot.index is not None:
        alike = place.size == tuple(parameter.shape) and place.stride == parameter.stride()
        return (found, Piece(slot.index)) if alike else None
    piece = _piece(place, rows, columns)
    return (found, piece) if piece else None


def _piece(place: Place, rows: int, columns: int) -> Piece | None:
    """Where a stored matrix lies in a parameter of matrices [rows, columns]."""
    if len(place.size) != 2 or place.stride not in ((columns, 1), (1, columns)):
        return None
    member, inner = divmod(place.offset, rows * columns)
    return Piece(member, *divmod(inner, columns), place.stride != (columns, 1))


def _numbers(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _by_name(basis: Basis, slot: Slot) -> Site | None:
    module = slot.tensor.removesuffix(".weight")
    if module == slot.tensor or len(slot.shape) != 2:
        return None
    shape = (slot.shape[0], slot.shape[1])
    if module.rsplit(".", 1)[-1] not in _EMBEDDINGS:
        return Site(module, "linear", shape, vocabulary=module == "lm_head")
    tied = bool(basis.base.checkpoint.config.get("tie_word_embeddings"))
    ties = ("lm_head",) if tied else ()
    return Site(module, "embedding", shape, ties=ties, vocabulary=True)

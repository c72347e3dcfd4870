"""PEFT's names and layouts for what an adapter of the base holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from cqd_hub.genome.architecture import Architecture
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.experts import LowRank
from cqd_hub.genome.layout import Slot

Purpose = Literal["attach", "merge"]
_PREFIX = "base_model.model."
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")


class Site(NamedTuple):
    """Where PEFT adapts a slot.

    Args:
        module: In-memory path.
        kind: What sort of module it is; says how factors are laid out.
        kernel: A convolution's, with its input channels first.
        ties: Linear modules that share an embedding's weight.
        vocabulary: It has one row per token.
    """

    module: str
    kind: Literal["linear", "conv1d", "embedding", "convolution"]
    kernel: tuple[int, ...] = ()
    ties: tuple[str, ...] = ()
    vocabulary: bool = False


def site(basis: Basis, slot: Slot) -> Site | None:
    """Where PEFT's LoRA takes a matrix slot, or None if it has no place for it.

    Not for stacked experts, parts of a fused parameter, grouped convolutions, parameters of no
    standard module, or rows that the base itself does not have.
    """
    stored, architecture = basis.base.stored, basis.base.stored.architecture
    header = stored.checkpoint.headers[slot.tensor]
    if slot.index is not None or torch.Size(header.shape).numel() != torch.Size(slot.shape).numel():
        return None
    if architecture is None:
        return _by_name(basis, slot)
    place = stored.places.get(slot.tensor)
    if place is None or place.size != tuple(architecture.parameters[place.parameter].shape):
        return None
    module, _, leaf = place.parameter.rpartition(".")
    kind = _kind(architecture, module)
    if leaf != "weight" or kind is None:
        return None
    return Site(
        module,
        kind,
        kernel=place.size[1:] if kind == "convolution" else (),
        ties=_ties(architecture, place.parameter) if kind == "embedding" else (),
        vocabulary=place.parameter in architecture.vocabulary,
    )


def lora_tensors(site: Site, product: LowRank, purpose: Purpose) -> dict[str, torch.Tensor]:
    """One module's factors under PEFT's names (and those of the head tied to an embedding)."""
    up, down = product
    key = f"{_PREFIX}{site.module}"
    if site.kind == "linear":
        return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    if site.kind == "conv1d":  # stored [in, out]
        return {f"{key}.lora_A.weight": up.T, f"{key}.lora_B.weight": down.T}
    if site.kind == "convolution":
        ones = (1,) * (len(site.kernel) - 1)
        return {
            f"{key}.lora_A.weight": down.reshape(-1, *site.kernel),
            f"{key}.lora_B.weight": up.reshape(*up.shape, *ones),
        }
    tensors = {f"{key}.lora_embedding_A": up.T, f"{key}.lora_embedding_B": down.T}
    if purpose == "attach":
        for tied in site.ties:
            tensors[f"{_PREFIX}{tied}.lora_A.weight"] = down
            tensors[f"{_PREFIX}{tied}.lora_B.weight"] = up
    return tensors


def lora_config(
    ranks: Mapping[Site, int],
    *,
    base_name: str,
    purpose: Purpose,
    modules_to_save: Sequence[str] = (),
    biases: bool = False,
) -> dict[str, object]:
    """``adapter_config.json`` of modules with these ranks; alpha = rank, so that the scale is 1."""
    by_module: dict[str, int] = {}
    for where, rank in ranks.items():
        by_module |= dict.fromkeys(
            (where.module, *(where.ties if purpose == "attach" else ())), rank
        )
    common = Counter(by_module.values()).most_common(1)[0][0]
    pattern = {
        re.escape(module): rank for module, rank in sorted(by_module.items()) if rank != common
    }
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(by_module),
        "modules_to_save": list(modules_to_save) or None,
        "lora_dropout": 0.0,
        "bias": "all" if biases else "none",
        "fan_in_fan_out": any(where.kind == "conv1d" for where in ranks),
        "inference_mode": True,
    }
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


def _ties(architecture: Architecture, parameter: str) -> tuple[str, ...]:
    return tuple(
        name.removesuffix(".weight")
        for name, source in architecture.ties.items()
        if source == parameter and _kind(architecture, name.rpartition(".")[0]) == "linear"
    )


def _by_name(basis: Basis, slot: Slot) -> Site | None:
    module = slot.tensor.removesuffix(".weight")
    if module == slot.tensor or len(slot.shape) != 2:
        return None
    if module.rsplit(".", 1)[-1] not in _EMBEDDINGS:
        return Site(module, "linear", vocabulary=module == "lm_head")
    tied = bool(basis.base.checkpoint.config.get("tie_word_embeddings"))
    return Site(module, "embedding", ties=("lm_head",) if tied else (), vocabulary=True)

"""An expert seen as task vectors: per slot either two exact low-rank factors or a dense delta."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.checkpoint import Checkpoint

_NOT_A_PRODUCT = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
# PEFT takes the initial product out of the base again whenever such an adapter is loaded.
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_QUANTISED = ("quantization_config", "compression_config")


class LowRank(NamedTuple):
    """τ = up @ down with ``up`` [out, r] and ``down`` [r, in], fp32."""

    up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class Base:
    """The common ancestor."""

    checkpoint: Checkpoint

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of its stored tensors, sorted; tied copies left out."""
        return tuple(sorted(untied(self.checkpoint)))


@dataclass(frozen=True)
class _Expert:
    """A model fine-tuned from the base, as the checkpoint it was read from."""

    base: Base
    checkpoint: Checkpoint

    @property
    def path(self) -> Path:
        """The folder it was read from."""
        return self.checkpoint.path

    @property
    def content_hash(self) -> str:
        """Hash of its weights, and of an adapter's config."""
        return self.checkpoint.content_hash


@dataclass(frozen=True)
class FullExpert(_Expert):
    """A full fine-tune: a checkpoint with the base's tensors."""

    def weight(self, slot: str) -> torch.Tensor:
        """Its own tensor, in the dtype it was saved in."""
        return self.checkpoint.tensor(slot)

    def task_vector(self, slot: str) -> torch.Tensor:
        """Expert minus base, subtracted in fp32.

        Raises:
            UserError: It or the base's tensor holds NaN or infinity.
        """
        own, base = self.weight(slot).float(), self.base.checkpoint.tensor(slot).float()
        _finite(base, slot, self.base.checkpoint.path)
        return _finite(own, slot, self.path) - base


@dataclass(frozen=True)
class LoraExpert(_Expert):
    """A PEFT LoRA adapter: its factors are its task vector, exactly."""

    @cached_property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """Slot → names of its A and B tensors."""
        found: dict[str, dict[str, str]] = {}
        for name in self.checkpoint.headers:
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
            if not match:
                raise UserError(
                    f"tensor {name} is no plain LoRA factor of a linear layer",
                    where=str(self.path),
                    remedy="merge it first (peft: merge_and_unload) and give the merged model",
                )
            found.setdefault(f"{match[1]}.weight", {})[match[2]] = name
        for slot, pair in found.items():
            if slot not in self.base.names or set(pair) != {"A", "B"}:
                raise UserError(
                    f"adapts {slot}, which the base does not have",
                    where=str(self.path),
                    remedy="is it an adapter of this base?",
                )
        return {slot: (pair["A"], pair["B"]) for slot, pair in found.items()}

    def scaling(self, slot: str) -> float:
        """lora_alpha / r (/ √r if rank-stabilised), with PEFT's rank and alpha patterns."""
        config = self.checkpoint.config
        module = slot.removesuffix(".weight")
        rank = _pattern(config.get("rank_pattern") or {}, module, config["r"])
        alpha = _pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
        return alpha / (rank**0.5 if config.get("use_rslora") else rank)

    def task_vector(self, slot: str) -> LowRank | None:
        """The adapter's factors in fp32, its scaling folded into ``up``."""
        if slot not in self.pairs:
            return None
        down, up = (self.checkpoint.tensor(name).float() for name in self.pairs[slot])
        _finite(up, slot, self.path)
        _finite(down, slot, self.path)
        return LowRank(up * self.scaling(slot), down)


def open_base(path: Path) -> Base:
    """Open a base model folder.

    Raises:
        UserError: Missing, pickled, damaged or quantised.
    """
    checkpoint = Checkpoint(path)
    _refuse_quantised(checkpoint.config, path)
    _ = checkpoint.headers
    return Base(checkpoint)


def open_expert(base: Base, path: Path) -> FullExpert | LoraExpert:
    """Open an expert and check from configs and headers that it is one of *base*.

    Raises:
        UserError: Not an expert of this base: architecture, shapes, vocabulary, missing tensors;
            or an adapter kind whose task vector is not a plain product.
    """
    if (path / "adapter_config.json").exists():
        lora = LoraExpert(base, Checkpoint(path, stem="adapter_model"))
        _check_adapter(lora)
        return lora
    expert = FullExpert(base, Checkpoint(path))
    _check_full(expert)
    return expert


def untied(checkpoint: Checkpoint) -> set[str]:
    """Names of the stored tensors without an output head that is tied to the embedding."""
    names = set(checkpoint.headers)
    if checkpoint.config.get("tie_word_embeddings") and "lm_head.weight" in names:
        names.discard("lm_head.weight")
    return names


def _check_full(expert: FullExpert) -> None:
    where, base = str(expert.path), expert.base.checkpoint
    _refuse_quantised(expert.checkpoint.config, expert.path)
    for key in ("architectures", "vocab_size", "tie_word_embeddings"):
        mine, theirs = expert.checkpoint.config.get(key), base.config.get(key)
        if mine != theirs:
            raise UserError(
                f"{key} is {mine}, the base {base.path} has {theirs}",
                where=where,
                remedy="use experts fine-tuned from this base",
            )
    names = untied(expert.checkpoint)
    different = sorted(names ^ set(expert.base.names))
    if different:
        owner = "the base" if different[0] in names else "it"
        raise UserError(
            f"{owner} has no tensor {different[0]} ({len(different)} differ)",
            where=where,
            remedy="use experts fine-tuned from this base",
        )
    for name in expert.base.names:
        mine, theirs = expert.checkpoint.headers[name].shape, base.headers[name].shape
        if mine != theirs:
            raise UserError(
                f"{name} has shape {list(mine)}, the base's is {list(theirs)}",
                where=where,
                remedy="use experts fine-tuned from this base",
            )


def _check_adapter(expert: LoraExpert) -> None:
    config, where = expert.checkpoint.config, str(expert.path)
    remedy = "merge it first (peft: merge_and_unload) and give the merged model"
    if config.get("peft_type") != "LORA":
        raise UserError(f"is a {config.get('peft_type')} adapter", where=where, remedy=remedy)
    for key in _NOT_A_PRODUCT:
        if config.get(key):
            raise UserError(f"{key} is set", where=where, remedy=remedy)
    start = str(config.get("init_lora_weights", ""))
    if start.startswith(_MOVES_THE_BASE):
        raise UserError(f"init_lora_weights {start} changes the base", where=where, remedy=remedy)
    headers, base = expert.checkpoint.headers, expert.base.checkpoint.headers
    for slot, (down, up) in expert.pairs.items():
        shape = (headers[up].shape[0], headers[down].shape[1])
        if shape != base[slot].shape:
            raise UserError(
                f"its factors make {slot} {list(shape)}, the base's is {list(base[slot].shape)}",
                where=where,
                remedy="is it an adapter of this base?",
            )


def _refuse_quantised(config: dict[str, Any], path: Path) -> None:
    for key in _QUANTISED:
        if config.get(key):
            raise UserError(
                "is quantised; its weights cannot be merged",
                where=str(path),
                remedy="use the unquantised original",
            )


def _pattern(pattern: dict[str, Any], module: str, default: float) -> float:
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default


def _finite(tensor: torch.Tensor, slot: str, path: Path) -> torch.Tensor:
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"{slot} holds NaN or infinity", where=str(path), remedy="save or train it again"
        )
    return tensor

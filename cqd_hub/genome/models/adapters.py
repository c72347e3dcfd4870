"""An expert given as a PEFT adapter: read natively where its task vector has a closed form.

That is LoRA in all its spellings (PEFT 0.21): linear layers, Conv1D, embeddings and convolutions,
rank and alpha patterns, rsLoRA, biases, whole modules and single tokens saved beside the factors,
and DoRA. What PEFT can merge beyond that is folded into a full checkpoint; the rest is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.layout import Slot
from cqd_hub.genome.models.adapter_parts import (
    MERGE_FIRST,
    Part,
    in_pieces,
    read_parts,
    slot_of,
    tied_source,
)
from cqd_hub.genome.models.checkpoint import Checkpoint
from cqd_hub.genome.models.experts import Base, FullExpert, LowRank, finite
from cqd_hub.genome.models.fold import fold

_PROMPTS = (
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
)
_ROUTED = ("LILY", "POLY", "SHADOW", "XLORA")
_UNMERGEABLE = {
    "alora_invocation_tokens": "its factors act only after certain tokens",
    "arrow_config": "a router mixes several adapters per token",
    "layer_replication": "it makes layers that the base does not have",
    "use_bdlora": "PEFT cannot merge its block-diagonal factors",
    "use_qalora": "its factors fit quantised weights only",
}
_FOLDED = ("kasa_config", "monteclora_config", "target_parameters", "velora_config")
# These starts take their first product out of the base again whenever the adapter is loaded.
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_READ = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}
_QUANTISED = ("bnb", "4bit", "8bit", "int4", "int8", "gptq", "awq", "fp8", "gguf")


@dataclass(frozen=True)
class AdapterExpert:
    """A LoRA adapter, whose factors are its task vector, exactly.

    Args:
        base: The ancestor.
        checkpoint: The adapter's folder (stem ``"adapter_model"``).
    """

    base: Base
    checkpoint: Checkpoint

    @property
    def path(self) -> Path:
        """The folder it was read from."""
        return self.checkpoint.path

    @property
    def content_hash(self) -> str:
        """Hash of its weights and its config."""
        return self.checkpoint.content_hash

    @cached_property
    def parts(self) -> dict[str, Part]:
        """Slot name → what the adapter does there.

        Raises:
            UserError: The adapter does not fit the base, or treats tied weights differently.
        """
        found: dict[str, list[Part]] = {}
        for parameter, part in read_parts(self.base, self.checkpoint).items():
            slot = slot_of(self.base, parameter)
            assert slot is not None  # else read_parts has refused it
            found.setdefault(slot.name, []).append(part)
        for first, *others in found.values():
            if not others:
                self._check_tie(first)
            for other in others:
                if not self._equal(first, other):
                    self._refuse_untied(other, f"otherwise than {first.parameter}")
        return {name: parts[0] for name, parts in found.items()}

    def form(self, slot: Slot) -> Literal["dense", "factors"] | None:
        """How its task vector comes in *slot*; None where it changes nothing.

        Headers decide, but for one case: PEFT saves embeddings and biases with the factors whether
        or not they were trained, so those are compared with the base's.
        """
        part = self.parts.get(slot.name)
        if part is None:
            return None
        copied = self._is_copy(slot.name)
        if part.magnitude or part.added or (part.saved and not copied):
            return "dense"
        return "factors" if part.down or part.tokens else None

    def rank(self, slot: Slot) -> int:
        """How many directions its factors have in *slot*; reads headers."""
        part = self.parts[slot.name]
        return self.checkpoint.headers[part.down].shape[0] if part.down else len(part.indices)

    def rows(self, slot: Slot) -> int | None:
        """How many rows it stores of a vocabulary slot, or None if it stores none."""
        part = self.parts.get(slot.name)
        return self.checkpoint.headers[part.saved].shape[0] if part and part.saved else None

    def task_vector(self, slot: Slot) -> LowRank | torch.Tensor | None:
        """Expert minus base in fp32; of factors, ``up`` holds the scaling.

        Vocabulary rows that it lacks are unchanged, rows beyond ``slot.shape`` are cut.

        Raises:
            UserError: The adapter's tensors or the base's hold NaN or infinity.
        """
        form = self.form(slot)
        if form is None:
            return None
        part = self.parts[slot.name]
        if form == "factors":
            up, down = self._factors(part) if part.down else self._tokens(part, slot)
            return LowRank(_rows(up, slot.shape[0]), down)
        if part.added and not part.saved:
            return self._read(part.added) * part.scaling
        base = finite(self.base.weight(slot), slot.name, self.base.checkpoint.path).float()
        return self.weight(slot).float() - base

    def weight(self, slot: Slot) -> torch.Tensor:
        """Its own weights: a saved tensor as it was saved, else base plus task vector in fp32."""
        if slot.name not in self.parts:
            return self.base.weight(slot)
        weight = self.stored_rows(slot)[: slot.shape[0]]
        if len(weight) < slot.shape[0]:
            rest = self.base.weight(slot)[len(weight) :]
            wide = torch.promote_types(weight.dtype, rest.dtype)
            return torch.cat([weight.to(wide), rest.to(wide)])
        return weight

    def stored_rows(self, slot: Slot) -> torch.Tensor:
        """Its own weights, with as many rows as the model had that it was trained on."""
        part = self.parts[slot.name]
        if part.saved and not self._is_copy(slot.name):
            saved = self._read(part.saved, dtype=None)
            weight = saved.reshape(len(saved), -1) if slot.is_matrix else saved
            if not (part.down or part.tokens or part.added):
                return weight
        else:
            weight = self.base.stored.read(slot)
        weight = weight.to(torch.float32, copy=True)
        if part.added:
            weight += self._read(part.added) * part.scaling
        if part.down:
            up, down = self._factors(part)
            weight.addmm_(up, down)
        if part.magnitude:
            dimension = 0 if part.flipped else 1
            norm = torch.linalg.vector_norm(weight, dim=dimension)
            factor = self._read(part.magnitude).reshape(-1) / norm
            weight *= factor.unsqueeze(dimension)
        if part.tokens:
            weight[list(part.indices)] = self._read(part.tokens)
        return weight

    def _factors(self, part: Part) -> LowRank:
        """Of all rows that the adapter has."""
        assert part.down is not None  # part.down and part.up come together
        assert part.up is not None
        down, up = self._read(part.down).flatten(1), self._read(part.up).flatten(1)
        if part.flipped:
            return LowRank(down.T * part.scaling, up.T)
        return LowRank(up * part.scaling, down)

    def _tokens(self, part: Part, slot: Slot) -> LowRank:
        """Replaced rows: one direction per row."""
        assert part.tokens is not None
        own = self.base.stored.read(slot)
        rows = torch.tensor(part.indices)
        up = torch.zeros(len(own), len(rows))
        up[rows, torch.arange(len(rows))] = 1.0
        return LowRank(up, self._read(part.tokens) - own[rows].float())

    def _read(self, name: str, dtype: torch.dtype | None = torch.float32) -> torch.Tensor:
        tensor = finite(self.checkpoint.tensor(name), name, self.path)
        return tensor if dtype is None else tensor.to(dtype)

    @cached_property
    def _copies(self) -> dict[str, bool]:
        return {}

    def _is_copy(self, name: str) -> bool:
        """Whether a tensor that PEFT saved unasked is the base's own, rounded to its dtype."""
        part = self.parts[name]
        if part.saved is None or part.wrapped:
            return False
        if name not in self._copies:
            slot = slot_of(self.base, part.parameter)
            assert slot is not None  # else read_parts has refused it
            own, base = self._read(part.saved, dtype=None), self.base.stored.read(slot)
            self._copies[name] = torch.equal(own.reshape(-1), base.to(own.dtype).reshape(-1))
        return self._copies[name]

    def _check_tie(self, part: Part) -> None:
        """Refuse what PEFT does to one end only of tied weights.

        A weight saved without a wrapper is loaded into the one parameter of both; single tokens
        PEFT ties by itself; the rest when told to. What stays is an untied model.
        """
        source = tied_source(self.base, part.parameter)
        if source is None and not self._has_ties(part.parameter):
            return
        loaded = part.saved and not part.wrapped and not part.down
        follows = part.tokens and source is None and not part.down
        if not (loaded or follows or self.checkpoint.config.get("ensure_weight_tying")):
            self._refuse_untied(part, "and not the other end")

    def _has_ties(self, parameter: str) -> bool:
        architecture = self.base.stored.architecture
        names = architecture.ties if architecture else ("lm_head.weight",)
        return any(tied_source(self.base, name) == parameter for name in names)

    def _refuse_untied(self, part: Part, how: str) -> NoReturn:
        raise UserError(
            f"adapts {part.parameter} {how}, but the base ties both to one weight",
            where=str(self.path),
            remedy="train it again with ensure_weight_tying=True, or untie base and experts",
        )

    def _equal(self, part: Part, twin: Part) -> bool:
        """Whether the parts of tied parameters make the same weight."""
        kinds = [[bool(p.saved), bool(p.down), bool(p.tokens), p.indices] for p in (part, twin)]
        if kinds[0] != kinds[1] or part.magnitude or twin.magnitude:
            return False
        pairs = [(part.saved, twin.saved), (part.tokens, twin.tokens)]
        same = all(torch.equal(self._read(a), self._read(b)) for a, b in pairs if a and b)
        if part.down and same:
            factors = zip(self._factors(part), self._factors(twin), strict=True)
            same = all(torch.equal(mine, other) for mine, other in factors)
        return same


def open_adapter(
    base: Base, path: Path, *, cache: Path, note: Callable[[str], None]
) -> AdapterExpert | FullExpert:
    """Open a PEFT adapter as an expert of *base*.

    Args:
        base: The ancestor.
        path: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        cache: Where checkpoints go that an adapter had to be folded into.
        note: Told what a fold costs and what looks odd.

    Raises:
        UserError: No adapter, not of this base, or of a kind that is no change of weights.
        RunError: No space for a fold.
    """
    checkpoint, reason = _examined(base, path, note)
    if reason:
        return fold(base, checkpoint, reason=reason, cache=cache, note=note)
    return _read_natively(base, checkpoint, note)


def check_adapter(
    base: Base, path: Path, *, note: Callable[[str], None] = lambda line: None
) -> AdapterExpert | None:
    """Refuse what `open_adapter` would, from config and headers; None for one that needs a fold."""
    checkpoint, reason = _examined(base, path, note)
    return None if reason else _read_natively(base, checkpoint, note)


def _examined(base: Base, path: Path, note: Callable[[str], None]) -> tuple[Checkpoint, str | None]:
    """The adapter's folder, and why it has to be folded if it has to."""
    checkpoint = Checkpoint(path, stem="adapter_model")
    _check_config(checkpoint.config, path)
    _ = checkpoint.headers
    _note_base(base, checkpoint, note)
    return checkpoint, _reason_to_fold(base, checkpoint)


def _read_natively(
    base: Base, checkpoint: Checkpoint, note: Callable[[str], None]
) -> AdapterExpert:
    _check_unknown(checkpoint.config, checkpoint.path, note)
    expert = AdapterExpert(base, checkpoint)
    _ = expert.parts
    return expert


def _check_config(config: dict[str, Any], path: Path) -> None:
    where = str(path)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise UserError(
            "adapter_config.json names no peft_type",
            where=where,
            remedy="save the adapter again with PEFT",
        )
    if kind in _PROMPTS:
        raise UserError(
            f"is a {kind} adapter: trained inputs, not changed weights",
            where=where,
            remedy="train a LoRA adapter instead",
        )
    if kind in _ROUTED:
        raise UserError(
            f"is a {kind} adapter: what it adds depends on the input, so it cannot be merged",
            where=where,
            remedy="give its parts as experts, or train a LoRA adapter",
        )
    if kind != "LORA":
        return
    if str(config.get("init_lora_weights")).lower().startswith("pissa_niter"):
        raise UserError(
            "init_lora_weights is pissa_niter: loading draws another start than training did",
            where=where,
            remedy="save it again with path_initial_model_for_weight_conversion",
        )
    for key, why in _UNMERGEABLE.items():
        if config.get(key):
            raise UserError(
                f"{key} is set: {why}", where=where, remedy="train a plain LoRA adapter instead"
            )


def _check_unknown(config: dict[str, Any], path: Path, note: Callable[[str], None]) -> None:
    """Refuse switches of a later PEFT; numbers and names may be mere defaults."""
    for key in sorted(set(config) - _READ - set(_FOLDED) - set(_UNMERGEABLE)):
        value = config[key]
        if value is True or (isinstance(value, dict) and value):
            raise UserError(
                f"{key} is set, which is not known here", where=str(path), remedy=MERGE_FIRST
            )
        if value:
            note(f"adapter {path.name}: {key} is not known here and was left out of account")


def _reason_to_fold(base: Base, checkpoint: Checkpoint) -> str | None:
    config = checkpoint.config
    if config["peft_type"] != "LORA":
        return f"a {config['peft_type']} adapter"
    for key in _FOLDED:
        if config.get(key):
            return f"a LoRA adapter with {key}"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_THE_BASE):
        return f"a LoRA adapter whose start ({start}) changed the base"
    if parameter := in_pieces(base, checkpoint):
        return f"a LoRA adapter of {parameter}, which the base stores in other pieces"
    return None


def _note_base(base: Base, checkpoint: Checkpoint, note: Callable[[str], None]) -> None:
    """Say so if the adapter's config names another base."""
    trained = str(checkpoint.config.get("base_model_name_or_path") or "")
    tail = trained.rstrip("/").rsplit("/", 1)[-1].lower()
    own = base.checkpoint.config.get("_name_or_path") or ""
    known = [part.lower().rsplit("--", 1)[-1] for part in base.checkpoint.path.absolute().parts]
    if not tail or tail in known or tail == own.rsplit("/", 1)[-1].lower():
        return
    copy = ", a quantised copy" if any(mark in tail for mark in _QUANTISED) else ""
    name = checkpoint.path.name
    note(f"adapter {name} was trained on {trained}{copy}; the base is {base.checkpoint.path}")


def _rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Cut, or filled up with zeros, to *rows*."""
    if len(tensor) >= rows:
        return tensor[:rows]
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])

"""What a PEFT LoRA adapter holds, parameter by parameter, from its config and headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from cqd_hub.errors import UserError
from cqd_hub.genome.layout import Slot
from cqd_hub.genome.models.checkpoint import Checkpoint
from cqd_hub.genome.models.experts import Base

MERGE_FIRST = "merge it first (peft: merge_and_unload) and give the merged model"
_OF_THIS_BASE = "is it an adapter of this base?"
_PREFIX = "base_model.model."
# What PEFT puts between a module and its own parameter when it wraps it.
_WRAPPERS = re.compile(r"\.(base_layer|token_adapter|modules_to_save(\.default)?)(?=\.)")
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.default)?(?:\.(weight|bias))?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(\.default)?(\.weight)?")
_TOKENS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(\.default)?")


@dataclass(frozen=True)
class Part:
    """What the adapter does to one parameter: names of its tensors, and numbers from its config.

    The parameter becomes ``saved`` (the base's, if None) + scaling·(B A), each row or column then
    scaled to its ``magnitude``, and at last the rows ``indices`` replaced by ``tokens``.

    Args:
        parameter: In-memory name.
        down: lora_A's (lora_embedding_A's) tensor.
        up: lora_B's (lora_embedding_B's) tensor.
        flipped: The parameter is stored [in, out] (Conv1D, embeddings), so that B A is transposed.
        scaling: alpha / r, or alpha / √r.
        magnitude: DoRA's.
        saved: A whole tensor.
        wrapped: The saved tensor stood beside the base's own (``modules_to_save``).
        tokens: Rows trained one by one.
        indices: Their numbers.
        added: lora_B's bias, to be scaled and added.
    """

    parameter: str
    down: str | None = None
    up: str | None = None
    flipped: bool = False
    scaling: float = 1.0
    magnitude: str | None = None
    saved: str | None = None
    wrapped: bool = False
    tokens: str | None = None
    indices: tuple[int, ...] = ()
    added: str | None = None


@dataclass
class _Names:
    """Tensor names of one parameter, while they are being collected."""

    found: dict[str, str] = field(default_factory=dict)
    embedding: bool = False
    wrapped: bool = False


def read_parts(base: Base, checkpoint: Checkpoint) -> dict[str, Part]:
    """Sort an adapter's tensors by parameter and check that they fit the base.

    Raises:
        UserError: Unknown or unpaired tensors, shapes that do not fit, a config that lacks keys.
    """
    names, reading = _collect(checkpoint, base), _Reader(base, checkpoint)
    return {parameter: reading.part(parameter, held) for parameter, held in names.items()}


def tied_source(base: Base, parameter: str) -> str | None:
    """The parameter that *parameter* shares the base's one stored tensor with, or None."""
    if _own_slot(base, parameter) is not None:
        return None
    architecture = base.stored.architecture
    if architecture is not None:
        return architecture.tied_to(parameter)
    tied = base.checkpoint.config.get("tie_word_embeddings") and parameter == "lm_head.weight"
    return "model.embed_tokens.weight" if tied else None


def slot_of(base: Base, parameter: str) -> Slot | None:
    """The slot of a parameter or of the one it is tied to, with the base's own rows."""
    slot = _own_slot(base, tied_source(base, parameter) or parameter)
    if slot is None or base.vocabulary is None or slot.name not in base.vocabulary.slots:
        return slot
    rows = base.checkpoint.headers[slot.tensor].shape[0]
    return replace(slot, shape=(rows, *slot.shape[1:]))


def _own_slot(base: Base, parameter: str) -> Slot | None:
    """By its name in memory, as stored, or as older versions of transformers had it."""
    slot, architecture = base.slot_of(parameter), base.stored.architecture
    if slot is not None or architecture is None:
        return slot
    place = architecture.places([parameter]).get(parameter)
    if place is None or architecture.parameters[place.parameter].shape != place.size:
        return None
    return base.slot_of(place.parameter)


def in_pieces(base: Base, checkpoint: Checkpoint) -> str | None:
    """A parameter that the adapter treats as one and the base's slots do not, or None.

    The experts of a mixture: one matrix each in one of the two and stacked in the other.
    """
    parameters = base.stored.architecture.parameters if base.stored.architecture else {}
    for name in checkpoint.headers:
        module, factor, _ = name.removeprefix(_PREFIX).partition(".lora_")
        parameter = f"{module}.weight" if factor else _WRAPPERS.sub("", module)
        stacked = ".experts." in parameter if factor else parameter in parameters
        if stacked and slot_of(base, parameter) is None:
            return parameter
    return None


def misfit(what: str, checkpoint: Checkpoint) -> NoReturn:
    """Refuse the adapter as one of another base, which its config names."""
    trained = checkpoint.config.get("base_model_name_or_path")
    raise UserError(
        f"{what}; it was trained on {trained}" if trained else what,
        where=str(checkpoint.path),
        remedy=_OF_THIS_BASE,
    )


def _collect(checkpoint: Checkpoint, base: Base) -> dict[str, _Names]:
    found: dict[str, _Names] = {}
    ignored = set(base.inventory.carried)
    for name in sorted(checkpoint.headers):
        inner = name.removeprefix(_PREFIX)
        if inner == name:
            _unknown(name, checkpoint.path)
        if ".original_module." in inner or inner in ignored:
            continue  # a frozen copy of the base's own
        if match := _FACTOR.fullmatch(inner):
            module, embedding, which, leaf = match[1], bool(match[2]), match[3], match[5]
            if embedding == bool(leaf) or (leaf == "bias" and which == "A"):
                _unknown(name, checkpoint.path)
            held = found.setdefault(f"{module}.{leaf or 'weight'}", _Names())
            held.found["added" if leaf == "bias" else which] = name
            held.embedding |= embedding
        elif match := _MAGNITUDE.fullmatch(inner):
            found.setdefault(f"{match[1]}.weight", _Names()).found["magnitude"] = name
        elif match := _TOKENS.fullmatch(inner):
            found.setdefault(f"{match[1]}.weight", _Names()).found["tokens"] = name
        elif "lora_" in inner or "trainable_tokens" in inner:
            _unknown(name, checkpoint.path)
        else:
            parameter = _WRAPPERS.sub("", inner)
            if parameter in ignored:
                continue
            held = found.setdefault(parameter, _Names())
            held.wrapped |= ".modules_to_save." in inner or _is_saved_module(
                parameter, checkpoint.config.get("modules_to_save") or []
            )
            if "saved" not in held.found or ".modules_to_save." in inner:
                held.found["saved"] = name
    return found


def _is_saved_module(parameter: str, modules: Iterable[str]) -> bool:
    owners = parameter.split(".")[:-1]
    paths = [".".join(owners[: stop + 1]) for stop in range(len(owners))]
    return any(path.endswith(module) for path in paths for module in modules)  # as PEFT has it


def _unknown(name: str, path: Path) -> NoReturn:
    raise UserError(f"tensor {name} is of no known kind", where=str(path), remedy=MERGE_FIRST)


@dataclass(frozen=True)
class _Reader:
    """Makes one parameter's part, with all checks that headers allow."""

    base: Base
    checkpoint: Checkpoint

    def part(self, parameter: str, names: _Names) -> Part:
        slot = slot_of(self.base, parameter)
        if slot is None:
            if "added" in names.found:
                raise UserError(
                    f"lora_bias adds {parameter}, which the base does not have",
                    where=str(self.checkpoint.path),
                    remedy="train it again without lora_bias",
                )
            misfit(f"adapts {parameter}, which the base does not have", self.checkpoint)
        found = names.found
        part = Part(
            parameter,
            flipped=names.embedding or self._is_transposed(slot),
            wrapped=names.wrapped,
            saved=found.get("saved"),
            added=found.get("added"),
        )
        rows = slot.shape[0]
        if part.saved:
            rows = self._saved_rows(part.saved, slot)
        if "A" in found or "B" in found or "magnitude" in found:
            part = self._with_factors(part, found, slot, rows)
        if added := part.added:
            part = replace(part, scaling=self._scaling(parameter.removesuffix(".bias"))[1])
            self._fits(added, self._shape(added), slot.shape, slot)
        if "tokens" in found:
            part = self._with_tokens(part, found["tokens"], slot, rows)
        return part

    def _with_factors(self, part: Part, found: Mapping[str, str], slot: Slot, rows: int) -> Part:
        for which in "AB":
            if which not in found:
                raise UserError(
                    f"has no lora_{which} for {part.parameter}",
                    where=str(self.checkpoint.path),
                    remedy="download or save it again",
                )
        rank, scaling = self._scaling(part.parameter.removesuffix(".weight"))
        down, up = self._shape(found["A"]), self._shape(found["B"])
        for name, shape, dimension in ((found["A"], down, 0), (found["B"], up, 1)):
            if len(shape) < 2 or 0 in shape:
                raise UserError(
                    f"{name} has shape {list(shape)}",
                    where=str(self.checkpoint.path),
                    remedy="save it again with its weights gathered",
                )
            if shape[dimension] != rank:
                raise UserError(
                    f"{name} has rank {shape[dimension]}, the config says {rank}",
                    where=str(self.checkpoint.path),
                    remedy="take adapter_config.json and adapter_model.safetensors of one training",
                )
        size = (up[0], _product(down[1:]))
        size = (size[1], size[0]) if part.flipped else size
        if size != (rows, *slot.shape[1:]):
            misfit(
                f"its factors make {part.parameter} {list(size)}, the base's is {list(slot.shape)}",
                self.checkpoint,
            )
        magnitude = found.get("magnitude")
        if magnitude:
            wide = size[1] if part.flipped else size[0]
            self._fits(magnitude, (_product(self._shape(magnitude)),), (wide,), slot)
        return replace(part, down=found["A"], up=found["B"], scaling=scaling, magnitude=magnitude)

    def _with_tokens(self, part: Part, name: str, slot: Slot, rows: int) -> Part:
        wanted = self.checkpoint.config.get("trainable_token_indices")
        if isinstance(wanted, Mapping):
            modules = [
                f".{parameter.removesuffix('.weight')}"
                for parameter in (part.parameter, tied_source(self.base, part.parameter))
                if parameter
            ]
            found = [wanted[key] for m in modules for key in wanted if m.endswith(f".{key}")]
            wanted = found[0] if found else None
        if not isinstance(wanted, list) or not all(isinstance(index, int) for index in wanted):
            raise UserError(
                f"trainable_token_indices does not say which tokens {name} holds",
                where=str(self.checkpoint.path / "adapter_config.json"),
                remedy="save it again",
            )
        beyond = [index for index in wanted if not 0 <= index < rows]
        if beyond:
            misfit(f"trains token {beyond[0]}, the base has {rows}", self.checkpoint)
        self._fits(name, self._shape(name), (len(wanted), *slot.shape[1:]), slot)
        return replace(part, tokens=name, indices=tuple(wanted))

    def _saved_rows(self, name: str, slot: Slot) -> int:
        """Rows of a saved tensor: those of a vocabulary may be more or fewer than the base's."""
        shape = self._shape(name) or (1,)
        flat = (shape[0], _product(shape[1:])) if slot.is_matrix and len(shape) > 1 else shape
        if flat[1:] != slot.shape[1:] or (
            flat[0] != slot.shape[0] and not self._is_vocabulary(slot)
        ):
            self._fits(name, flat, slot.shape, slot)
        return flat[0]

    def _is_vocabulary(self, slot: Slot) -> bool:
        """Whether a slot has one row per token."""
        if self.base.stored.architecture is None:
            return slot.shape[0] == self.base.checkpoint.config.get("vocab_size")
        return slot.name in {end.name for end in self.base.vocabulary_slots}

    def _is_transposed(self, slot: Slot) -> bool:
        """Whether a linear layer's weight is stored [in, out] (Conv1D)."""
        if self.base.stored.architecture is None:
            return bool(self.checkpoint.config.get("fan_in_fan_out"))
        return slot.kind == "transposed"

    def _fits(self, name: str, own: tuple[int, ...], wanted: tuple[int, ...], slot: Slot) -> None:
        if own != wanted:
            misfit(
                f"{name} has shape {list(own)}, the base's is {list(wanted)} for {slot.name}",
                self.checkpoint,
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.checkpoint.headers[name].shape)

    def _scaling(self, module: str) -> tuple[int, float]:
        """Rank and scaling of a module by the config's patterns, as PEFT reads them."""
        config = self.checkpoint.config
        rank = self._number("r", "rank_pattern", module)
        alpha = self._number("lora_alpha", "alpha_pattern", module)
        if rank < 1 or rank != int(rank):
            self._bad_config(f"{rank} is not a rank")
        return int(rank), alpha / (rank**0.5 if config.get("use_rslora") else rank)

    def _number(self, key: str, patterns: str, module: str) -> float:
        config = self.checkpoint.config
        value: Any = config.get(key)
        matches = config.get(patterns) or {}
        if not isinstance(matches, Mapping):
            self._bad_config(f"{patterns} is not a mapping")
        for pattern, other in matches.items():
            try:
                matched = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                self._bad_config(f"{patterns} holds {pattern!r}: {error}")
            if matched:
                value = other
                break
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._bad_config(f"{key} is {value!r}, not a number" if key in config else f"no {key}")
        if not math.isfinite(value):
            self._bad_config(f"{key} is {value}")
        return value

    def _bad_config(self, what: str) -> NoReturn:
        raise UserError(
            what,
            where=str(self.checkpoint.path / "adapter_config.json"),
            remedy="save the adapter again with PEFT",
        )


def _product(shape: Iterable[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result

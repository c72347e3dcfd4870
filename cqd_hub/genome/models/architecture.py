"""Where stored tensors lie in the in-memory model: names differ, and some are joined or renamed.

transformers keeps, per architecture, the conversions between the two (a mixture's per-expert
matrices on disk are slices of one stacked parameter in memory). They are followed here on a model
without data: what comes out as a view of a parameter can be read and written in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cqd_hub.genome.layout import Kind

# What older checkpoints store of what is computed today, whatever the architecture.
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")


class Place(NamedTuple):
    """A stored tensor as a strided view of one contiguous parameter."""

    parameter: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def view(self, parameter: torch.Tensor) -> torch.Tensor:
        """The part of *parameter* (its data in natural order) that is this tensor."""
        return parameter.as_strided(
            self.size, self.stride, parameter.storage_offset() + self.offset
        )


class Architecture:
    """What transformers knows of a model's tensors.

    Args:
        model: A transformers model; on the meta device it costs no memory.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        # Floating buffers that are stored (a router's corrections) are weights like others.
        self.parameters: dict[str, torch.Tensor] = dict(model.named_parameters()) | {
            name: tensor
            for name, tensor in model.named_buffers()
            if name in self._state and tensor.is_floating_point()
        }
        # Parameter → the one it shares its data with.
        self.ties: dict[str, str] = dict(getattr(model, "all_tied_weights_keys", None) or {})

    @classmethod
    def of(cls, folder: Path) -> Architecture | None:
        """The architecture of a model folder, or None if transformers has none of that name."""
        import transformers

        try:
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            kind = getattr(transformers, (config.architectures or [""])[0], None)
            with torch.device("meta"):
                if kind is not None:
                    return cls(kind._from_config(config))
                return cls(transformers.AutoModelForCausalLM.from_config(config))
        except Exception:  # whatever its configuration class or constructor raises
            return None

    def places(self, names: Iterable[str]) -> dict[str, Place]:
        """Stored name → its place, for the *names* that have one."""
        found = {}
        for name in names:
            place = self._stored.get(name)
            if place is None and (parameter := self._parameter(name)) is not None:
                tensor = self.parameters[parameter]
                place = Place(parameter, tuple(tensor.shape), tensor.stride(), 0)
            if place is not None:
                found[name] = place
        return found

    def tied_to(self, name: str) -> str | None:
        """The parameter whose data a stored tensor repeats, or None."""
        return self.ties.get(name) or self.ties.get(self._renamed(name)[0])

    def ignores(self, name: str) -> bool:
        """Whether transformers leaves a stored tensor out when loading (masks, old buffers)."""
        patterns = getattr(self.model, "_keys_to_ignore_on_load_unexpected", None) or ()
        return any(re.search(pattern, name) for pattern in (*patterns, *_OLD_BUFFERS))

    def kind(self, place: Place) -> Kind:
        """What the module that holds a parameter does with it."""
        from transformers.pytorch_utils import Conv1D

        owner, _, leaf = place.parameter.rpartition(".")
        module = self.model.get_submodule(owner)
        if len(place.size) < 2:
            return "vector"
        if isinstance(module, Conv1D) and leaf == "weight":
            return "transposed"
        if isinstance(module, torch.nn.Embedding):
            return "embedding"
        if isinstance(module, torch.nn.modules.conv._ConvNd):
            return "convolution"
        return "matrix"

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """Parameters with one row per token: the input embedding and the output head."""
        ends = []
        for find in ("get_input_embeddings", "get_output_embeddings"):
            try:
                ends.append(getattr(self.model, find)())
            except (AttributeError, NotImplementedError):
                continue
        data = {id(tensor) for end in ends if end is not None for tensor in end.parameters()}
        return frozenset(name for name, tensor in self.parameters.items() if id(tensor) in data)

    @cached_property
    def _stored(self) -> dict[str, Place]:
        """Places of the names that transformers itself would save."""
        from transformers.core_model_loading import revert_weight_conversion

        views = {
            name: tensor.detach().to("meta").as_subclass(_View)
            for name, tensor in self.parameters.items()
        }
        owner = {view.untyped_storage()._cdata: name for name, view in views.items()}
        found = {}
        for name, tensor in revert_weight_conversion(self.model, dict(views)).items():
            parameter = owner.get(tensor.untyped_storage()._cdata)
            if parameter is not None:
                size, stride = tuple(tensor.shape), tuple(tensor.stride())
                found[name] = Place(parameter, size, stride, int(tensor.storage_offset()))
        return found

    def _parameter(self, name: str) -> str | None:
        """The whole parameter that is stored as *name*, by the renamings of loading."""
        if name in self.parameters:
            return name
        renamed, converter = self._renamed(name)
        return renamed if converter is None and renamed in self.parameters else None

    def _renamed(self, name: str) -> tuple[str, str | None]:
        from transformers.core_model_loading import rename_source_key

        renamings, converters = self._conversions
        prefix = self.model.base_model_prefix
        return rename_source_key(name, renamings, converters, prefix, self._state)

    @cached_property
    def _state(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    @cached_property
    def _conversions(self) -> tuple[list[Any], list[Any]]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = get_model_conversion_mapping(self.model)
        return (
            [entry for entry in mapping if isinstance(entry, WeightRenaming)],
            [entry for entry in mapping if isinstance(entry, WeightConverter)],
        )


class _View(torch.Tensor):
    """Stays a view where the conversions would copy it into contiguous memory."""

    def contiguous(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return self

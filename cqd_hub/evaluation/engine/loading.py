"""The resident model, its tokenizer, and the slots of a basis within it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cqd_hub.errors import UserError
from cqd_hub.evaluation.engine.attention import use_row_attention
from cqd_hub.genome.models.architecture import Architecture
from cqd_hub.genome.models.experts import Base


def slots_in(model: Any, base: Base) -> dict[str, torch.Tensor]:
    """Slot name → its data within the model, as a view to write to.

    Raises:
        UserError: What transformers would fill in at random, or leave unused.
    """
    architecture = Architecture(model)
    places = architecture.places(slot.tensor for slot in base.slots)
    covered = dict.fromkeys(architecture.parameters, 0)
    found = {}
    for slot in base.slots:
        place = places.get(slot.tensor)
        if place is None:
            problem = f"transformers does not use {slot.tensor}"
            break
        data = place.view(architecture.parameters[place.parameter].data)
        found[slot.name] = (data if slot.index is None else data[slot.index]).view(slot.shape)
        covered[place.parameter] += found[slot.name].numel()
    else:
        short = [n for n, t in architecture.parameters.items() if covered[n] != t.numel()]
        if not short:
            return found
        problem = f"transformers also needs {short[0]}"
    raise UserError(
        problem,
        where=str(base.checkpoint.path),
        remedy="save the model again with this transformers, or choose another base",
    )


def load_model(folder: Path, *, device: str, dtype: torch.dtype) -> Any:
    """Load a causal LM for inference from a local folder, safetensors only, no remote code.

    Raises:
        UserError: transformers cannot load it.
    """
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"transformers cannot load it: {_first_line(error)}", where=str(folder)
        ) from None
    model.requires_grad_(False).eval()
    model = model.to(torch.device(device))  # type: ignore[arg-type]
    use_row_attention(model)
    return model


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a local model folder.

    Raises:
        UserError: There is none that transformers can load.
    """
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, padding_side="left"
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"has no usable tokenizer: {_first_line(error)}",
            where=str(folder),
            remedy="copy tokenizer.json and tokenizer_config.json beside the weights",
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The token ids that end an answer."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured, tokenizer.eos_token_id]
    return frozenset(token for token in ids if token is not None)

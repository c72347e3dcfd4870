"""What a model's configuration says of its computation, compared with the base's.

A merge computes as the base does. An expert that was trained to compute otherwise (other rotary
frequencies, say) is another model under the base's settings, though every tensor fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cqd_hub.errors import UserError

# Keys that do not change what the weights compute.
_FREE = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "initializer_range",
    "label2id",
    "max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
_SHAPING = "head"  # keys that cut the same tensors into other heads


def compare_settings(expert: Path, base: Path, note: Callable[[str], None]) -> None:
    """Tell *note* of settings that differ from the base's; merges use the base's.

    Raises:
        UserError: Attention heads are cut otherwise.
    """
    mine, theirs = (dict(_leaves(_settings(folder))) for folder in (expert, base))
    for key in sorted(mine.keys() | theirs.keys()):
        own, wanted = mine.get(key), theirs.get(key)
        if own == wanted:
            continue
        difference = f"{key} is {own}, the base's {wanted}"
        if _SHAPING in key.rsplit(".", 1)[-1]:
            raise UserError(
                difference, where=str(expert), remedy="use experts fine-tuned from this base"
            )
        note(f"expert {expert.name}: {difference}; merges use the base's")


def _settings(folder: Path) -> Mapping[str, Any]:
    """The configuration with defaults filled in, as transformers reads it; empty if unknown."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return config.to_dict()


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if key in _FREE or key.endswith(("_token_id", "dropout", "_pdrop")):
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

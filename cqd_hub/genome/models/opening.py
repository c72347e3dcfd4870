"""Opening base and experts: everything that headers, configs and tokenizers can refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cqd_hub.errors import UserError
from cqd_hub.files import cache_folder
from cqd_hub.genome.models.adapters import check_adapter, open_adapter
from cqd_hub.genome.models.architecture import Architecture
from cqd_hub.genome.models.checkpoint import Checkpoint
from cqd_hub.genome.models.experts import Base, Expert, FullExpert
from cqd_hub.genome.models.settings import compare_settings
from cqd_hub.genome.models.slots import Stored
from cqd_hub.genome.models.vocabulary import Donor, Vocabulary, common_vocabulary

_OTHER_BASE = "use experts fine-tuned from this base"
_TINY = ("F8", "F6", "F4")
_QUANTISED = ("quantization_config", "compression_config")


def open_models(
    base: Path,
    experts: Sequence[Path],
    *,
    cache: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[Base, list[Expert]]:
    """Open a base and its experts, and bring their vocabularies to one length.

    Args:
        base: A model folder.
        experts: Folders of full fine-tunes and PEFT adapters, in any mixture.
        cache: Where adapters that are no plain product are folded into checkpoints; `cache_folder`
            unless given.
        note: Called with a line for what takes time, is filled up or left out.

    Raises:
        UserError: Missing, pickled, damaged or quantised; or not an expert of this base:
            architecture, shapes, vocabulary, missing tensors; or an adapter that cannot be merged.
    """
    ancestor = open_base(base)
    cache = cache or cache_folder()
    opened = [_open_expert(ancestor, path, cache, note) for path in experts]
    vocabulary = _common(ancestor, opened, [expert.content_hash for expert in opened], note)
    if vocabulary is None:
        return ancestor, opened
    ancestor = replace(ancestor, vocabulary=vocabulary)
    return ancestor, [replace(expert, base=ancestor) for expert in opened]  # type: ignore[type-var]


def check_models(
    base: Path, experts: Sequence[Path], *, note: Callable[[str], None] = lambda line: None
) -> tuple[Base, list[Expert | None]]:
    """Refuse what `open_models` would, as far as configs, tokenizers and headers tell.

    No weight is believed: the files may hold zeros beyond their headers. Nothing is folded.

    Returns:
        Base and experts, of which headers may be asked; None for one that is to be folded.
    """
    ancestor = open_base(base)
    opened: list[Expert | None] = []
    for path in experts:
        _refuse_both(path)
        if not (path / "adapter_config.json").exists():
            opened.append(open_full(ancestor, path, note))
        else:
            opened.append(check_adapter(ancestor, path, note=note))
    known = [expert for expert in opened if expert is not None]
    vocabulary = _common(ancestor, known, ["" for _ in known], note)
    if vocabulary is None:
        return ancestor, opened
    ancestor = replace(ancestor, vocabulary=vocabulary)
    longer = [
        replace(expert, base=ancestor) if expert is not None else None  # type: ignore[type-var]
        for expert in opened
    ]
    return ancestor, longer


def _common(
    base: Base, experts: Sequence[Expert], hashes: Sequence[str], note: Callable[[str], None]
) -> Vocabulary | None:
    ends = base.vocabulary_slots
    donors = [
        Donor(expert.path, rows, expert.stored_rows, content_hash)
        for expert, content_hash in zip(experts, hashes, strict=True)
        if (rows := {slot.name: n for slot in ends if (n := expert.rows(slot)) is not None})
    ]
    own = {slot.name: slot.shape[0] for slot in ends}
    return common_vocabulary(base.checkpoint.path, own, donors, note)


def open_base(path: Path) -> Base:
    """Open a base alone; see `open_models`."""
    checkpoint = Checkpoint(path)
    _refuse_quantised(checkpoint.config, path)
    architecture = Architecture.of(path)
    if architecture is None and checkpoint.config.get("auto_map"):
        raise UserError(
            "needs code of its own (auto_map in config.json), which is never run",
            where=str(path),
            remedy="use a model whose architecture transformers knows",
        )
    _refuse_tiny_floats(checkpoint)
    return Base(Stored(checkpoint, architecture))


def _open_expert(base: Base, path: Path, cache: Path, note: Callable[[str], None]) -> Expert:
    _refuse_both(path)
    if (path / "adapter_config.json").exists():
        return open_adapter(base, path, cache=cache, note=note)
    return open_full(base, path, note)


def open_full(
    base: Base, path: Path, note: Callable[[str], None] = lambda line: None
) -> FullExpert:
    """Open a full fine-tune; see `open_models`."""
    checkpoint = Checkpoint(path)
    config, theirs = checkpoint.config, base.checkpoint.config
    _refuse_quantised(config, path)
    for key in ("architectures", "model_type"):
        if config.get(key) != theirs.get(key):
            raise UserError(
                f"{key} is {config.get(key)}, the base {base.checkpoint.path} has "
                f"{theirs.get(key)}",
                where=str(path),
                remedy=_OTHER_BASE,
            )
    _refuse_tiny_floats(checkpoint)
    expert = FullExpert(base, Stored(checkpoint, base.stored.architecture))
    _check_names(expert)
    _check_shapes(expert)
    compare_settings(path, base.checkpoint.path, note)
    return expert


def _check_names(expert: FullExpert) -> None:
    base, own = expert.base, expert.stored
    needed = base.inventory.slots
    missing = expert.reader.missing(needed)
    known = {slot.tensor for slot in needed} | {*base.inventory.aliases, *base.inventory.carried}
    parameters = {place.parameter for place in base.stored.places.values()}
    surplus = sorted(
        name
        for name in own.inventory().names
        if name not in known
        and (name not in own.places or own.places[name].parameter not in parameters)
    )
    if missing or surplus:
        owner, names = ("it", missing) if missing else ("the base", surplus)
        raise UserError(
            f"{owner} has no tensor {names[0]} ({len(missing) + len(surplus)} differ)",
            where=str(expert.path),
            remedy=_OTHER_BASE,
        )


def _check_shapes(expert: FullExpert) -> None:
    """Compare every stored shape with its place in the model, or with the base's tensor."""
    base, own = expert.base, expert.stored
    places = {name: place.size for name, place in own.places.items()}
    wanted = {name: header.shape for name, header in base.checkpoint.headers.items()} | places
    ends = {slot.tensor for slot in base.vocabulary_slots}
    if own.architecture is not None:
        vocabulary = own.architecture.vocabulary
        ends |= {name for name, place in own.places.items() if place.parameter in vocabulary}
    for name, header in own.checkpoint.headers.items():
        shape = wanted.get(name, header.shape)
        if header.shape != shape and (name not in ends or header.shape[1:] != shape[1:]):
            raise UserError(
                f"{name} has shape {list(header.shape)}, the base's is {list(shape)}",
                where=str(expert.path),
                remedy=_OTHER_BASE,
            )


def _refuse_quantised(config: dict[str, Any], path: Path) -> None:
    """Raise a `UserError` if a config says that the weights are quantised."""
    for key in _QUANTISED:
        if config.get(key):
            raise UserError(
                "is quantised; its weights cannot be merged",
                where=str(path),
                remedy="use the unquantised original",
            )


def _refuse_tiny_floats(checkpoint: Checkpoint) -> None:
    for name, header in checkpoint.headers.items():
        if header.dtype.startswith(_TINY):
            raise UserError(
                f"{name} is stored as {header.dtype}: quantised weights cannot be merged",
                where=str(checkpoint.path),
                remedy="use the unquantised original",
            )


def _refuse_both(path: Path) -> None:
    if (path / "adapter_config.json").exists() and (path / "model.safetensors").exists():
        raise UserError(
            "holds a model and an adapter",
            where=str(path),
            remedy="keep the one that is meant in a folder of its own",
        )

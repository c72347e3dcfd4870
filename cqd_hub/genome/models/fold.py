"""Adapters without a closed form: merged by PEFT itself into a full checkpoint in the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError

from cqd_hub.errors import CqdHubError, RunError, UserError
from cqd_hub.files import new_folder, size_text
from cqd_hub.genome.models.checkpoint import Checkpoint
from cqd_hub.genome.models.experts import Base, FullExpert, finite
from cqd_hub.genome.models.slots import Stored
from cqd_hub.genome.store import exclusive

_MERGE_ELSEWHERE = "merge it where it was trained and give the merged model"
# How far merging may move the logits: PEFT takes inverses and exponentials of what it merges.
_OF_EFFECT, _OF_LOGITS = 1e-2, 1e-4


def fold(
    base: Base,
    adapter: Checkpoint,
    *,
    reason: str,
    cache: Path,
    note: Callable[[str], None],
) -> FullExpert:
    """Merge an adapter into the base and open the result, which the cache keeps.

    The merged model's logits are compared with those of base and adapter side by side: some
    adapters say more than PEFT's merge can hold.

    Args:
        base: The ancestor.
        adapter: The adapter's folder.
        reason: What kind it is, for *note*.
        cache: The checkpoint goes to ``cache/folded/KEY``, KEY hashing base, adapter and PEFT.
        note: Told what it costs, before it is spent.

    Returns:
        The merged model as an expert that carries the adapter's path and content hash.

    Raises:
        UserError: PEFT cannot load or merge it; not enough memory.
        RunError: Not enough disk, or writing failed.
    """
    import peft

    if adapter.config["peft_type"] not in peft.PEFT_TYPE_TO_TUNER_MAPPING:
        raise UserError(
            f"peft_type {adapter.config['peft_type']} is unknown to PEFT {peft.__version__}",
            where=str(adapter.path),
            remedy=f"update peft, or {_MERGE_ELSEWHERE}",
        )
    for name in adapter.headers:
        finite(adapter.tensor(name), name, adapter.path)
    key = f"{base.checkpoint.content_hash} {adapter.content_hash} peft {peft.__version__}"
    folder = cache / "folded" / hashlib.sha256(key.encode()).hexdigest()
    with exclusive(folder):
        for debris in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
            shutil.rmtree(debris, ignore_errors=True)
        if not _is_whole(folder):
            _check_room(base, adapter, folder, reason, note)
            _write(_merged(base, adapter), folder)
    return FullExpert(
        base,
        Stored(Checkpoint(folder), base.stored.architecture),
        origin=adapter.path,
        origin_hash=adapter.content_hash,
    )


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        return bool(Checkpoint(folder).headers and Checkpoint(folder).config)
    except UserError:
        shutil.rmtree(folder)
        return False


def _check_room(
    base: Base, adapter: Checkpoint, folder: Path, reason: str, note: Callable[[str], None]
) -> None:
    sizes = [torch.Size(header.shape).numel() for header in base.checkpoint.headers.values()]
    disk = 4 * sum(sizes)
    held = sum(file.stat().st_size for file in adapter.files)
    memory = disk + 2 * held + 12 * max(sizes)  # PEFT copies one weight at a time to merge it
    note(
        f"{adapter.path.name} is {reason}: PEFT merges it into a full fp32 checkpoint, once "
        f"({size_text(disk)} on disk, about {size_text(memory)} of memory)"
    )
    free, available = shutil.disk_usage(folder.parent).free, _available()
    arithmetic = f"{sum(sizes) / 1e6:.1f} M weights in fp32"
    if disk > free:
        raise RunError(
            f"folding {adapter.path.name} needs {size_text(disk)} ({arithmetic}), "
            f"{size_text(free)} are free",
            where=str(folder.parent),
            remedy="free some space or set CQD_HUB_CACHE to a folder on another disk",
        )
    if available is not None and memory > available:
        raise UserError(
            f"folding it takes about {size_text(memory)} of memory ({arithmetic}, and copies), "
            f"{size_text(available)} are available",
            where=str(adapter.path),
            remedy=_MERGE_ELSEWHERE,
        )


def _available() -> int | None:
    """Memory that can still be had, in bytes, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable")), None)


def _merged(base: Base, adapter: Checkpoint) -> Any:
    """The merged transformers model, checked."""
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(),
        ):
            warnings.simplefilter("always")
            torch.manual_seed(0)  # whatever PEFT draws on loading and then overwrites
            return _merge(base, adapter, caught)
    except CqdHubError:
        raise
    except MemoryError:
        raise RunError(
            "not enough memory to merge it", where=str(adapter.path), remedy=_MERGE_ELSEWHERE
        ) from None
    except Exception as error:  # PEFT raises anything at what it cannot load
        first = (str(error).strip() or type(error).__name__).split("\n")[0]
        trained = adapter.config.get("base_model_name_or_path")
        raise UserError(
            f"PEFT cannot merge it: {first[:300]}; it was trained on {trained}",
            where=str(adapter.path),
            remedy=f"is it an adapter of this base? If so, {_MERGE_ELSEWHERE}",
        ) from error


def _merge(base: Base, adapter: Checkpoint, caught: list[warnings.WarningMessage]) -> Any:
    import peft

    model = _load(base)
    if rows := _rows(base, adapter):
        model.resize_token_embeddings(rows, mean_resizing=False)
    plain = _logits(model)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    wrapped = peft.PeftModel.from_pretrained(model, str(adapter.path)).eval()
    for warning in caught:
        if missing := re.search(r"missing adapter keys.*?'(.+?)'", str(warning.message)):
            _refuse(adapter, f"its config asks for {missing[1]}, which it does not hold")
    tensors = peft.load_peft_weights(str(adapter.path), device="cpu")
    loaded: Any = peft.set_peft_model_state_dict(wrapped, tensors)
    if loaded.unexpected_keys:
        _refuse(adapter, f"tensor {loaded.unexpected_keys[0]} is of no known kind")
    wanted = _logits(wrapped)
    merged = wrapped.merge_and_unload(safe_merge=True)
    if tied and not merged.config.tie_word_embeddings:
        _refuse(adapter, "it unties the embeddings, which the base ties to one weight")
    found = _logits(merged)
    if plain is not None and wanted is not None and found is not None:
        error = (found - wanted).abs().max()
        allowed = _OF_EFFECT * (wanted - plain).abs().max() + _OF_LOGITS * wanted.abs().max()
        if not error <= allowed:
            _refuse(adapter, f"PEFT merges it into another model (logits move by {error:.2g})")
    return merged


def _logits(model: Any) -> torch.Tensor | None:
    """Of a few tokens, if it is a model of tokens."""
    if model.main_input_name != "input_ids":
        return None
    tokens = torch.arange(1, 13).reshape(1, -1) % model.get_input_embeddings().weight.shape[0]
    return model(input_ids=tokens).logits


def _refuse(adapter: Checkpoint, what: str) -> NoReturn:
    raise UserError(what, where=str(adapter.path), remedy="train a plain LoRA adapter instead")


def _load(base: Base) -> Any:
    import transformers

    transformers.logging.disable_progress_bar()
    name = (base.checkpoint.config.get("architectures") or [""])[0]
    kind = getattr(transformers, name, transformers.AutoModelForCausalLM)
    return kind.from_pretrained(
        base.checkpoint.path,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    ).eval()


def _rows(base: Base, adapter: Checkpoint) -> int | None:
    """Rows of a vocabulary saved with the adapter, if they are not as many as the base's."""
    architecture = base.stored.architecture
    for parameter in architecture.vocabulary if architecture else ():
        slot = base.slot_of(parameter)
        header = adapter.headers.get(f"base_model.model.{parameter}")
        if slot is not None and header is not None and header.shape[0] != slot.shape[0]:
            return header.shape[0]
    return None


def _write(model: Any, folder: Path) -> None:
    try:
        with new_folder(folder) as partial:
            model.save_pretrained(partial)
            for file in partial.iterdir():  # a reused folder must have survived a power cut whole
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"could not be written: {error}", where=str(folder), remedy="is the disk full?"
        ) from None

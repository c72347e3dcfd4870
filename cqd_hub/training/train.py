"""`cqd-hub train`: a training recipe in, a model or adapter folder out."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cqd_hub
from cqd_hub.errors import RunError, UserError
from cqd_hub.files import new_folder, sha256_of
from cqd_hub.hub.reference import parse
from cqd_hub.recipe.load import load_yaml
from cqd_hub.training.data import Tokens, mix, read, refuse_unlearnable, tokenize
from cqd_hub.training.loop import Progress, fit
from cqd_hub.training.models import Start, adapt, create, load_base
from cqd_hub.training.recipe import TrainingRecipe

RECORD = "training.json"
_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "safetensors")


def train(
    path: Path,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train what the recipe at *path* says and write it to *out* (default: the recipe's).

    Full training writes a `save_pretrained` folder with tokenizer and generation config; LoRA a
    PEFT adapter folder, whose ``base_model_name_or_path`` is the recipe's Hub id (and ``revision``
    the commit that was trained on) or the base's folder relative to the adapter. Both hold
    safetensors only, and ``training.json``: recipe, hashes of data and base, commit of a base on
    the Hub, how many different rows were cut at ``max_length``, versions, device, loss curve. The
    folder appears whole or not at all.

    Raises:
        UserError: Anything wrong with recipe, data, base or output folder; nothing is written.
        RunError: The loss is not finite, or the disk is full; nothing is left behind.
    """
    recipe = load_yaml(path, TrainingRecipe)
    home = path.resolve().parent
    target = _target(recipe, home, out, path)
    sources = [read(source, home, end=recipe.end_of_answer) for source in recipe.data]
    try:
        with new_folder(target) as folder, _threads(recipe.threads):
            _train(recipe, home, sources, folder, target, progress, note)
    except PermissionError as error:
        raise UserError(
            f"cannot write: {error.strerror}", where=str(target), remedy="give another --out"
        ) from None
    except FileExistsError:
        raise UserError(
            "is in the way of the output", where=str(target), remedy="give another --out"
        ) from None
    except OSError as error:
        raise RunError(f"cannot write: {error.strerror or error}", where=str(target)) from error
    return target


def _target(recipe: TrainingRecipe, home: Path, out: Path | None, path: Path) -> Path:
    if out is None and recipe.out is None:
        raise UserError("names no output folder", where=str(path), remedy="add `out`, or use --out")
    target = (out or home / str(recipe.out)).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            "the output exists already",
            where=str(target),
            remedy="remove it, or give another --out",
        )
    return target


def _train(
    recipe: TrainingRecipe,
    home: Path,
    sources: list[list[Any]],
    folder: Path,
    target: Path,
    progress: Progress | None,
    note: Callable[[str], None],
) -> None:
    import torch
    from transformers import set_seed

    set_seed(recipe.seed)
    order = mix(
        [len(rows) for rows in sources],
        [source.weight for source in recipe.data],
        recipe.steps * recipe.batch_size,
        seed=recipe.seed,
    )
    drawn = [sources[source][row] for source, row in order]
    start = _start(recipe, home, drawn, note)
    tokens = {
        row: tokenize(
            row, start.tokenizer, max_length=recipe.max_length, answers_only=recipe.answers_only
        )
        for row in set(drawn)
    }
    of_source: list[list[Tokens]] = [[] for _ in sources]
    for source, row in sorted({(int(source), int(row)) for source, row in order}):
        of_source[source].append(tokens[sources[source][row]])
    for data, rows in zip(recipe.data, of_source, strict=True):
        refuse_unlearnable(rows, max_length=recipe.max_length, where=str(home / data.path))
    model: Any = adapt(start.model, recipe.lora) if recipe.lora else start.model
    fitted = fit(
        model,
        [tokens[row] for row in drawn],
        recipe,
        padding=start.tokenizer.pad_token_id,
        progress=progress,
    )
    model.to("cpu", getattr(torch, recipe.save_dtype))
    _save(model, start, recipe, home, folder, target)
    record = {
        "recipe": recipe.model_dump(exclude_none=True),
        "base": start.hashes,
        "commit": start.commit,
        "data": [
            {
                "path": data.path,
                "sha256": sha256_of(home / data.path),
                "rows": len(rows),
                "cut": sum(one.cut for one in drawn_rows),
            }
            for data, rows, drawn_rows in zip(recipe.data, sources, of_source, strict=True)
        ],
        "versions": {"cqd-hub": cqd_hub.__version__, "python": platform.python_version()}
        | {name: version(name) for name in _LIBRARIES},
        "device": fitted.device,
        "loss": fitted.curve,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone


def _start(
    recipe: TrainingRecipe, home: Path, drawn: list[Any], note: Callable[[str], None]
) -> Start:
    import torch

    dtype = getattr(torch, recipe.train_dtype)
    if recipe.from_scratch:
        texts = (row.prompt + row.answer for row in drawn)
        return create(recipe.from_scratch, texts, dtype=dtype)
    return load_base(str(recipe.base), home, revision=recipe.revision, dtype=dtype, note=note)


def _save(
    model: Any, start: Start, recipe: TrainingRecipe, home: Path, folder: Path, target: Path
) -> None:
    if recipe.lora is None:
        model.save_pretrained(folder)
        start.tokenizer.save_pretrained(folder)
        return
    local = home / str(recipe.base)
    config = model.peft_config["default"]
    config.base_model_name_or_path = (
        os.path.relpath(local.resolve(), target) if local.is_dir() else parse(str(recipe.base)).repo
    )
    config.revision = start.commit
    # The embeddings are the base's; without this PEFT asks the Hub whether they were resized.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

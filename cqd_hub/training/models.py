"""The model and tokenizer a training starts from: loaded, or new."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cqd_hub.errors import UserError
from cqd_hub.files import sha256_of
from cqd_hub.hub.reference import is_reference, parse
from cqd_hub.training.recipe import FromScratch, Lora, TokenizerTraining

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cqd_hub.hub.fetch import Fetched

END, PADDING = "<eos>", "<pad>"


class Start(NamedTuple):
    """What is trained, the hashes of a local base's weight files, the commit of one on the Hub."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    hashes: dict[str, str]
    commit: str | None = None


def load_base(
    base: str,
    folder: Path,
    *,
    revision: str | None,
    dtype: torch.dtype,
    note: Callable[[str], None] = lambda line: None,
) -> Start:
    """Load a base from a folder relative to *folder*, or from the Hub; safetensors, no code.

    Raises:
        UserError: There is no such base, it cannot be loaded, or its tokenizer has no end token.
        RunError: It cannot be had from the Hub now.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local, commit = folder / base, None
    where = str(local)
    if local.is_dir():
        if not list(local.glob("*.safetensors")):
            raise UserError(
                "the base has no safetensors weights",
                where=where,
                remedy="save it with `save_pretrained`",
            )
    elif not is_reference(base, folder):
        raise UserError(
            "no such base folder",
            where=where,
            remedy="train it first, or correct `base`: a folder, or ns/name on the Hub",
        )
    else:
        fetched = _fetched(base, revision, local, note)
        local, commit, where = fetched.path, fetched.sha, f"base {base}"
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(local, **options)
        model = AutoModelForCausalLM.from_pretrained(
            local, dtype=dtype, use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot be loaded as a base: {reason}",
            where=where,
            remedy="give a model written by `save_pretrained`",
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-text token", where=where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    weights = sorted(local.glob("*.safetensors")) if commit is None else []
    return Start(model, tokenizer, {path.name: sha256_of(path) for path in weights}, commit)


def _fetched(base: str, revision: str | None, local: Path, note: Callable[[str], None]) -> Fetched:
    from cqd_hub.genome.models.opening import open_base
    from cqd_hub.hub.client import Hub
    from cqd_hub.hub.fetch import fetch

    reference = parse(base)
    if revision is not None:
        if reference.revision not in (None, revision):
            raise UserError(
                f"asks for {reference.revision} and for {revision}",
                where="base and revision",
                remedy="give one revision",
            )
        reference = reference._replace(revision=revision)

    def check(folders: Sequence[Path]) -> None:
        open_base(folders[0])

    try:
        return fetch(Hub(note=note), [reference], check=check)[0]
    except UserError as error:
        remedy = f"{error.remedy}; there is no folder {local}" if error.remedy else ""
        raise UserError(error.what, where=f"base {base}", remedy=remedy) from None


def create(recipe: FromScratch, texts: Iterable[str], *, dtype: torch.dtype) -> Start:
    """Make a new model and a tokenizer trained on *texts*.

    Raises:
        UserError: An architecture or configuration key that transformers does not know.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = train_tokenizer(recipe.tokenizer, texts)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    fixed = {"vocab_size": len(tokenizer), "bos_token_id": None} | ends
    try:
        config = AutoConfig.for_model(recipe.model_type)
    except ValueError:
        raise UserError(
            f"transformers knows no architecture {recipe.model_type!r}",
            where="from_scratch.model_type",
            remedy="for example `llama`",
        ) from None
    known = {key for key in config.to_dict() if key not in fixed}
    for key in recipe.config:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1)
            raise UserError(
                f"{recipe.model_type} has no key {key!r}",
                where="from_scratch.config",
                remedy=f"did you mean {close[0]!r}?" if close else "remove it",
            )
    try:
        config = AutoConfig.for_model(recipe.model_type, **recipe.config, **fixed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"no such model: {reason}", where="from_scratch.config") from None
    model.generation_config.update(**ends)
    return Start(model, tokenizer, {})


def train_tokenizer(recipe: TokenizerTraining, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer with an end and a padding token and no start token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    digits = [pre_tokenizers.Digits(individual_digits=True)] if recipe.split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def adapt(model: PreTrainedModel, recipe: Lora) -> nn.Module:
    """Wrap *model* with a fresh LoRA adapter.

    Raises:
        UserError: A target that no linear module is called.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    if recipe.targets != "all-linear":
        linear = _linear_names(model)
        for target in recipe.targets:
            if not any(name == target or name.endswith(f".{target}") for name in linear):
                leaves = sorted({name.rsplit(".", 1)[-1] for name in linear})
                raise UserError(
                    f"no linear module of the base is called {target!r}",
                    where="lora.targets",
                    remedy=f"it has {', '.join(leaves)}",
                )
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.targets if recipe.targets == "all-linear" else list(recipe.targets),
    )
    return get_peft_model(model, config)


def _linear_names(model: PreTrainedModel) -> list[str]:
    import torch
    from transformers.pytorch_utils import Conv1D

    return [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)]

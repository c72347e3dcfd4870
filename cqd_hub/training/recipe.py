"""The training recipe: what `cqd-hub train` reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cqd_hub.recipe.load import Strict

Dtype = Literal["float32", "bfloat16", "float16"]
Scalar = str | int | float | bool


class Source(Strict):
    """One file of rows: ``{"prompt", "answer"}`` or ``{"text"}`` per line of JSON.

    Attributes:
        path: ``.jsonl`` or ``.jsonl.gz``, relative to the recipe.
        weight: Share of the batches' rows drawn from it, relative to the other sources.
        limit: Use only the first rows (of those that ``where`` keeps).
        where: Keep rows whose field has one of the values, such as ``level: [1, 2]``.
    """

    path: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    limit: Annotated[int, Field(gt=0)] | None = None
    where: dict[str, list[Scalar]] = Field(default={})


class TokenizerTraining(Strict):
    """A byte-level BPE tokenizer trained on the data.

    Attributes:
        vocabulary: Tokens in all: 256 bytes, ``<eos>``, ``<pad>`` and the merges.
        split_digits: Keep every digit a token of its own.
    """

    vocabulary: Annotated[int, Field(ge=258)]
    split_digits: bool = True


class FromScratch(Strict):
    """A new model: an architecture of transformers, its configuration, and a tokenizer."""

    model_type: str
    config: dict[str, Any] = Field(default={})
    tokenizer: TokenizerTraining


class Lora(Strict):
    """A PEFT LoRA adapter; *targets* are module names, or all linear modules but the head."""

    rank: Annotated[int, Field(gt=0)]
    alpha: Annotated[int, Field(gt=0)]
    targets: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainingRecipe(Strict):
    """Everything that decides the trained weights.

    Attributes:
        base: A folder relative to the recipe, or a model of the Hub (``ns/name``, ``hf://…``);
            instead of ``from_scratch``.
        revision: Of a base on the Hub.
        warm_up: Steps of linear rise to the learning rate.
        answers_only: Loss on the answers of prompt-and-answer rows, not on the prompts.
        end_of_answer: Text put behind every answer, before the end-of-text token.
        train_dtype: Of the weights while training.
        save_dtype: Of the saved weights.
        threads: Processor threads; 1 makes the sums' order independent of the machine's cores.
        out: Folder to write, relative to the recipe.
    """

    base: str | None = None
    revision: str | None = None
    from_scratch: FromScratch | None = None
    data: Annotated[list[Source], Field(min_length=1)]
    method: Literal["full", "lora"] = "full"
    lora: Lora | None = None
    steps: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warm_up: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_length: Annotated[int, Field(gt=1)] = 512
    answers_only: bool = True
    end_of_answer: str = "\n"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train_dtype: Literal["float32", "bfloat16"] = "float32"
    save_dtype: Dtype = "float32"
    device: Literal["auto", "cpu"] = "auto"
    threads: Annotated[int, Field(gt=0)] | None = None
    out: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TrainingRecipe:
        if (self.base is None) == (self.from_scratch is None):
            raise ValueError("needs exactly one of `base` and `from_scratch`; give one of them")
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError(
                "`method: lora` and a `lora:` section go together; give both or neither"
            )
        if self.method == "lora" and self.base is None:
            raise ValueError("an adapter needs a base; give `base`, or `method: full`")
        if self.revision is not None and self.base is None:
            raise ValueError("`revision` is of a base on the Hub; remove it, or give `base`")
        if self.warm_up >= self.steps:
            raise ValueError("`warm_up` leaves no steps; make it smaller than `steps`")
        return self

"""Rows from JSON lines, mixed by weight in an order that only the seed decides."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.randomness import generator
from cqd_hub.training.recipe import Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that transformers' losses leave out


class Row(NamedTuple):
    """A text in two parts; loss may be restricted to the second."""

    prompt: str
    answer: str


class Tokens(NamedTuple):
    """One row as the model sees it: ids and labels, as many of each; whether its end is cut off."""

    ids: list[int]
    labels: list[int]
    cut: bool = False


def read(source: Source, folder: Path, *, end: str) -> list[Row]:
    """Read the rows of one source, answers ended by *end*.

    Raises:
        UserError: The file is missing or not JSON lines, a row has neither form, or none is left.
    """
    path = folder / source.path
    rows: list[Row] = []
    for number, record in _records(path):
        if any(record.get(key) not in values for key, values in source.where.items()):
            continue
        rows.append(_row(record, end, f"{path}:{number}"))
        if len(rows) == source.limit:
            break
    if not rows:
        kept = " that `where` keeps" if source.where else ""
        raise UserError(f"holds no rows{kept}", where=str(path), remedy="check the recipe's `data`")
    return rows


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise UserError("is no JSON object", where=f"{path}:{number}")
                yield number, record
    except FileNotFoundError:
        raise UserError(
            "no such data file", where=str(path), remedy="paths are relative to the recipe"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg}", where=f"{path}:{number}") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None


def _row(record: dict[str, Any], end: str, where: str) -> Row:
    prompt, answer, text = (record.get(key) for key in ("prompt", "answer", "text"))
    if isinstance(prompt, str) and isinstance(answer, str):
        return Row(prompt, answer + end)
    if isinstance(text, str):
        return Row("", text)
    raise UserError(
        "has neither `prompt` and `answer` nor `text`", where=where, remedy="give strings"
    )


def mix(sizes: Sequence[int], weights: Sequence[float], count: int, *, seed: int) -> np.ndarray:
    """Draw *count* rows: shape (count, 2), source and row index.

    Sources are drawn by weight; a source's rows come in random order, each once before any
    comes again.
    """
    shares = np.asarray(weights, dtype=np.float64)
    sources = generator(seed, 0, "mixture").choice(len(sizes), size=count, p=shares / shares.sum())
    rows = np.zeros(count, dtype=np.int64)
    for index, size in enumerate(sizes):
        places = np.flatnonzero(sources == index)
        shuffle = generator(seed, index, "rows")
        turns = [shuffle.permutation(size) for _ in range(-(-len(places) // size))]
        rows[places] = np.concatenate([*turns, np.zeros(0, dtype=np.int64)])[: len(places)]
    return np.stack([sources, rows], axis=1)


def tokenize(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int, answers_only: bool
) -> Tokens:
    """Turn a row into ids that end with the end-of-text token, cut at *max_length*.

    Prompt and answer are tokenized apart, as they are when the model is asked.
    """
    prompt = tokenizer(row.prompt)["input_ids"] if row.prompt else []
    answer = tokenizer(row.answer, add_special_tokens=False)["input_ids"]
    whole = [*prompt, *answer, tokenizer.eos_token_id]
    ids = whole[:max_length]
    hidden = len(prompt) if answers_only else 0
    labels = ([IGNORED] * hidden + ids[hidden:])[:max_length]
    return Tokens(ids, labels, len(whole) > max_length)


def refuse_unlearnable(rows: Sequence[Tokens], *, max_length: int, where: str) -> None:
    """Raise a `UserError` if rows have no label: their prompts leave no room, or are all."""
    # The first label is never predicted: nothing stands before it.
    count = sum(all(label == IGNORED for label in row.labels[1:]) for row in rows)
    if count:
        raise UserError(
            f"{count} of {len(rows)} rows that are drawn hold nothing to learn within "
            f"max_length ({max_length} tokens)",
            where=where,
            remedy="raise max_length, or leave out rows with long prompts or no text",
        )


def collate(rows: list[Tokens], *, padding: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right into tensors of shape (rows, longest)."""
    import torch

    longest = max(len(row.ids) for row in rows)

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([v + [filler] * (longest - len(v)) for v in values])

    return {
        "input_ids": padded([row.ids for row in rows], padding),
        "attention_mask": padded([[1] * len(row.ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORED),
    }

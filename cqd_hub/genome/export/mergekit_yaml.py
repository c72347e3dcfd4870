"""mergekit's YAML as plain text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Value = float | int | bool | str | np.ndarray


class MergeSource(NamedTuple):
    """One model of a recipe.

    Args:
        model: Its reference.
        parameters: Name → value, or values by slot (``[slots]``).
    """

    model: str
    parameters: Mapping[str, Value]


def recipe(
    names: Sequence[str],
    *,
    method: str,
    base: str | None,
    sources: Sequence[MergeSource],
    parameters: Mapping[str, Value],
    out_dtype: str,
) -> str:
    """The text of a recipe; the arithmetic runs in float32.

    Args:
        names: Per slot, what mergekit calls its tensor (or a part of that).
        method: Of merging.
        base: Reference of the base, for methods that have one.
        sources: The models.
        parameters: What they share, likewise by name.
        out_dtype: Of the merged model.
    """
    lines = [f"merge_method: {method}"]
    if base is not None:
        lines.append(f"base_model: {json.dumps(base)}")
    lines += ["dtype: float32", f"out_dtype: {out_dtype}"]
    if parameters:
        lines.append("parameters:")
        for name, value in parameters.items():
            lines += _setting(names, name, value, "  ")
    lines.append("models:")
    for source in sources:
        lines.append(f"- model: {json.dumps(source.model)}")
        if source.parameters:
            lines.append("  parameters:")
        for name, value in source.parameters.items():
            lines += _setting(names, name, value, "    ")
    return "\n".join(lines) + "\n"


def arithmetic(
    names: Sequence[str],
    *,
    base: str,
    weights: Sequence[tuple[str, np.ndarray]],
    out_dtype: str,
) -> str:
    """base + Σ weight · (model - base), with ``[slots]`` weights."""
    sources = [MergeSource(model, {"weight": row}) for model, row in weights]
    if not sources:  # the base itself; mergekit wants a model
        sources = [MergeSource(base, {"weight": 0.0})]
    return recipe(
        names,
        method="task_arithmetic",
        base=base,
        sources=sources,
        parameters={"normalize": False},
        out_dtype=out_dtype,
    )


def _setting(names: Sequence[str], name: str, value: Value, indent: str) -> list[str]:
    if not isinstance(value, np.ndarray):
        return [f"{indent}{name}: {_scalar(value)}"]
    conditions, default = _conditions(names, value.tolist())
    if not conditions:
        return [f"{indent}{name}: {_scalar(default)}"]
    lines = [f"{indent}{name}:"]
    for fragment, number in conditions:
        lines.append(f"{indent}- filter: {json.dumps(fragment)}")
        lines.append(f"{indent}  value: {_scalar(number)}")
    return [*lines, f"{indent}- value: {_scalar(default)}"]


def _conditions(
    names: Sequence[str], values: Sequence[float]
) -> tuple[list[tuple[str, float]], float]:
    """mergekit's filters (a fragment of the tensor's name, first match wins) and the default.

    A layer whose tensors agree is one fragment; the most frequent value needs none.
    """
    layers: dict[str, set[float]] = {}
    for name, value in zip(names, values, strict=True):
        layers.setdefault(_layer(name), set()).add(value)
    keyed = {
        (layer if len(layers[layer := _layer(name)]) == 1 else name): value
        for name, value in zip(names, values, strict=True)
    }
    default = Counter(values).most_common(1)[0][0]
    needed = {key for key, value in keyed.items() if value != default}
    # A fragment of another name would catch that one too, so the other goes first.
    needed |= {key for key in keyed for short in needed if key != short and short in key}
    return [(key, keyed[key]) for key in sorted(needed, key=lambda key: (-len(key), key))], default


def _layer(name: str) -> str:
    match = re.search(r"(?:^|\.)\d+\.", name)
    return name[: match.end()] if match else name


def _scalar(value: float | int | bool | str) -> str:
    """A YAML 1.1 scalar: ``1e-05`` without a point would be read as text."""
    if isinstance(value, bool | int | str):
        return json.dumps(value)
    text = repr(float(value))
    mantissa, sign, exponent = text.partition("e")
    return text if not sign or "." in mantissa else f"{mantissa}.0e{exponent}"

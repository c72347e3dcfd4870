"""An individual as a recipe that a stranger runs with ``mergekit-yaml``.

mergekit itself is not imported: the YAML is plain text. Its traps that we step around: ``+`` and
``@`` in a path are read as adapter and revision; relative paths are looked up on the Hub; adapters
are merged in the checkpoint's dtype, and only with a cache folder given.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cqd_hub.errors import UserError
from cqd_hub.genome.basis import Basis
from cqd_hub.genome.experts import LoraExpert
from cqd_hub.genome.export.adapter import merging_adapter, write_adapter
from cqd_hub.genome.export.deltas import Deltas
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.layout import Layout


class MergeSource(NamedTuple):
    """One model of a recipe: its reference and its weight in every slot."""

    model: str
    weights: np.ndarray


def export_mergekit(
    genome: Genome,
    basis: Basis,
    out: Path,
    *,
    out_dtype: str = "bfloat16",
    base: str | None = None,
    experts: Sequence[str] | None = None,
) -> Path:
    """Write ``mergekit.yml``, the adapter it adds and a README with the command to run.

    Args:
        out: A folder that does not exist yet.
        out_dtype: Of the merged model; the merge itself runs in float32.
        base: Reference to write for the base, such as ``org/name@revision``; its path unless given.
        experts: References to write for the experts, likewise.

    Returns:
        The YAML's path.

    Raises:
        UserError: *out* exists, or a path holds ``+`` or ``@``.
        RunError: Not enough space. Nothing is left behind.
    """
    deltas = Deltas(genome, basis, beside_experts=True)
    reference = base or local_reference(basis.base.checkpoint.path)
    mutation = f"{reference}+{local_reference(out / 'mutation')}"
    config: dict[str, object] = {}
    tensors: dict[str, torch.Tensor] = {}
    if products := list(deltas.matrices()):
        config, tensors = merging_adapter(basis, products, base_name=reference)
    text = _collapsed(
        deltas, reference, experts, mutation if tensors else None, out_dtype=out_dtype
    )
    with output_folder(out, needed=sum(tensor.nbytes for tensor in tensors.values())) as folder:
        (folder / "mergekit.yml").write_text(text, encoding="utf-8")
        if tensors:
            (folder / "mutation").mkdir()
            write_adapter(folder / "mutation", config, tensors)
        readme = _README.format(command=_command(out), extra=_MUTATION if tensors else "")
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return out / "mergekit.yml"


def collapsed_yaml(
    genome: Genome,
    basis: Basis,
    *,
    mutation: str | None,
    out_dtype: str = "bfloat16",
    base: str | None = None,
    experts: Sequence[str] | None = None,
) -> str:
    """The individual as base + weighted experts + one adapter at weight 1, whatever its lineage.

    Args:
        mutation: Reference (``base+adapter``) of what weighted experts cannot express, or ``None``
            where that is nothing; `export_mergekit` writes both.
        out_dtype: Of the merged model.
        base: Reference to write for the base; its absolute path unless given.
        experts: References to write for the experts, likewise.
    """
    deltas = Deltas(genome, basis, beside_experts=True)
    reference = base or local_reference(basis.base.checkpoint.path)
    return _collapsed(deltas, reference, experts, mutation, out_dtype=out_dtype)


def crossover_yaml(
    layout: Layout,
    *,
    base: str,
    parents: Sequence[str],
    shares: np.ndarray,
    mutation: str | None = None,
    out_dtype: str = "bfloat16",
) -> str:
    """One child's crossover: base + Σ_i shares[i]·(parent_i - base), and its mutation if any.

    Args:
        layout: Names the slots that *shares* ``[parents, slots]`` (or ``[parents]``) runs over.
        base: Reference of the base; see `local_reference` for a folder.
        parents: References of the parents' checkpoints.
        mutation: ``base+adapter`` of the child's SVD mutation.
    """
    table = np.asarray(shares, dtype=np.float64)
    if table.ndim == 1:
        table = np.repeat(table[:, None], len(layout.slots), axis=1)
    sources = [MergeSource(parent, row) for parent, row in zip(parents, table, strict=True)]
    return _yaml(layout, base, sources, mutation, out_dtype=out_dtype)


def local_reference(path: Path) -> str:
    """A local folder as mergekit reads it: absolute.

    Raises:
        UserError: The path holds ``+`` or ``@``.
    """
    absolute = str(path.absolute())
    if held := [sign for sign in "+@" if sign in absolute]:
        raise UserError(
            f"its path holds {held[0]!r}, which mergekit reads as "
            + ("an adapter" if held[0] == "+" else "a revision"),
            where=absolute,
            remedy="rename or link it to a path without + and @",
        )
    return absolute


def _collapsed(
    deltas: Deltas,
    reference: str,
    experts: Sequence[str] | None,
    mutation: str | None,
    *,
    out_dtype: str,
) -> str:
    basis = deltas.basis
    if experts is None:
        experts = [local_reference(expert.path) for expert in basis.experts]
    sources = []
    for number, (expert, name) in enumerate(zip(basis.experts, experts, strict=True)):
        whole = f"{reference}+{name}" if isinstance(expert, LoraExpert) else name
        if deltas.weights[:, number].any():
            sources.append(MergeSource(whole, deltas.weights[:, number]))
    return _yaml(basis.layout, reference, sources, mutation, out_dtype=out_dtype)


def _yaml(
    layout: Layout,
    base: str,
    sources: Sequence[MergeSource],
    mutation: str | None,
    *,
    out_dtype: str,
) -> str:
    names = [slot.name for slot in layout.slots]
    lines = [
        "merge_method: task_arithmetic",
        f"base_model: {json.dumps(base)}",
        "dtype: float32",
        f"out_dtype: {out_dtype}",
        "parameters:",
        "  normalize: false",
        "models:",
    ]
    if mutation is not None:
        sources = [*sources, MergeSource(mutation, np.ones(len(names)))]
    if not sources:  # the base itself; mergekit wants a model
        sources = [MergeSource(base, np.zeros(len(names)))]
    for source in sources:
        lines += [f"- model: {json.dumps(source.model)}", "  parameters:"]
        conditions, default = _conditions(names, source.weights.tolist())
        if not conditions:
            lines.append(f"    weight: {_number(default)}")
            continue
        lines.append("    weight:")
        for fragment, value in conditions:
            lines += [f"    - filter: {json.dumps(fragment)}", f"      value: {_number(value)}"]
        lines.append(f"    - value: {_number(default)}")
    return "\n".join(lines) + "\n"


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
    match = re.search(r"\.\d+\.", name)
    return name[: match.end()] if match else name


def _number(value: float) -> str:
    """A YAML 1.1 float: ``1e-05`` without a point would be read as text."""
    text = repr(float(value))
    mantissa, sign, exponent = text.partition("e")
    return text if not sign or "." in mantissa else f"{mantissa}.0e{exponent}"


def _command(out: Path) -> str:
    recipe = shlex.quote(str(out.absolute() / "mergekit.yml"))
    return (
        f"mergekit-yaml {recipe} MERGED --lora-merge-cache CACHE "
        "--lora-merge-dtype float32 --no-write-model-card"
    )


_README = """\
# A merge recipe for mergekit

    {command}

`MERGED` is the folder to write, `CACHE` an empty scratch folder: delete it afterwards, and never
reuse it for another recipe (mergekit does not notice that an adapter has changed). Needs mergekit
0.1.5 or later. The arithmetic runs in float32.
{extra}"""

_MUTATION = """
`mutation/` is a PEFT adapter of the base with what no weighted sum of experts can express. It is
named in `mergekit.yml` by its absolute path: change that after moving this folder. It is meant to
be merged, not attached (with tied embeddings the two differ).
"""

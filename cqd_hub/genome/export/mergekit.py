"""An individual as a recipe that a stranger runs with ``mergekit-yaml``.

mergekit itself is not imported: the YAML is plain text. Its traps that we step around: ``+`` and
``@`` in a path are read as adapter and revision; relative paths are looked up on the Hub; adapters
are merged in the checkpoint's dtype, and only with a cache folder given.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cqd_hub.genome.basis import Basis
from cqd_hub.genome.export import mergekit_names as naming
from cqd_hub.genome.export.adapter import MergingAdapter
from cqd_hub.genome.export.checkpoint import ModelFiles
from cqd_hub.genome.export.deltas import Deltas, expert_shares
from cqd_hub.genome.export.mergekit_yaml import arithmetic
from cqd_hub.genome.export.output import output_folder
from cqd_hub.genome.genome import Genome
from cqd_hub.genome.models.experts import is_adapter

if TYPE_CHECKING:
    from cqd_hub.genome.merge.store import MergeStore


def export_mergekit(
    genome: Genome,
    basis: Basis,
    out: Path,
    *,
    out_dtype: str = "bfloat16",
    base: str | None = None,
    experts: Sequence[str] | None = None,
    merges: MergeStore | None = None,
) -> Path:
    """Write ``mergekit.yml``, what it adds to weighted experts, and the command to run.

    The individual, whatever its lineage, as base + weighted experts + ``mutation/`` at weight 1:
    what no weighted sum of experts can express, as a PEFT adapter where one holds it exactly in
    fewer bytes, else as a checkpoint (the base with it added, fp32).

    Args:
        out: A folder that does not exist yet.
        out_dtype: Of the merged model; the merge itself runs in float32.
        base: Reference to write for the base, such as ``org/name@revision``; its path unless given.
        experts: References to write for the experts, likewise.
        merges: Where the merges are that the genome weighs.

    Returns:
        The YAML's path.

    Raises:
        UserError: *out* exists, a path holds ``+`` or ``@``, or mergekit cannot merge the
            architecture.
        RunError: Not enough space. Nothing is left behind.
    """
    naming.refuse_unmergeable(basis.base)
    whole = WholeBase(basis, out, base)
    shares = expert_shares(genome, basis)
    for number in range(len(basis.experts)):
        if shares[:, number].any() and not naming.usable(basis, number):
            shares[:, number] = 0.0
    shares = naming.common_in_tensors(basis, shares)
    deltas = Deltas(genome, basis, without=shares, merges=merges)
    rest = Remainder(deltas, out / "mutation", whole.reference)
    weights = [
        (_expert(basis, number, whole.reference, experts), shares[:, number])
        for number in range(len(basis.experts))
        if shares[:, number].any()
    ]
    text = arithmetic(
        naming.tensor_names(basis),
        base=whole.reference,
        weights=[*weights, *rest.source],
        out_dtype=out_dtype,
    )
    key = {"form": "mergekit", "genome": genome.hash, "basis": basis.hash, "out_dtype": out_dtype}
    with output_folder(out, needed=whole.bytes + rest.bytes, key=key) as folder:
        whole.write(folder / "base")
        rest.write(folder / "mutation")
        write_recipe(folder, out, text, rest.note)
    return out / "mergekit.yml"


class WholeBase:
    """The base as a recipe names it; written beside the recipe if no folder has all its rows.

    Args:
        basis: Of the base.
        out: The export's folder.
        reference: To write instead of a path.
    """

    def __init__(self, basis: Basis, out: Path, reference: str | None = None) -> None:
        grown = basis.base.vocabulary is not None and bool(basis.base.vocabulary.donors)
        self._basis = basis
        self._files = ModelFiles(basis) if grown else None
        self.bytes = self._files.bytes if self._files else 0
        place = out / "base" if grown else basis.base.checkpoint.path
        self.reference = naming.local_reference(place) if reference is None or grown else reference

    def write(self, folder: Path) -> None:
        """Write it, if it has to be."""
        if self._files:
            folder.mkdir(exist_ok=True)
            slots = self._basis.layout.slots
            self._files.write(folder, lambda i, dtype: self._basis.base.weight(slots[i]).to(dtype))


class Remainder:
    """What weighted models leave over, as the adapter or checkpoint that holds it exactly.

    Args:
        deltas: What is left over.
        place: Where it will be.
        base: Reference of the base.

    Attributes:
        bytes: On disk.
        source: Its place in a recipe: reference and weights; empty if nothing is left over.
        note: What to tell of it.
    """

    def __init__(self, deltas: Deltas, place: Path, base: str) -> None:
        self._deltas, self._base = deltas, base
        self._adapter: MergingAdapter | None = None
        self._files: ModelFiles | None = None
        self.bytes, self.note = 0, ""
        self.source: list[tuple[str, np.ndarray]] = []
        if not deltas.differing():
            return
        reference = naming.local_reference(place)
        files, adapter = ModelFiles(deltas.basis, dtype="float32"), None
        if naming.takes_adapters(deltas.basis.base):
            adapter = MergingAdapter.of(deltas)
        if adapter is not None and adapter.bytes <= files.bytes:
            self._adapter, self.bytes, self.note = adapter, adapter.bytes, _ADAPTER
            reference = f"{base}+{reference}"
        else:
            self._files, self.bytes, self.note = files, files.bytes, _CHECKPOINT
        self.source = [(reference, np.ones(len(deltas.basis.layout.slots)))]

    def write(self, folder: Path) -> None:
        """Write it, if there is anything."""
        if self._adapter:
            folder.mkdir(exist_ok=True)
            self._adapter.write(folder, self._base)
        elif self._files:
            folder.mkdir(exist_ok=True)
            self._files.write(folder, self._weight)

    def _weight(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        basis = self._deltas.basis
        base = basis.base.weight(basis.layout.slots[index]).float()
        delta = self._deltas.delta(index)
        return (base if delta is None else base + delta).to(dtype)


def write_recipe(folder: Path, out: Path, text: str, note: str) -> None:
    """Write ``mergekit.yml`` and how to run it once *folder* has become *out*."""
    (folder / "mergekit.yml").write_text(text, encoding="utf-8")
    command = shlex.join(
        [
            "mergekit-yaml",
            str(out.absolute() / "mergekit.yml"),
            "MERGED",
            "--lora-merge-cache",
            "CACHE",
            "--lora-merge-dtype",
            "float32",
            "--no-write-model-card",
        ]
    )
    readme = _README.format(command=command, note=note)
    (folder / "README.md").write_text(readme, encoding="utf-8")


def _expert(basis: Basis, number: int, base: str, given: Sequence[str] | None) -> str:
    expert = basis.experts[number]
    name = given[number] if given else naming.local_reference(expert.path)
    return f"{base}+{name}" if is_adapter(expert) else name


_README = """\
# A merge recipe for mergekit

    {command}

`MERGED` is the folder to write, `CACHE` an empty scratch folder: delete it afterwards, and never
reuse it for another recipe (mergekit does not notice that an adapter has changed). Needs mergekit
0.1.5 or later. The arithmetic runs in float32. Folders are named by their absolute paths: change
those in `mergekit.yml` after moving them.
{note}"""

_ADAPTER = """
`mutation/` is a PEFT adapter of the base with what no weighted sum of the other models can express.
It is meant to be merged, not attached (with tied embeddings the two differ).
"""

_CHECKPOINT = """
`mutation/` is the base with what no weighted sum of the other models can express added to it.
"""

"""One individual of a run as a model that other tools load."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cqd_hub.errors import UserError
from cqd_hub.files import size_text
from cqd_hub.genome import Genome, Materialiser
from cqd_hub.genome.export import (
    export_adapter,
    export_checkpoint,
    export_crossover,
    export_gguf,
    export_mergekit,
    find_converter,
    gguf_command,
)
from cqd_hub.run.directory import read_manifest, read_recipe
from cqd_hub.run.journal import Individual, Journal
from cqd_hub.run.lineup import open_basis
from cqd_hub.run.merges import kept_merges
from cqd_hub.run.models import pins_of
from cqd_hub.run.select import find

if TYPE_CHECKING:
    from cqd_hub.genome import Basis
    from cqd_hub.genome.merge.store import MergeStore

Form = Literal["checkpoint", "adapter", "mergekit", "crossover", "gguf"]


@dataclass(frozen=True)
class ExportOptions:
    """How to write a form; each has its own, see `OPTIONS_OF`.

    Args:
        dtype: Of weights or factors. By default a checkpoint's (and so a GGUF file's) are as in the
            base, an adapter's are float32, what mergekit writes has the base's.
        shard_size: Largest file of a checkpoint.
        rank: Of an adapter; exact where it can be by default.
        error: Instead, the relative error that an adapter may have.
        consumer: What shall load an adapter.
        partial: An adapter may leave out what has no place in one.
        purpose: What an adapter of tied embeddings is for.
        base: Name to write for the base.
        outtype: Of a GGUF file.
        converter: llama.cpp's, or its folder.
    """

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    shard_size: str | None = None
    rank: int | None = None
    error: float | None = None
    consumer: Literal["peft", "vllm"] | None = None
    partial: bool = False
    purpose: Literal["attach", "merge"] | None = None
    base: str | None = None
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] | None = None
    converter: Path | None = None

    def check(self, form: Form) -> None:
        """Refuse what means nothing for *form*.

        Raises:
            UserError: Names the option and the forms that it is for.
        """
        if form not in get_args(Form):
            close = difflib.get_close_matches(form, get_args(Form), n=1)
            known = ", ".join(get_args(Form))
            raise UserError(
                f"no form {form!r}",
                where="form",
                remedy=f"did you mean {close[0]!r}?" if close else f"use one of {known}",
            )
        for option in fields(self):
            given = getattr(self, option.name) not in (None, False)
            if given and option.name not in OPTIONS_OF[form]:
                forms = [other for other, names in OPTIONS_OF.items() if option.name in names]
                raise UserError(
                    f"means nothing with --form {form}",
                    where=f"--{_FLAGS.get(option.name, option.name).replace('_', '-')}",
                    remedy=f"use it with --form {' or '.join(forms)}",
                )


OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "checkpoint": ("dtype", "shard_size"),
    "adapter": ("dtype", "rank", "error", "consumer", "partial", "purpose", "base"),
    "mergekit": ("dtype", "base"),
    "crossover": ("dtype",),
    "gguf": ("dtype", "outtype", "converter"),
}
_FLAGS = {"consumer": "for"}


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Args:
        individual: Its record.
        path: The folder, or the GGUF file in it.
        details: Sizes and errors, as JSON.
    """

    individual: Individual
    path: Path
    details: dict[str, Any]


def export_individual(
    folder: Path,
    who: str,
    to: Path,
    *,
    form: Form = "checkpoint",
    options: ExportOptions | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Export one individual.

    Args:
        folder: The run directory.
        who: See `cqd_hub.run.select.WHO`.
        to: A folder that does not exist yet, or is empty.
        form: A full model; a PEFT LoRA adapter; a mergekit recipe over base and experts, or over
            the parents; or a GGUF file. Without llama.cpp's converter the last is a full model and
            a note of the command to run.
        options: How.
        note: Called with a line for everything worth knowing.

    Raises:
        UserError: No such individual, models changed since the run, *to* is taken, or options that
            mean nothing.
        RunError: Not enough space, or writing failed.
    """
    options = options or ExportOptions()
    options.check(form)
    converter = find_converter(options.converter) if form == "gguf" else None
    recipe = read_recipe(folder)
    journal = Journal(folder)
    try:
        individual = find(who, folder, recipe, journal)
        genome = Genome.from_bytes(individual.genome)
        parents = _parents(individual, journal) if form == "crossover" else []
    finally:
        journal.close()
    manifest = read_manifest(folder)
    assert manifest is not None  # read_recipe has read it
    basis = open_basis(
        recipe,
        Path(manifest["folder"]),
        expected=manifest["basis"],
        pins=pins_of(manifest),
        note=note,
    )
    kind = f"{individual.role}, id {individual.id}, genome {individual.genome_hash[:12]}"
    note(f"{individual.name} ({kind})")
    merges: MergeStore | None = None
    with ExitStack() as stack:
        for needed in (genome, *parents):
            merges = stack.enter_context(kept_merges(folder, manifest, recipe, basis, needed))
        write = _Writer(genome, basis, merges, to, options, note)
        if form == "adapter":
            path, details = write.adapter()
        elif form == "mergekit":
            path, details = write.mergekit()
        elif form == "crossover":
            path, details = write.crossover(individual, parents)
        elif form == "gguf" and converter:
            path, details = write.gguf(converter)
        else:
            path, details = write.checkpoint()
            if form == "gguf":
                details["command"] = gguf_command(to, outtype=options.outtype or "auto")
                note(
                    "llama.cpp's converter was not found (--converter, $LLAMA_CPP or $PATH), so "
                    f"this is a checkpoint; run: {details['command']}"
                )
    return Exported(individual, path, details)


@dataclass(frozen=True)
class _Writer:
    genome: Genome
    basis: Basis
    merges: MergeStore | None
    to: Path
    options: ExportOptions
    note: Callable[[str], None]

    def checkpoint(self) -> tuple[Path, dict[str, Any]]:
        size = export_checkpoint(
            self.genome,
            self._materialiser,
            self.to,
            dtype=self.options.dtype,
            shard_size=self.options.shard_size or "5GB",
        )
        self.note(f"{size_text(size)}; loads with AutoModelForCausalLM.from_pretrained")
        return self.to, {"bytes": size}

    def adapter(self) -> tuple[Path, dict[str, Any]]:
        made = export_adapter(
            self.genome,
            self.basis,
            self.to,
            base_name=self.options.base or str(self.basis.base.checkpoint.path),
            rank=self.options.rank,
            error=self.options.error,
            dtype=self.options.dtype or "float32",
            consumer=self.options.consumer or "peft",
            partial=self.options.partial,
            purpose=self.options.purpose or "attach",
            merges=self.merges,
        )
        error = f"relative error {made.relative_error:.2g}"
        self.note(f"{size_text(made.bytes)}, rank {made.rank}, {error}")
        if made.left_out:
            count = len(made.left_out)
            self.note(f"left out, and counted in the error: {count} tensors ({made.left_out[0]} …)")
        if self.options.consumer == "vllm":
            self.note(f"serve it with vLLM's --enable-lora --max-lora-rank {made.rank}")
        return self.to, {
            "bytes": made.bytes,
            "rank": made.rank,
            "relative_error": made.relative_error,
            "left_out": len(made.left_out),
        }

    def mergekit(self) -> tuple[Path, dict[str, Any]]:
        export_mergekit(
            self.genome,
            self.basis,
            self.to,
            out_dtype=self._out_dtype,
            base=self.options.base,
            merges=self.merges,
        )
        self.note(f"run it as {self.to / 'README.md'} says")
        return self.to, {}

    def crossover(
        self, individual: Individual, parents: list[Genome]
    ) -> tuple[Path, dict[str, Any]]:
        cross = individual.lineage["crossover"]
        merge = next((m for m in self.genome.merges if m.id == cross.get("merge")), None)
        groups = self.basis.layout.groups(cross.get("per", "model"))
        export_crossover(
            self.genome,
            parents,
            merge or np.array(cross["shares"])[:, groups],
            self._materialiser,
            self.to,
            out_dtype=self._out_dtype,
            merges=self.merges,
        )
        self.note(f"run it as {self.to / 'README.md'} says")
        return self.to, {"parents": individual.lineage["parents"]}

    def gguf(self, converter: Path) -> tuple[Path, dict[str, Any]]:
        path = export_gguf(
            self.genome,
            self._materialiser,
            self.to,
            converter=converter,
            outtype=self.options.outtype or "auto",
            dtype=self.options.dtype,
        )
        self.note(f"{size_text(path.stat().st_size)}, converted by {converter}")
        return path, {"bytes": path.stat().st_size}

    @property
    def _materialiser(self) -> Materialiser:
        return Materialiser(self.basis, merges=self.merges)

    @property
    def _out_dtype(self) -> str:
        config = self.basis.base.checkpoint.config
        stored = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        return self.options.dtype or str(stored)


def _parents(individual: Individual, journal: Journal) -> list[Genome]:
    if "crossover" not in individual.lineage:
        raise UserError(
            f"{individual.name} was not made by a crossover",
            where="--form crossover",
            remedy="use --form mergekit, which any individual has",
        )
    return [
        Genome.from_bytes(journal.individual(int(number)).genome)
        for number in individual.lineage["parents"]
    ]
